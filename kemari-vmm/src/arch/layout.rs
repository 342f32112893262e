//! The physical memory map of the machine, its interrupt lines and ports.
//!
//! ```text
//! 0x0000_1000  GDT, IDT, TSS, boot info, page tables (abi.rs): used at the entry only, or by a bare guest
//! 0x0001_0000  boot_params of Linux, or the start info of PVH; of a bare guest: more task states (abi.rs)
//! 0x0002_0000  kernel command line of Linux
//! 0x0003_0000  of a bare guest: page directories for memory above 4 GiB
//! 0x0009_fc00  end of usable low memory
//! 0x000e_0000  ACPI tables
//! 0x000f_fff0  reset vector of a PC's BIOS: code that resets the machine
//! 0x0010_0000  kernel (or where it asks to be), initrd as high as possible below 3 GiB
//! 0xc000_0000  end of low memory; hole
//! 0xd000_0000  virtio-mmio register pages
//! 0xfec0_0000  I/O APIC
//! 0xfee0_0000  local APICs
//! 0xfffb_c000  pages that KVM on Intel processors needs for itself
//! 0xfffc_0000  firmware, if there is any, ends at 4 GiB; its end is below 1 MiB, too, and places ACPI tables
//! 1_0000_0000  the rest of memory
//! ```

use vm_memory::GuestAddress;

#[path = "../../../guests/bare/src/abi.rs"]
pub mod abi;

/// One virtio-mmio device as the guest is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest physical address of its register page.
    pub base: u64,
    /// Its interrupt line: edge-triggered, active high.
    pub(crate) gsi: u32,
    /// The virtio device type.
    pub device_id: u32,
}

/// First byte behind the memory that lies below the hole.
pub(crate) const LOW_MEMORY_END: u64 = 0xc000_0000;
/// Where memory goes on above the hole.
pub const HIGH_MEMORY_START: u64 = abi::HIGH_MEMORY;

/// `boot_params` of the Linux boot protocol, or `hvm_start_info` of PVH with its module list and memory map:
/// one page.
pub(crate) const BOOT_PARAMS: u64 = 0x1_0000;
/// The kernel command line with its terminating zero.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Longest command line, in bytes without the terminating zero (Linux's COMMAND_LINE_SIZE on x86 is 2,048
/// with it).
pub const CMDLINE_BYTES_MAX: usize = 2047;
/// First byte behind the usable low memory: the extended BIOS data area of a PC would begin here.
pub(crate) const REAL_MODE_MEMORY_END: u64 = 0x9_fc00;
/// The ACPI tables, RSDP first. They end before the reset vector.
pub(crate) const ACPI_TABLES: u64 = 0xe_0000;
/// Where the BIOS of a PC begins to execute after a reset: 16 bytes.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
/// Where memory goes on above the legacy area of a PC; no kernel is loaded below.
pub(crate) const KERNEL_START: u64 = 0x10_0000;

/// Register page of the first virtio-mmio device.
pub(crate) const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Bytes of one device's registers.
pub(crate) const VIRTIO_MMIO_BYTES: u64 = 0x1000;
/// Interrupt line of the first virtio-mmio device.
pub(crate) const VIRTIO_MMIO_GSI: u32 = 5;
/// Most virtio-mmio devices of a machine.
pub(crate) const VIRTIO_MMIO_DEVICES_MAX: usize = abi::DEVICES_MAX;

/// First I/O port of the 16550 console.
pub(crate) const COM1_PORT: u16 = 0x3f8;
/// Number of its ports.
pub(crate) const COM1_PORTS: u16 = 8;
/// Its interrupt line.
pub(crate) const COM1_GSI: u32 = 4;

