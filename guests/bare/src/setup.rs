//! The way from the boot information to a guest that serves.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;

use crate::abi::{self, BootDevice, BootInfo};
use crate::apic::{self, Timer};
use crate::block_test::BlockTest;
use crate::boot::{self, Settings};
use crate::commit::{Owner, Storage};
use crate::console::Console;
use crate::disk_load::DiskLoad;
use crate::guest::{Counts, Guest};
use crate::jobs::{Job, KickJob};
use crate::net::{CONNECTIONS_MAX, Net, SPARE_LISTENERS};
use crate::pattern::{PAGE_BYTES, PatternArea};
use crate::probe::{PROBE_BLOCKS, Probe};
use crate::server::Connection;
use crate::store::{BLOCK_BYTES, Index, SLOTS_MAX, Superblock};
use crate::virtio::block::{Disk, Finished, Operation, Request, SECTOR_BYTES};
use crate::virtio::memory::Dma;
use crate::virtio::mmio::{F_EVENT_IDX, F_INDIRECT_DESC, Registers};
use crate::virtio::net::Nic;
use crate::worker::Overseer;
use crate::{clock, cpu, fpu, traps};

/// Bytes of slots read by one request at boot.
const LOAD_BYTES: usize = 64 * 1024;
/// Such requests in flight.
const LOADS_MAX: usize = 8;

/// Sets everything up. `free` is the memory that nobody uses.
///
/// # Safety
/// To be called once, on the machine of abi.rs with its gates installed, with `free` page-aligned and used by
/// nobody.
pub unsafe fn set_up(info: &'static BootInfo, free: core::ops::Range<u64>) -> Guest {
    fpu::assert_present();
    clock::start(info.tsc_khz);
    let timer = Timer::start();
    let settings = boot::parse(boot::cmdline(info)).unwrap_or_else(|bad| panic!("{bad}"));
    let devices = boot::devices(info).to_vec();
    apic::route(&devices);

    let find = |id| devices.iter().find(|device| device.device_id == id);
    // SAFETY: the boot information names a device once, and this is the only place that takes it.
    let registers = |device: &BootDevice| unsafe { Registers::new(device.base, device.device_id) };
    let features = if settings.event_idx { F_EVENT_IDX } else { 0 }
        | if settings.indirect { F_INDIRECT_DESC } else { 0 };
    let mut disk = find(abi::DEVICE_ID_BLOCK).map(|device| Disk::new(registers(device), features));
    let storage = match &mut disk {
        Some(disk) => open(disk),
        None => Storage::in_memory(SLOTS_MAX),
    };
    let rooms = disk.as_ref().and_then(|disk| rooms(disk, storage.layout()?));
    let (tests, load) = rooms.unzip();
    let net =
        find(abi::DEVICE_ID_NET).map(|device| Net::new(Nic::new(registers(device), features), &settings));
    let boot_job = settings
        .kick_loop
        .map(|(pages, seconds)| Job::Kick(KickJob::timed(pages as usize, u64::from(seconds) * 1_000_000)));
    let low = (free.end.saturating_sub(free.start)) as usize / PAGE_BYTES;
    let high = info.high_memory_bytes as usize / PAGE_BYTES;
    let ranges = [(free.start as *mut u8, low), (abi::HIGH_MEMORY as *mut u8, high)];
    // SAFETY: the caller's promise, and nobody else knows of the memory above 4 GiB.
    let area = unsafe { PatternArea::new(ranges, settings.pattern_pages_max) };
    if let Some(job) = &boot_job {
        assert!(
            job.pages() <= area.pages(),
            "kickloop: the pattern area has {} pages only",
            area.pages()
        );
    }
    announce(&settings, &storage, net.is_some());
    let overseer = (info.vcpu_count > 1).then(|| Overseer::start(timer.hz()));
    Guest {
        overseer,
        settings,
        interrupts_seen: vec![0; devices.len()],
        devices,
        timer,
        area,
        net,
        disk,
        storage,
        tests,
        load,
        connections: Connection::pool(CONNECTIONS_MAX + SPARE_LISTENERS),
        boot_job,
        counts: Counts::default(),
        end: None,
        card_reset_by: None,
    }
}

/// The one line of a boot that goes well.
fn announce(settings: &Settings, storage: &Storage, net: bool) {
    let mut line = format!("bare guest ready in {} us", clock::now_us());
    if net {
        line.push_str(&format!(", serving {}:{}", settings.ip, settings.port));
    }
    if let Some(layout) = storage.layout() {
        line.push_str(&format!(
            ", boot {}, {} keys",
            layout.boots,
            storage.index().len()
        ));
    }
    if let Some(reason) = storage.refusal() {
        line.push_str(&format!(", but {reason}"));
    }
    let _ = writeln!(Console, "{line}");
}

