//! The bare guest: everything that [`abi`] promises at its entry.

use super::elf::Elf;
use super::{BootError, clear, low_memory_bytes, memory_end};
use crate::arch::entry::{self, Entry};
use crate::arch::layout::{KERNEL_START, MmioDevice, abi};
use crate::memory::{Memory, place};

/// Offset in the TSS of ring 0's stack pointer, and of the offset of the I/O permission bitmap.
const TSS_RSP0: u64 = 4;
const TSS_IO_BITMAP: u64 = 0x66;
const IO_BITMAP: u16 = 0x68;

/// Checks what the contract asks of the file.
pub(crate) fn check(elf: &Elf) -> Result<(), &'static str> {
    if elf.start() < KERNEL_START {
        return Err("it is a bare guest that is linked below 1 MiB");
    }
    if !elf.contains(elf.entry) {
        return Err("it is a bare guest whose entry lies outside its segments");
    }
    Ok(())
}

/// What the guest is told. The caller has checked the number of devices and the length of the command line.
pub(crate) fn boot_info(
    memory: &Memory,
    devices: &[MmioDevice],
    vcpu_count: u8,
    tsc_khz: u32,
    cmdline: &str,
) -> abi::BootInfo {
    let mut info = abi::BootInfo {
        magic: abi::BOOT_INFO_MAGIC,
        low_memory_bytes: low_memory_bytes(memory),
        high_memory_bytes: memory_end(memory)
            .min(abi::MAPPED_BYTES_MAX)
            .saturating_sub(abi::HIGH_MEMORY),
        tsc_khz,
        vcpu_count: vcpu_count.into(),
        device_count: devices.len() as u32,
        cmdline_bytes: cmdline.len() as u32,
        devices: [abi::BootDevice::default(); abi::DEVICES_MAX],
        cmdline: [0; abi::CMDLINE_BYTES_MAX],
    };
    for (entry, device) in info.devices.iter_mut().zip(devices) {
        *entry = abi::BootDevice {
            base: device.base,
            gsi: device.gsi,
            device_id: device.device_id,
        };
    }
    info.cmdline[..cmdline.len()].copy_from_slice(cmdline.as_bytes());
    info
}

/// The bytes of the boot info, field by field as `repr(C)` lays them out.
fn boot_info_bytes(info: &abi::BootInfo) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of::<abi::BootInfo>());
    bytes.extend(info.magic.to_le_bytes());
    bytes.extend(info.low_memory_bytes.to_le_bytes());
    bytes.extend(info.high_memory_bytes.to_le_bytes());
    for word in [
        info.tsc_khz,
        info.vcpu_count,
        info.device_count,
        info.cmdline_bytes,
    ] {
        bytes.extend(word.to_le_bytes());
    }
    for device in &info.devices {
        bytes.extend(device.base.to_le_bytes());
        bytes.extend(device.gsi.to_le_bytes());
        bytes.extend(device.device_id.to_le_bytes());
    }
    bytes.extend(info.cmdline);
    debug_assert_eq!(bytes.len(), size_of::<abi::BootInfo>());
    bytes
}

/// Writes the guest and its tables.
pub(crate) fn load(
    memory: &Memory,
    elf: &Elf,
    bytes: &[u8],
    info: &abi::BootInfo,
) -> Result<Entry, BootError> {
    // Descriptor tables, task states with their I/O permission bitmaps, ring 0's stacks, boot info: all that
    // the former guest had.
    clear(memory, abi::GDT, abi::PAGE_TABLES - abi::GDT, "boot tables")?;
    let areas = (abi::VCPUS_MAX as u64 - 1) * abi::VCPU_AREA_BYTES;
    clear(memory, abi::VCPU_AREAS, areas, "task states")?;
    elf.load(memory, bytes)?;
    entry::write_long_mode_tables(memory)?;
    entry::map_high_memory(memory, memory_end(memory))?;
    for vcpu in 0..u64::from(info.vcpu_count) {
        let (state, stack) = entry::task(vcpu);
        place(memory, state + TSS_RSP0, &stack.to_le_bytes(), "task state")?;
        place(
            memory,
            state + TSS_IO_BITMAP,
            &IO_BITMAP.to_le_bytes(),
            "task state",
        )?;
        place(memory, state + u64::from(entry::TSS_LIMIT), &[0xff], "task state")?;
    }
    place(memory, abi::BOOT_INFO, &boot_info_bytes(info), "boot info")?;
    Ok(Entry::Bare { rip: elf.entry })
}
