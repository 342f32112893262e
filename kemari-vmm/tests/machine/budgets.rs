//! A guest that asks for more than its device holds makes itself wait, and nobody else; a guest that asks for
//! what no driver may ask loses its device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kemari_vmm::devices::Device;
use kemari_vmm::disk::{Disk, DiskConfig};
use kemari_vmm::virtio::block::{Block, BlockSpec, ZEROS_A_BYTE};
use kemari_vmm::virtio::budget::{BYTES_HELD_MAX, DEVICE_STATE_BYTES_MAX, SEGMENTS_HELD_MAX};
use kemari_vmm::virtio::rng::Rng;
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES};
use vm_memory::{Bytes, GuestAddress};

use crate::support::bench::{self, Bench, Found};
use crate::support::driver::{self, NEXT, Ring, TABLE, WRITE, needs_reset, write_register};
use crate::support::watchdog::Watchdog;

/// Where the rings lie.
const RING: u64 = 0x1_0000;
/// Where long indirect tables lie, and how far apart.
const TABLES: u64 = 0x8_0000;
const TABLE_BYTES: u64 = 0x1000;
/// A header, a status byte, and data.
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x10_0000;
const DATA_BYTES: u32 = 1 << 20;
/// Bytes of the disk: all of it zeros that were never written.
const DISK_BYTES: u64 = 64 << 20;

/// A disk with so many queues of 256 entries, output held, and its rings.
struct Rig {
    bench: Bench<Block>,
    rings: Vec<Ring>,
    _image: NamedTempFile,
}

impl Rig {
    fn new(queues: u16) -> Self {
        let image = NamedTempFile::new().expect("a temporary file");
        image.as_file().set_len(DISK_BYTES).expect("a sparse file");
        let bench = Bench::new(Block::new(Self::spec(queues)));
        let disk = Disk::open(&DiskConfig::new(image.path())).expect("the image opens");
        let attached = bench.device.with_backend(|block| block.attach(disk));
        attached.expect("the image has blocks");
        let features = driver::agree(&*bench.device, 0);
        let rings = (0..u32::from(queues)).map(|queue| {
            let base = RING + 0x8000 * u64::from(queue);
            Ring::new(&*bench.device, bench.memory(), queue, base, 256, features)
        });
        let rings = rings.collect();
        driver::go(&*bench.device);
        bench.hub.hold_output(true);
        let write = [1u64.to_le_bytes(), 0u64.to_le_bytes()].concat();
        let put = bench.memory().write_slice(&write, GuestAddress(HEADER));
        put.expect("inside the memory");
        Self {
            bench,
            rings,
            _image: image,
        }
    }

    fn spec(queues: u16) -> BlockSpec {
        BlockSpec {
            queues,
            ..BlockSpec::new("budgets", false)
        }
    }

    /// Makes a request available whose table, number `table`, names these buffers after the header,
    /// and then the status.
    fn offer(&mut self, queue: usize, head: u16, table: u64, buffers: &[(u64, u32)]) {
        self.offer_as(queue, head, table, buffers, NEXT);
    }

    /// The same, with flags of the buffers' descriptors.
    fn offer_as(&mut self, queue: usize, head: u16, table: u64, buffers: &[(u64, u32)], flags: u16) {
        let ring = &mut self.rings[queue];
        let at = TABLES + TABLE_BYTES * table;
        let data = buffers.iter().map(|&(address, length)| (address, length, flags));
        let mut count = 0;
        for (address, length, flags) in [(HEADER, 16, NEXT)].into_iter().chain(data) {
            ring.descriptor_at(at + 16 * u64::from(count), address, length, flags, count + 1);
            count += 1;
        }
        ring.descriptor_at(at + 16 * u64::from(count), STATUS, 1, WRITE, 0);
        ring.descriptor(head, at, 16 * (u32::from(count) + 1), TABLE, 0);
        ring.offer(head);
    }

    fn kick(&self, queue: usize) {
        self.rings[queue].kick_always(&*self.bench.device);
    }

    /// Captures and releases until so many requests are finished in each queue. Returns the most outputs that
    /// one capture had.
    fn finish(&mut self, expected: &[usize]) -> u64 {
        let device = self.bench.device.clone();
        let mut used = vec![0; self.rings.len()];
        let (mut epoch, mut most) = (0, 0);
        while used != expected {
            epoch += 1;
            most = most.max(device.capture(epoch));
            device.release(epoch);
            for (count, ring) in used.iter_mut().zip(&mut self.rings) {
                *count += std::iter::from_fn(|| ring.used()).count();
            }
            std::thread::yield_now();
        }
        most
    }
}