/// ACPI's fixed registers, where there are any: the first of their ports, and how many there are.
pub(crate) const PM_PORT: u16 = 0x620;
/// See [`PM_PORT`].
pub(crate) const PM_PORTS: u16 = 6;
/// Which of them is the control register's first; before it come status of events, and which are enabled.
pub const PM_CONTROL: u16 = 4;
/// ACPI's own interrupt line, where there are fixed registers: behind those of the virtio-mmio devices.
pub(crate) const SCI_GSI: u16 = 21;
/// The sleep type that means "soft off".
pub(crate) const SLEEP_TYPE_S5: u8 = 5;

/// Pins of the I/O APIC: valid interrupt lines are below.
pub(crate) const IO_APIC_PINS: u32 = 24;

/// Three pages for KVM on Intel processors without unrestricted guests (`KVM_SET_TSS_ADDR`).
pub(crate) const KVM_TSS: u64 = 0xfffb_d000;
/// One page for the same (`KVM_SET_IDENTITY_MAP_ADDR`).
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Bytes of all of these pages.
pub(crate) const KVM_BYTES: u64 = 0x4000;

/// Most bytes of firmware that lie below 1 MiB as well.
pub(crate) const LOW_FIRMWARE_BYTES_MAX: usize = 128 << 10;

const _: () = {
    assert!(VIRTIO_MMIO_GSI as usize + VIRTIO_MMIO_DEVICES_MAX <= SCI_GSI as usize);
    assert!((SCI_GSI as u32) < IO_APIC_PINS);
    assert!(abi::POWER_OFF_VALUE == (SLEEP_TYPE_S5 << 2) | 0x20);
    assert!(abi::PAGE_TABLES + 6 * 0x1000 <= BOOT_PARAMS);
    let (areas, gib) = ((abi::VCPUS_MAX as u64 - 1) * abi::VCPU_AREA_BYTES, 1 << 30);
    assert!(abi::VCPU_AREAS + areas <= abi::HIGH_PAGE_DIRECTORIES);
    assert!(abi::HIGH_PAGE_DIRECTORIES + abi::MAPPED_BYTES_MAX / gib * 0x1000 <= REAL_MODE_MEMORY_END);
    assert!(CMDLINE + (CMDLINE_BYTES_MAX as u64) < REAL_MODE_MEMORY_END);
};

/// Register page and interrupt line of the virtio-mmio device in a slot.
///
/// The slot must be below [`VIRTIO_MMIO_DEVICES_MAX`].
pub fn virtio_mmio(slot: usize) -> (u64, u32) {
    (
        VIRTIO_MMIO_BASE + slot as u64 * VIRTIO_MMIO_BYTES,
        VIRTIO_MMIO_GSI + slot as u32,
    )
}

/// The regions of a machine with this many bytes of memory: one below the hole,
/// and one above it if there is more.
pub(crate) fn memory_regions(bytes: u64) -> Vec<(GuestAddress, usize)> {
    let low = bytes.min(LOW_MEMORY_END);
    let mut regions = vec![(GuestAddress(0), low as usize)];
    if bytes > low {
        regions.push((GuestAddress(HIGH_MEMORY_START), (bytes - low) as usize));
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_split_at_the_hole() {
        let mib = 1 << 20;
        assert_eq!(memory_regions(64 * mib), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(memory_regions(3072 * mib), [(GuestAddress(0), 3072 << 20)]);
        assert_eq!(
            memory_regions(3074 * mib),
            [
                (GuestAddress(0), 3072 << 20),
                (GuestAddress(HIGH_MEMORY_START), 2 << 20)
            ]
        );
    }

    #[test]
    fn devices_lie_in_the_hole() {
        assert_eq!(virtio_mmio(0), (0xd000_0000, 5));
        assert_eq!(virtio_mmio(15), (0xd000_f000, 20));
        let (last, gsi) = virtio_mmio(VIRTIO_MMIO_DEVICES_MAX - 1);
        assert!(last + VIRTIO_MMIO_BYTES <= abi::IO_APIC && last >= LOW_MEMORY_END);
        assert!(gsi < IO_APIC_PINS);
    }
}
