//! Firmware: what runs from the reset vector and boots a disk, as SeaBIOS does.
//!
//! It lies below 4 GiB, where nobody can write it, and the end of it in memory below 1 MiB, where it runs,
//! and which it writes. What it asks of its machine it reads at two ports ([`crate::devices::fw_cfg`]).

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::BootError;
use crate::arch::acpi::handed;
use crate::arch::entry::Entry;
use crate::arch::layout::{self, MmioDevice};
use crate::devices::fw_cfg::Items;
use crate::memory::{Memory, place};

/// Largest firmware, in bytes: what KVM needs for itself lies below.
pub(crate) const FIRMWARE_BYTES_MAX: u64 = 256 << 10;
/// A segment of real mode, in which firmware is counted.
const SEGMENT_BYTES: usize = 64 << 10;
/// Distance of the first instruction from the end.
const ENTRY_FROM_END: usize = 16;
/// What the first instruction may be: jumps, the last one far.
const JUMPS: [u8; 3] = [0xe9, 0xeb, 0xea];

/// Items with numbers of their own (docs/specs/fw_cfg.rst of QEMU): how many processors there are,
/// and may be.
const PROCESSORS: u16 = 5;
const PROCESSORS_MAX: u16 = 15;
/// Types of memory.
const USABLE: u32 = 1;
const RESERVED: u32 = 2;
/// virtio's device type of disks.
const DISK: u32 = 2;
/// Where nothing can be booted firmware says so, and stays.
const FOR_EVER: u32 = u32::MAX;

/// Whether these bytes can be firmware; else why not.
pub(crate) fn check(bytes: &[u8]) -> Result<(), &'static str> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(SEGMENT_BYTES) {
        return Err("it does not consist of 64 KiB pieces");
    }
    if !JUMPS.contains(&bytes[bytes.len() - ENTRY_FROM_END]) {
        return Err("there is no jump 16 bytes before its end, where a processor begins");
    }
    Ok(())
}

/// Writes what must lie below 1 MiB; what lies below 4 GiB is the machine's.
pub(crate) fn load(memory: &Memory, bytes: &[u8]) -> Result<Entry, BootError> {
    let low = &bytes[bytes.len().saturating_sub(layout::LOW_FIRMWARE_BYTES_MAX)..];
    let address = layout::KERNEL_START - low.len() as u64;
    place(memory, address, low, "firmware")?;
    Ok(Entry::ResetVector)
}

/// What the firmware of such a machine is told: the same on every host.
pub(crate) fn items(memory: &Memory, devices: &[MmioDevice], vcpu_count: u8) -> Items {
    let mut items = Items::default();
    let processors = u16::from(vcpu_count).to_le_bytes();
    items.item(PROCESSORS, processors);
    items.item(PROCESSORS_MAX, processors);
    items.file("etc/e820", memory_map(memory));
    // Without it the number would be read from a clock that is not there, and 256 of them be waited for.
    items.file("etc/boot-cpus", processors);
    items.file("etc/sercon-port", layout::COM1_PORT.to_le_bytes());
    items.file("etc/boot-fail-wait", FOR_EVER.to_le_bytes());
    items.file("bootorder", boot_order(devices));
    let tables = handed::build(devices, vcpu_count);
    items.file(handed::TABLES, tables.tables);
    items.file(handed::RSDP, tables.rsdp);
    items.file(handed::LOADER, tables.loader);
    items
}

/// Address, bytes and type of each range; firmware itself takes out what a PC has below 1 MiB.
fn memory_map(memory: &Memory) -> Vec<u8> {
    let usable = memory
        .iter()
        .map(|region| (region.start_addr().0, region.len(), USABLE));
    let of_kvm = (layout::KVM_IDENTITY_MAP, layout::KVM_BYTES, RESERVED);
    usable
        .chain([of_kvm])
        .flat_map(|(address, bytes, kind)| {
            let numbers = [address.to_le_bytes(), bytes.to_le_bytes()].concat();
            numbers.into_iter().chain(kind.to_le_bytes())
        })
        .collect()
}

/// The disks, in their order, one a line.
fn boot_order(devices: &[MmioDevice]) -> Vec<u8> {
    let disks = devices.iter().filter(|device| device.device_id == DISK);
    let lines: Vec<String> = disks
        .map(|disk| format!("/virtio-mmio@{:016x}/disk@0,0", disk.base))
        .collect();
    let mut bytes = lines.join("\n").into_bytes();
    bytes.push(0);
    bytes
}