/// One of them held its vCPU for 0.6 s.
#[test]
fn a_chain_longer_than_its_queue_breaks_the_device() {
    let _watchdog = Watchdog::new("chains that are too long", 60);
    for (descriptors, is_broken) in [(254, false), (255, true), (20_000, true)] {
        let mut rig = Rig::new(1);
        let memory = rig.bench.memory().clone();
        // Empty ones, behind the header and before the status.
        let table = [0u64.to_le_bytes(), (u64::from(NEXT) << 32).to_le_bytes()].concat();
        let put = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).unwrap();
        for number in 0..descriptors + 2u64 {
            let mut entry = table.clone();
            entry[14..].copy_from_slice(&(number as u16 + 1).to_le_bytes());
            put(DATA + 16 * number, &entry);
        }
        let ring = &mut rig.rings[0];
        ring.descriptor_at(DATA, HEADER, 16, NEXT, 1);
        ring.descriptor_at(DATA + 16 * (descriptors + 1), STATUS, 1, WRITE, 0);
        ring.descriptor(0, DATA, 16 * (descriptors as u32 + 2), TABLE, 0);
        ring.offer(0);
        rig.kick(0);
        assert_eq!(needs_reset(&*rig.bench.device), is_broken, "{descriptors}");
        if !is_broken {
            // Nothing but header and status is left of it.
            assert_eq!(rig.finish(&[1]), 1);
        }
    }
}

/// 64 of them took both hosts to 3.2 GB.
#[test]
fn data_beyond_the_budget_waits_in_the_ring_and_is_picked_up_without_a_kick() {
    let _watchdog = Watchdog::new("data beyond the budget", 60);
    let mut rig = Rig::new(2);
    let buffers = [(DATA, DATA_BYTES); 4];
    let at_a_time = BYTES_HELD_MAX / (4 * u64::from(DATA_BYTES));
    for head in 0..20 {
        rig.offer(0, head, 0, &buffers);
        rig.offer(1, head, 0, &buffers);
    }
    rig.kick(0);
    rig.kick(1);
    assert_eq!(rig.finish(&[20, 20]), at_a_time);
    assert!(!needs_reset(&*rig.bench.device) && !rig.bench.device.output_held());
}

/// 256 of them, on storage that knows no order for zeros, took a guest's reset of its disk 4 s; and what
/// looked like a disk that hangs made its host give the VM away.
#[test]
fn zeros_beyond_the_budget_wait_in_the_ring() {
    let _watchdog = Watchdog::new("zeros beyond the budget", 60);
    let at_a_time = BYTES_HELD_MAX * ZEROS_A_BYTE / DISK_BYTES;
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        let mut rig = Rig::new(1);
        let range = [0u64.to_le_bytes(), (DISK_BYTES / 512).to_le_bytes()].concat();
        let memory = rig.bench.memory().clone();
        memory.write_obj(u64::from(kind), GuestAddress(HEADER)).unwrap();
        memory.write_slice(&range, GuestAddress(DATA)).unwrap();
        for head in 0..10 {
            rig.offer(0, head, 0, &[(DATA, 16)]);
        }
        rig.kick(0);
        assert_eq!(rig.finish(&[10]), at_a_time, "{kind}");
        assert!(!needs_reset(&*rig.bench.device) && !rig.bench.device.output_held());
    }
}

/// More data than a disk holds at a time is refused, as an error of the disk.
#[test]
fn a_request_that_no_budget_has_room_for_is_refused() {
    let _watchdog = Watchdog::new("a request beyond the budget", 60);
    let mut rig = Rig::new(1);
    let buffers = [(DATA, DATA_BYTES); 17];
    rig.offer(0, 0, 0, &buffers);
    rig.kick(0);
    assert!(rig.rings[0].used().is_some(), "answered at once");
    let status: u8 = rig.bench.memory().read_obj(GuestAddress(STATUS)).unwrap();
    assert_eq!(status, 1);
}

/// What was left of the status's own buffer was counted as one more.
#[test]
fn a_request_has_as_many_buffers_as_are_offered() {
    let _watchdog = Watchdog::new("requests of 254 buffers", 60);
    let mut rig = Rig::new(1);
    rig.bench.hub.hold_output(false);
    let buffers = [(DATA, 512); 254];
    let bytes = 254 * 512;
    for (kind, flags, written) in [(1u64, NEXT, 1), (0, NEXT | WRITE, bytes + 1)] {
        let memory = rig.bench.memory();
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        rig.offer_as(0, kind as u16, 0, &buffers, flags);
        rig.kick(0);
        assert_eq!(rig.rings[0].wait_used(), (kind as u16, written));
        let status: u8 = rig.bench.memory().read_obj(GuestAddress(STATUS)).unwrap();
        assert_eq!(status, 0);
    }
}

