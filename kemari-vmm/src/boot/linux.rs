//! Linux by its 64-bit boot protocol (Documentation/arch/x86/boot.rst) and by PVH (Xen's
//! docs/misc/pvh.pandoc).

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Address, ByteValued, GuestMemoryBackend, GuestMemoryRegion};

use super::bzimage::BzImage;
use super::elf::Elf;
use super::{BootError, low_memory_bytes};
use crate::arch::acpi;
use crate::arch::entry::{self, Entry};
use crate::arch::layout::{self, MmioDevice, abi};
use crate::memory::{Memory, place};

const PAGE_BYTES: u64 = 0x1000;
/// Types of memory, the same numbers in both protocols.
const USABLE: u32 = 1;
const RESERVED: u32 = 2;
/// `type_of_loader`: a boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// Distance of the 64-bit entry from the load address.
const ENTRY_64_OFFSET: u64 = 0x200;

/// What a guest finds at the reset vector, in real mode: `mov dx, 0x600; mov al, 6; out dx, al; hlt; jmp` to
/// the hlt.
///
/// Linux asks the firmware to reset a hardware-reduced machine: UEFI, and where there is none, the BIOS of a
/// PC, by a jump to its reset vector; ACPI's reset register comes after it.
const RESET_CODE: [u8; 9] = {
    let [port_low, port_high] = abi::RESET_PORT.to_le_bytes();
    [
        0xba,
        port_low,
        port_high,
        0xb0,
        abi::RESET_VALUE,
        0xee,
        0xf4,
        0xeb,
        0xfd,
    ]
};

/// `magic` of `hvm_start_info`: "xEn3" with the high bit of "E" set; `version` 1 has the memory map.
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;
/// Where the PVH structures lie within their page.
const MODULE_LIST: u64 = layout::BOOT_PARAMS + 0x100;
const MEMORY_MAP: u64 = layout::BOOT_PARAMS + 0x200;

/// What both protocols are given.
pub(crate) struct Guest<'a> {
    pub memory: &'a Memory,
    pub initrd: Option<&'a [u8]>,
    pub cmdline: &'a str,
    pub devices: &'a [MmioDevice],
    pub(crate) vcpu_count: u8,
}

impl Guest<'_> {
    /// Command line, ACPI tables, and code at the reset vector.
    fn write_common(&self) -> Result<(), BootError> {
        let mut cmdline = self.cmdline.as_bytes().to_vec();
        cmdline.push(0);
        place(self.memory, layout::CMDLINE, &cmdline, "command line")?;
        let tables = acpi::build(self.devices, self.vcpu_count);
        place(self.memory, layout::ACPI_TABLES, &tables.bytes, "ACPI tables")?;
        Ok(place(
            self.memory,
            layout::RESET_VECTOR,
            &RESET_CODE,
            "reset vector",
        )?)
    }

    /// Writes the initrd as high as possible in `start..end`; returns its address.
    fn write_initrd(&self, start: u64, end: u64) -> Result<Option<(u64, u64)>, BootError> {
        let Some(initrd) = self.initrd else {
            return Ok(None);
        };
        let bytes = initrd.len() as u64;
        let end = end.min(low_memory_bytes(self.memory));
        let address = end.checked_sub(bytes).map(|address| address & !(PAGE_BYTES - 1));
        let address = address.filter(|address| *address >= start);
        let address = address.ok_or(BootError::NoRoom {
            what: "initrd beside the kernel",
            bytes,
        })?;
        place(self.memory, address, initrd, "initrd")?;
        Ok(Some((address, bytes)))
    }

    /// The memory map: (address, bytes, type), ascending.
    fn memory_map(&self) -> Vec<(u64, u64, u32)> {
        let mut map = vec![
            (0, layout::REAL_MODE_MEMORY_END, USABLE),
            (
                layout::REAL_MODE_MEMORY_END,
                layout::KERNEL_START - layout::REAL_MODE_MEMORY_END,
                RESERVED,
            ),
        ];
        for region in self.memory.iter() {
            let start = region.start_addr().raw_value().max(layout::KERNEL_START);
            let end = region.start_addr().raw_value() + region.len();
            if end > start {
                map.push((start, end - start, USABLE));
            }
        }
        map
    }
}

/// Loads a bzImage.
pub(crate) fn load_bzimage(guest: &Guest, image: &BzImage, bytes: &[u8]) -> Result<Entry, BootError> {
    let low_memory_end = low_memory_bytes(guest.memory);
    let init_bytes = u64::from(image.header.init_size);
    let address = image
        .load_address(layout::KERNEL_START, low_memory_end)
        .ok_or(BootError::NoRoom {
            what: "kernel, unpacked,",
            bytes: init_bytes,
        })?;
    let payload = &bytes[image.payload_offset..];
    place(guest.memory, address, payload, "kernel")?;
    let kernel_end = address + init_bytes.max(payload.len() as u64);
    let initrd_end = u64::from(image.header.initrd_addr_max) + 1;
    let initrd = guest.write_initrd(kernel_end, initrd_end)?;
    guest.write_common()?;
    entry::write_long_mode_tables(guest.memory)?;

    // All of the page that the header does not fill must be zero, or Linux distrusts it.
    let mut params = boot_params {
        hdr: image.header,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.code32_start = address as u32;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    let (initrd_address, initrd_bytes) = initrd.unwrap_or_default();
    params.hdr.ramdisk_image = initrd_address as u32;
    params.hdr.ramdisk_size = initrd_bytes as u32;
    params.acpi_rsdp_addr = layout::ACPI_TABLES;
    let map = guest.memory_map();
    params.e820_entries = map.len() as u8;
    for (index, (addr, size, r#type)) in map.into_iter().enumerate() {
        params.e820_table[index] = boot_e820_entry { addr, size, r#type };
    }
    place(
        guest.memory,
        layout::BOOT_PARAMS,
        params.as_slice(),
        "boot parameters",
    )?;
    Ok(Entry::Linux64 {
        rip: address + ENTRY_64_OFFSET,
        boot_params: layout::BOOT_PARAMS,
    })
}

/// Loads a `vmlinux` with a PVH entry.
pub(crate) fn load_pvh(guest: &Guest, elf: &Elf, rip: u32, bytes: &[u8]) -> Result<Entry, BootError> {
    elf.load(guest.memory, bytes)?;
    let initrd = guest.write_initrd(elf.end().max(layout::KERNEL_START), layout::LOW_MEMORY_END)?;
    guest.write_common()?;

    let map = guest.memory_map();
    let mut info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::ACPI_TABLES,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some((paddr, size)) = initrd {
        info.nr_modules = 1;
        info.modlist_paddr = MODULE_LIST;
        let module = hvm_modlist_entry {
            paddr,
            size,
            ..Default::default()
        };
        place(guest.memory, MODULE_LIST, module.as_slice(), "module list")?;
    }
    place(guest.memory, layout::BOOT_PARAMS, info.as_slice(), "start info")?;
    for (index, (addr, size, type_)) in map.into_iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr,
            size,
            type_,
            ..Default::default()
        };
        let address = MEMORY_MAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        place(guest.memory, address, entry.as_slice(), "memory map")?;
    }
    Ok(Entry::Pvh {
        rip: rip.into(),
        start_info: layout::BOOT_PARAMS,
    })
}
