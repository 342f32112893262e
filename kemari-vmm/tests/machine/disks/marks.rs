//! What a disk writes into the guest's memory is marked dirty:
//! a memory that follows the marks equals the guest's.

use kemari_vmm::devices::Device;
use kemari_vmm::disk::{Disk, OnError};
use kemari_vmm::memory::{Memory, PAGE_BYTES};
use kemari_vmm::virtio::block::BlockSpec;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{WAYS, open};
use crate::support::asker::{Asker, OK, QUEUE_SLOTS, READ, WRITE};
use crate::support::bench::{self, SECTORS};
use crate::support::pair::first_difference;
use crate::support::random::Random;
use crate::support::stores::Gated;
use crate::support::watchdog::Watchdog;

/// Copies marked pages, and takes the marks away; returns how many there were.
fn follow(from: &Memory, to: &Memory) -> usize {
    let region = from.iter().next().expect("one region");
    let mut pages = Vec::new();
    (**region).bitmap().take(|page| pages.push(page as u64));
    for page in &pages {
        let at = GuestAddress(page * PAGE_BYTES as u64);
        let mut bytes = [0; PAGE_BYTES];
        from.read_slice(&mut bytes, at).expect("a page");
        to.write_slice(&bytes, at).expect("a page");
    }
    pages.len()
}

#[test]
fn the_pages_of_a_read_are_dirty_when_it_has_ended() {
    let _watchdog = Watchdog::new("pages of reads", 60);
    for (number, way) in WAYS.into_iter().enumerate() {
        let mut random = Random::new(81 + number as u64);
        let image = bench::image();
        let bytes: Vec<u8> = (0..SECTORS as usize * 512).map(|_| random.next() as u8).collect();
        std::fs::write(image.path(), bytes).expect("the image");
        let mut disk = Asker::new(BlockSpec::new("marks", false), open(image.path(), way));
        let shadow = bench::memory();
        for round in 0..200 {
            let slots = 1 + random.below(u64::from(QUEUE_SLOTS) - 1) as u16;
            for slot in 0..slots {
                let sectors = 1 + random.below(8);
                let first = random.below(SECTORS - sectors);
                disk.ask((0, slot), READ, first, &vec![0; sectors as usize * 512]);
            }
            // What the driver itself wrote is the guest's, which KVM would log.
            follow(disk.memory(), &shadow);
            disk.kick(0);
            for _ in 0..slots {
                assert_eq!(disk.wait(0).1, OK);
            }
            let marked = follow(disk.memory(), &shadow);
            assert_eq!(
                first_difference(disk.memory(), &shadow),
                None,
                "round {round} {way:?}"
            );
            assert!(
                marked <= 4 * usize::from(slots) + 2,
                "{marked} pages for {slots} reads"
            );
        }
    }
}

/// A part may have come before it failed.
#[test]
fn the_pages_of_a_read_that_fails_are_dirty_too() {
    let store = Gated::new(1 << 16);
    let image = Disk::with_store(store.clone(), OnError::Report).expect("it has a size");
    let mut disk = Asker::new(BlockSpec::new("marks", false), image);
    store.fail(8, Some(libc::EIO));
    disk.ask((0, 0), READ, 8, &[0; 4096]);
    follow(disk.memory(), &bench::memory());
    disk.kick(0);
    disk.wait(0);
    let page = Asker::data_at((0, 0)) / PAGE_BYTES as u64;
    let region = disk.memory().iter().next().expect("one region");
    let mut pages = Vec::new();
    (**region).bitmap().take(|found| pages.push(found as u64));
    assert!(pages.contains(&page));
}

/// A read that is under way at a capture is on the list: whoever goes on carries it out again.
#[test]
fn a_read_under_way_at_a_capture_is_done_again() {
    let _watchdog = Watchdog::new("a read at a capture", 60);
    let store = Gated::new(1 << 16);
    let image = Disk::with_store(store.clone(), OnError::Report).expect("it has a size");
    let mut disk = Asker::new(BlockSpec::new("marks", false), image);
    assert_eq!(disk.do_one(WRITE, 8, &[5; 4096]), OK);
    store.set_closed(true);
    disk.ask((0, 1), READ, 8, &[0xee; 4096]);
    disk.kick(0);
    let (state, memory) = {
        let _freeze = disk.bench.hub.freeze();
        disk.bench.device.capture(1);
        let memory = bench::memory();
        follow(disk.memory(), &memory);
        (disk.bench.device.save(), memory)
    };
    store.set_closed(false);
    let bench = bench::Bench::with_memory(
        kemari_vmm::virtio::block::Block::new(BlockSpec::new("marks", false)),
        memory,
    );
    bench.device.load(&state).expect("an equal disk");
    let mut rings = disk.rings.clone();
    rings[0].memory = bench.memory().clone();
    let mut other = Asker { bench, rings };
    let image = Disk::with_store(store, OnError::Report).expect("it has a size");
    other
        .bench
        .device
        .with_backend(|block| block.attach(image))
        .expect("it has room");
    other.bench.device.release_all();
    assert_eq!(other.wait(0), ((0, 1), OK));
    assert_eq!(other.data((0, 1), 4096), [5; 4096]);
}