/// Output that came into the list when there was room again, on a thread of the disk, asks for a sync.
#[test]
fn output_that_waited_for_room_is_told_to_the_taps() {
    let _watchdog = Watchdog::new("output that waited", 60);
    let mut rig = Rig::new(1);
    let device = rig.bench.device.clone();
    let found = Found::by(&*device);
    for head in 0..8 {
        rig.offer(0, head, 0, &[(DATA, DATA_BYTES); 4]);
    }
    rig.kick(0);
    device.capture(1);
    assert!(!device.output_held() && found.count() == 0);
    device.release(1);
    while found.count() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(device.output_held());
}

/// Every queue full of the largest requests: what is held is bounded, it loads elsewhere,
/// and all of it is finished.
#[test]
fn the_largest_state_loads() {
    let _watchdog = Watchdog::new("the largest state", 120);
    let mut rig = Rig::new(8);
    // As much as a chain can name, in many small pieces of whole sectors.
    let buffers = [(DATA, 512u32); 254];
    for head in 0..100 {
        for queue in 0..8 {
            rig.offer(queue, head, 0, &buffers);
        }
    }
    (0..8).for_each(|queue| rig.kick(queue));
    let state = rig.bench.device.save();
    let pieces = SEGMENTS_HELD_MAX - SEGMENTS_HELD_MAX % 254;
    assert!(state.bytes.len() > 5 * pieces, "{} bytes", state.bytes.len());
    assert!(state.bytes.len() <= DEVICE_STATE_BYTES_MAX);
    let memory = bench::copy(rig.bench.memory());
    let twin = Bench::with_memory(Block::new(Rig::spec(8)), memory);
    twin.device.load(&state).expect("the largest state loads");
    assert!(twin.device.save() == state);
    assert_eq!(rig.finish(&[100; 8]), pieces as u64 / 254);
}

#[test]
fn a_reset_ends_while_another_vcpu_refills_the_ring() {
    let _watchdog = Watchdog::new("a reset against a refill", 60);
    let mut rig = Rig::new(1);
    rig.bench.hub.hold_output(false);
    let read = [0u64.to_le_bytes(), 0u64.to_le_bytes()].concat();
    let put = rig.bench.memory().write_slice(&read, GuestAddress(HEADER));
    put.expect("inside the memory");
    let device = rig.bench.device.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, mut ring) = (stop.clone(), rig.rings.remove(0));
    let other = std::thread::spawn(move || {
        let head = |slot| ring_read(&ring, slot);
        let heads: Vec<u16> = (0..32).map(head).collect();
        heads.iter().for_each(|head| ring.offer(*head));
        while !stopped.load(Ordering::SeqCst) {
            while let Some((head, _)) = ring.used() {
                ring.offer(head);
            }
            ring.kick_always(&*device);
        }
    });
    std::thread::sleep(Duration::from_millis(50));
    write_register(&*rig.bench.device, driver::regs::STATUS, 0);
    stop.store(true, Ordering::SeqCst);
    other.join().expect("the other vCPU ends");
}

fn ring_read(ring: &Ring, slot: u16) -> u16 {
    let buffers = [(HEADER, 16, false), (DATA, 65_536, true), (STATUS, 1, true)];
    ring.request(slot, &buffers)
}

#[test]
fn a_reset_of_one_queue_drops_nothing_of_another() {
    let _watchdog = Watchdog::new("a reset of one queue", 60);
    let mut rig = Rig::new(2);
    rig.offer(1, 0, 0, &[(DATA, 512)]);
    rig.kick(1);
    assert!(rig.bench.device.output_held());
    write_register(&*rig.bench.device, driver::regs::QUEUE_SEL, 0);
    write_register(&*rig.bench.device, driver::regs::QUEUE_READY, 0);
    assert!(rig.bench.device.output_held());
    rig.finish(&[0, 1]);
}

/// A machine with such a queue could never be protected: its state was refused for ever.
#[test]
fn a_queue_outside_the_memory_is_never_ready_and_its_state_loads() {
    let bench = Bench::new(Rng);
    driver::agree(&*bench.device, 0);
    write_register(&*bench.device, driver::regs::QUEUE_DESC + 4, 0x7fff_ffff);
    write_register(&*bench.device, driver::regs::QUEUE_READY, 1);
    assert!(needs_reset(&*bench.device));
    assert_eq!(
        driver::read_register(&*bench.device, driver::regs::QUEUE_READY),
        0
    );
    let state = bench.device.save();
    Bench::new(Rng).device.load(&state).expect("what is saved loads");
    driver::agree(&*bench.device, 0);
    assert!(!needs_reset(&*bench.device), "a reset mends it");
}

#[test]
fn entropy_is_given_in_small_pieces_only() {
    let bench = Bench::new(Rng);
    let features = driver::agree(&*bench.device, 0);
    let mut ring = Ring::new(&*bench.device, bench.memory(), 0, RING, 64, features);
    driver::go(&*bench.device);
    let head = ring.request(0, &[(DATA, DATA_BYTES, true)]);
    ring.offer(head);
    ring.kick(&*bench.device);
    assert_eq!(ring.used(), Some((head, 4096)));
}
