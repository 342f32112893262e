//! An image that is closed under its device: another host is about to have it.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kemari_vmm::devices::Device;
use kemari_vmm::disk::{Disk, OnError, Server};
use kemari_vmm::virtio::block::BlockSpec;

use crate::support::asker::{Asker, OK, WRITE};
use crate::support::stores::Gated;
use crate::support::watchdog::Watchdog;

const A_WHILE: Duration = Duration::from_millis(20);

fn scene() -> (Arc<Gated>, Asker, Arc<Server>) {
    let store = Gated::new(1 << 16);
    let image = Disk::with_store(store.clone(), OnError::Pause).expect("it has a size");
    let disk = Asker::new(BlockSpec::new("closed", false), image);
    let server = disk
        .bench
        .device
        .with_backend(|block| block.server().expect("it is attached").clone());
    (store, disk, server)
}

#[test]
fn a_closed_image_has_what_was_under_way_and_nothing_begins_any_more() {
    let _watchdog = Watchdog::new("a disk that is closed", 60);
    let (store, mut disk, server) = scene();
    store.fail(9, Some(libc::EIO));
    disk.ask((0, 0), WRITE, 9, &[9; 512]);
    disk.kick(0);
    while !server.has_failed() {
        thread::yield_now();
    }
    store.fail(9, None);
    store.set_closed(true);
    // The second one waits for the first.
    disk.ask((0, 1), WRITE, 4, &[1; 512]);
    disk.ask((0, 2), WRITE, 4, &[2; 512]);
    disk.kick(0);
    while store.begun().len() < 2 {
        thread::yield_now();
    }
    let closing = thread::spawn({
        let server = server.clone();
        move || server.close()
    });
    thread::sleep(A_WHILE);
    assert!(!closing.is_finished(), "something is under way");
    store.set_closed(false);
    closing
        .join()
        .expect("it does not panic")
        .expect("all is written");
    assert_eq!(disk.wait(0), ((0, 1), OK));
    disk.ask((0, 3), WRITE, 5, &[3; 512]);
    disk.kick(0);
    server.retry();
    assert!(server.flush().is_err());
    thread::sleep(A_WHILE);
    assert_eq!(store.begun(), ["write 9", "write 4", "flush"]);
    assert_eq!((store.sector(9), store.sector(4), store.sector(5)), (0, 1, 0));
}

#[test]
fn an_image_is_not_closed_while_the_page_cache_may_yet_be_written() {
    let _watchdog = Watchdog::new("a disk that cannot be closed", 60);
    let (store, mut disk, server) = scene();
    assert_eq!(disk.do_one(WRITE, 4, &[1; 512]), OK);
    store.fail_flushes(true);
    assert!(server.close().is_err());
}

#[test]
fn a_drain_waits_for_what_has_begun_and_makes_it_durable() {
    let _watchdog = Watchdog::new("a disk that is drained", 60);
    let (store, mut disk, _server) = scene();
    store.set_closed(true);
    disk.ask((0, 0), WRITE, 4, &[1; 512]);
    disk.kick(0);
    while store.begun().is_empty() {
        thread::yield_now();
    }
    let device = disk.bench.device.clone();
    assert!(device.oldest_unfinished().is_some(), "it waits for the disk");
    let draining = thread::spawn(move || device.drain());
    thread::sleep(A_WHILE);
    assert!(!draining.is_finished(), "something is under way");
    assert_eq!(store.begun(), ["write 4"], "what is not written is not flushed");
    store.set_closed(false);
    draining.join().expect("it does not panic");
    assert_eq!(store.begun(), ["write 4", "flush"]);
    assert_eq!(store.sector(4), 1);
}