/// The room behind the slots: first the probe's blocks, then those of loads; the second half is for tests.
fn rooms(disk: &Disk<Owner>, layout: &Superblock) -> Option<((BlockTest, Probe), DiskLoad)> {
    let first = layout.rest_offset();
    let blocks = (disk.bytes().saturating_sub(first) / BLOCK_BYTES as u64) as usize;
    let blocks = blocks.checked_sub(PROBE_BLOCKS)?;
    let loaded = blocks / 2;
    let sector = |block: usize| first / SECTOR_BYTES as u64 + (block * BLOCK_BYTES / SECTOR_BYTES) as u64;
    let load = DiskLoad::new(sector(PROBE_BLOCKS), loaded, layout.boots);
    let test = BlockTest::new(sector(PROBE_BLOCKS + loaded), blocks - loaded, layout.boots);
    Some(((test, Probe::new(sector(0), layout.boots)), load))
}

/// Reads the store from the disk, formats an empty one, and counts the boot.
fn open(disk: &mut Disk<Owner>) -> Storage {
    if disk.is_read_only() {
        return Storage::unusable("the disk is read-only".into());
    }
    if disk.bytes() < BLOCK_BYTES as u64 {
        return Storage::unusable(format!("the disk has {} bytes only", disk.bytes()));
    }
    let found = transfer(disk, Operation::Read, vec![0; BLOCK_BYTES]);
    let superblock = match found.map(|block| Superblock::decode(&block)) {
        None => return Storage::unusable("the superblock cannot be read".into()),
        Some(Err(reason)) => return Storage::unusable(reason.into()),
        Some(Ok(superblock)) => superblock.or_else(|| Superblock::plan(disk.bytes(), disk.block_bytes())),
    };
    let Some(mut layout) = superblock else {
        return Storage::unusable(format!("the disk is too small: {} bytes", disk.bytes()));
    };
    if !layout.slot_bytes.is_multiple_of(disk.block_bytes())
        || layout.slot_offset(layout.slots) > disk.bytes()
    {
        return Storage::unusable("the disk was formatted with a smaller block size or a larger size".into());
    }
    let Some(index) = load(disk, &layout) else {
        return Storage::unusable("the slots cannot be read".into());
    };
    layout.boots += 1;
    if transfer(disk, Operation::Write, layout.encode()).is_none() {
        return Storage::unusable("the superblock cannot be written".into());
    }
    Storage::on_disk(layout, index)
}

/// Reads or writes the superblock, durably. `None`: it failed.
fn transfer(disk: &mut Disk<Owner>, operation: Operation, block: Vec<u8>) -> Option<Vec<u8>> {
    let mut data = Dma::new(BLOCK_BYTES, BLOCK_BYTES);
    data.bytes_mut().copy_from_slice(&block);
    disk.submit(Request {
        operation,
        sector: 0,
        data: Some(data),
        lane: 0,
        owner: Owner::Superblock,
    });
    let finished = wait(disk);
    let read = finished.request.data.filter(|_| finished.ok)?.bytes().to_vec();
    if operation == Operation::Write && disk.needs_flush() {
        let (operation, owner) = (Operation::Flush, Owner::Superblock);
        disk.submit(Request {
            operation,
            sector: 0,
            data: None,
            lane: 0,
            owner,
        });
        if !wait(disk).ok {
            return None;
        }
    }
    Some(read)
}

/// Reads all slots. `None`: it failed.
fn load(disk: &mut Disk<Owner>, layout: &Superblock) -> Option<Index> {
    let mut index = Index::new(layout.slots);
    let slots_a_load = LOAD_BYTES / layout.slot_bytes;
    let (mut next, mut in_flight) = (0, 0);
    let mut buffers = Vec::new();
    let mut ok = true;
    while next < layout.slots || in_flight > 0 {
        while next < layout.slots && in_flight < LOADS_MAX {
            let slots = slots_a_load.min(layout.slots - next);
            let bytes = slots * layout.slot_bytes;
            let kept = buffers.pop().filter(|buffer: &Dma| buffer.len() == bytes);
            let data = Some(kept.unwrap_or_else(|| Dma::new(bytes, BLOCK_BYTES)));
            let sector = layout.slot_offset(next) / SECTOR_BYTES as u64;
            disk.submit(Request {
                operation: Operation::Read,
                sector,
                data,
                lane: 0,
                owner: Owner::Slots(next),
            });
            next += slots;
            in_flight += 1;
        }
        let finished = wait(disk);
        in_flight -= 1;
        ok &= finished.ok;
        if let (Owner::Slots(first), Some(data)) = (finished.request.owner, finished.request.data) {
            for (i, slot) in data.bytes().chunks_exact(layout.slot_bytes).enumerate() {
                index.load(first + i, slot);
            }
            buffers.push(data);
        }
    }
    ok.then_some(index)
}

/// Waits for a request, at boot, when there is nothing else to serve.
fn wait(disk: &mut Disk<Owner>) -> Finished<Owner> {
    loop {
        traps::forget_wake();
        disk.notify();
        disk.acknowledge();
        if let Some(finished) = disk.poll() {
            return finished;
        }
        // SAFETY: the gates are installed, and this stub returns at the next interrupt.
        unsafe { cpu::ring0(traps::halt_stub()) };
    }
}
