//! The contract between the machine and a bare guest, compiled into both (the machine includes this very
//! file).
//!
//! A bare guest is a static ELF file, linked at 1 MiB or above, that carries a `PT_NOTE` with the owner name
//! [`NOTE_NAME`] and the type [`NOTE_TYPE`]; its descriptor is empty. It is entered in 64-bit mode at
//! privilege level 3, because that is what runs at native speed on every KVM, those that emulate ring 0
//! included.
//!
//! At entry:
//! * `CS` = 0x33, `SS` = 0x2b, `RFLAGS` = 0x3202 (interrupts on, I/O privilege for ring 3), `RIP` = the ELF
//!   entry, `RDI` = [`BOOT_INFO`], `RSI` = the vCPU's number, all other general registers 0. There is no
//!   stack yet: the guest brings its own.
//! * Every vCPU enters so, all at once: none has to be started by another.
//!   Each has a TSS and a ring-0 stack of its own.
//! * `CR0` = 0x80050033, `CR4` = PAE | PGE | OSFXSR | OSXMMEXCPT | FSGSBASE | OSXSAVE, `EFER` = 0x501,
//!   `XCR0` = 7.
//! * The first 4 GiB, and the memory behind them up to [`MAPPED_BYTES_MAX`], are mapped one to one by 2 MiB
//!   pages with the user, writable, accessed and dirty bits set.
//! * `GDTR`, `IDTR` and `TR` point at the tables below. The machine fills the GDT and the TSS; the IDT is
//!   zero and the guest, which can write it as ordinary memory, fills in ring-0 gates (selector 0x10) of its
//!   own.
//! * The TSS gives ring 0 the stack [`RING0_STACK_TOP`] and opens every I/O port to ring 3.
//!
//! All addresses are guest physical addresses in bytes.

/// Owner name of the ELF note that marks a bare guest (with its terminating zero: 7 bytes).
pub const NOTE_NAME: &[u8; 7] = b"Kemari\0";
/// Type of that note.
pub const NOTE_TYPE: u32 = 1;

/// Global descriptor table: one page. 0x10 ring-0 code, 0x18 ring-0 data, 0x28 user data, 0x30 user code,
/// 0x40 TSS.
pub const GDT: u64 = 0x1000;
/// Interrupt descriptor table: 256 gates of 16 bytes, filled by the guest.
pub const IDT: u64 = 0x2000;
/// Task state segment: 0x68 bytes, then 8,192 bytes of zero I/O permission bitmap and one byte of 0xff.
pub const TSS: u64 = 0x3000;
/// Initial stack pointer of ring 0, growing down from here to 0x6000.
pub const RING0_STACK_TOP: u64 = 0x7ff0;
/// The [`BootInfo`] of this boot: one page.
pub const BOOT_INFO: u64 = 0x8000;
/// Root of the page tables (PML4), the page directory pointer table behind it, then four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Most vCPUs.
pub const VCPUS_MAX: usize = 8;
/// What vCPU *n* > 0 has instead of [`TSS`] and [`RING0_STACK_TOP`] lies at
/// `VCPU_AREAS + (n - 1) * VCPU_AREA_BYTES`: its TSS, and at the end of the area its stack of ring 0, growing
/// down.
pub const VCPU_AREAS: u64 = 0x1_0000;
/// Bytes of each of these areas.
pub const VCPU_AREA_BYTES: u64 = 0x4000;
/// Further page directories, for memory above 4 GiB: one for each GiB.
pub const HIGH_PAGE_DIRECTORIES: u64 = 0x3_0000;
/// Memory is mapped up to this address.
pub const MAPPED_BYTES_MAX: u64 = 64 << 30;
/// Where memory goes on above the hole.
pub const HIGH_MEMORY: u64 = 1 << 32;

/// First word of a valid [`BootInfo`]: "KEMARI02".
pub const BOOT_INFO_MAGIC: u64 = u64::from_le_bytes(*b"KEMARI02");
/// Most virtio-mmio devices a [`BootInfo`] can name.
pub const DEVICES_MAX: usize = 16;
/// Longest command line, in bytes.
pub const CMDLINE_BYTES_MAX: usize = 1024;

/// Value of [`BootDevice::device_id`] of a network card (virtio 1.2, section 5).
pub const DEVICE_ID_NET: u32 = 1;
/// Value of [`BootDevice::device_id`] of a disk.
pub const DEVICE_ID_BLOCK: u32 = 2;

/// I/O port: writing [`RESET_VALUE`] resets the machine.
pub const RESET_PORT: u16 = 0x600;
/// Value that resets.
pub const RESET_VALUE: u8 = 0x06;
/// I/O port: writing [`POWER_OFF_VALUE`] (ACPI SLP_EN with SLP_TYP 5) powers the machine off.
pub const SLEEP_CONTROL_PORT: u16 = 0x604;
/// Value that powers off.
pub const POWER_OFF_VALUE: u8 = 0x34;
/// I/O port of ACPI's sleep status register (reads 0x80 after a wake, writes are ignored).
pub const SLEEP_STATUS_PORT: u16 = 0x605;
/// I/O port: any byte written is a notification on the event channel `test OUT` and counts as output: it asks
/// for a sync and does nothing else. For measurements.
pub const KICK_PORT: u16 = 0x610;

/// Physical address of the local APIC's registers.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Physical address of the I/O APIC's registers (24 pins).
pub const IO_APIC: u64 = 0xfec0_0000;

/// One virtio-mmio device (version 2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BootDevice {
    /// Address of its register page (0x1000 bytes).
    pub base: u64,
    /// Its pin on the I/O APIC: edge-triggered, active high.
    pub gsi: u32,
    /// The virtio device type: [`DEVICE_ID_NET`], [`DEVICE_ID_BLOCK`], ...
    pub device_id: u32,
}

/// What the machine tells a bare guest, at [`BOOT_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// [`BOOT_INFO_MAGIC`].
    pub magic: u64,
    /// Bytes of memory below the hole at 3 GiB.
    pub low_memory_bytes: u64,
    /// Bytes of mapped memory from [`HIGH_MEMORY`] on.
    pub high_memory_bytes: u64,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u32,
    /// Number of vCPUs.
    pub vcpu_count: u32,
    /// Number of valid entries of `devices`.
    pub device_count: u32,
    /// Number of valid bytes of `cmdline`.
    pub cmdline_bytes: u32,
    /// The devices, in the order of the configuration.
    pub devices: [BootDevice; DEVICES_MAX],
    /// The kernel command line, UTF-8, `key=value` words separated by spaces.
    pub cmdline: [u8; CMDLINE_BYTES_MAX],
}
