//! What overlaps goes in the order in which it was asked for, over all queues; the rest goes side by side.

use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::devices::Device;
use kemari_vmm::disk::{Disk, OnError};
use kemari_vmm::virtio::block::BlockSpec;

use crate::support::asker::{Asker, DISCARD, FLUSH, OK, READ, WRITE};
use crate::support::stores::Gated;
use crate::support::watchdog::Watchdog;

const A_WHILE: Duration = Duration::from_millis(20);

fn wait_for(store: &Gated, begun: &[&str]) {
    let begin = Instant::now();
    while store.begun().len() < begun.len() && begin.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(A_WHILE);
    let mut found = store.begun();
    found.sort();
    let mut expected: Vec<_> = begun.iter().map(|text| (*text).to_owned()).collect();
    expected.sort();
    assert_eq!(found, expected);
}

fn gated(queues: u16) -> (std::sync::Arc<Gated>, Asker) {
    let store = Gated::new(1 << 16);
    let disk = Disk::with_store(store.clone(), OnError::Report).expect("it has a size");
    let spec = BlockSpec {
        queues,
        ..BlockSpec::new("gated", false)
    };
    (store, Asker::new(spec, disk))
}

#[test]
fn what_overlaps_waits_over_all_queues_and_the_rest_does_not() {
    let _watchdog = Watchdog::new("overlapping requests", 60);
    let (store, mut disk) = gated(2);
    store.set_closed(true);
    disk.ask((0, 0), WRITE, 4, &[1; 2048]);
    disk.kick(0);
    disk.ask((1, 0), WRITE, 7, &[2; 1024]);
    disk.kick(1);
    disk.ask((0, 1), READ, 8, &[0; 512]);
    disk.ask((0, 2), WRITE, 20, &[3; 512]);
    disk.ask((0, 3), FLUSH, 0, &[]);
    disk.kick(0);
    disk.ask_zero((1, 1), DISCARD, 8, 1, 0);
    disk.kick(1);
    wait_for(&store, &["write 4", "write 20", "flush"]);
    assert_eq!(
        disk.wait(0),
        ((0, 3), OK),
        "a flush waits for nothing that came before it and is not finished"
    );
    store.pass(20);
    assert_eq!(
        disk.wait(0),
        ((0, 2), OK),
        "it is finished before those that were asked for earlier"
    );
    store.pass(4);
    assert_eq!(disk.wait(0), ((0, 0), OK));
    wait_for(&store, &["write 4", "write 20", "flush", "write 7"]);
    store.pass(7);
    assert_eq!(disk.wait(1), ((1, 0), OK));
    // The read sees the write before it, and the discard waits for the read.
    wait_for(&store, &["write 4", "write 20", "flush", "write 7", "read 8"]);
    store.set_closed(false);
    assert_eq!(disk.wait(0), ((0, 1), OK));
    assert_eq!(disk.data((0, 1), 512), [2; 512]);
    assert_eq!(disk.wait(1), ((1, 1), OK));
    assert_eq!((store.sector(7), store.sector(8)), (2, 0));
}

/// If the second of two overlapping writes could be on the disk, and off the list, while the first is still
/// on the list, a takeover would do the first one again over the second.
#[test]
fn a_later_write_begins_when_the_earlier_one_is_off_the_list() {
    let _watchdog = Watchdog::new("overlapping writes and a capture", 60);
    let (store, mut disk) = gated(1);
    store.set_closed(true);
    disk.ask((0, 0), WRITE, 4, &[1; 512]);
    disk.ask((0, 1), WRITE, 4, &[2; 512]);
    disk.kick(0);
    wait_for(&store, &["write 4"]);
    {
        // While a capture lasts, nothing comes off the list.
        let _freeze = disk.bench.hub.freeze();
        store.set_closed(false);
        thread::sleep(A_WHILE);
        assert_eq!(
            store.begun(),
            ["write 4"],
            "the second write has begun during the capture"
        );
        assert_eq!(store.sector(4), 1);
    }
    assert_eq!(disk.wait(0), ((0, 0), OK));
    assert_eq!(disk.wait(0), ((0, 1), OK));
    assert_eq!(store.sector(4), 2);
}

#[test]
fn a_read_passes_a_held_write_and_not_a_released_one() {
    let _watchdog = Watchdog::new("reads past held writes", 60);
    let (store, mut disk) = gated(1);
    let device = disk.bench.device.clone();
    disk.bench.hub.hold_output(true);
    disk.ask((0, 0), WRITE, 4, &[1; 512]);
    disk.ask((0, 1), READ, 4, &[0xee; 512]);
    disk.kick(0);
    assert_eq!(disk.wait(0), ((0, 1), OK));
    assert_eq!(disk.data((0, 1), 512), [0; 512]);
    store.set_closed(true);
    device.capture(1);
    device.release(1);
    disk.ask((0, 2), READ, 4, &[0xee; 512]);
    disk.kick(0);
    wait_for(&store, &["read 4", "write 4"]);
    store.set_closed(false);
    assert_eq!(disk.wait(0), ((0, 0), OK));
    assert_eq!(disk.wait(0), ((0, 2), OK));
    assert_eq!(disk.data((0, 2), 512), [1; 512]);
}

/// While one thread opens the gate of all devices, a guest may already ask again.
#[test]
fn output_does_not_overtake_output_that_waits() {
    let _watchdog = Watchdog::new("output behind held output", 60);
    let (store, mut disk) = gated(1);
    disk.bench.hub.hold_output(true);
    disk.ask((0, 0), WRITE, 4, &[1; 512]);
    disk.kick(0);
    disk.bench.hub.hold_output(false);
    disk.ask((0, 1), WRITE, 4, &[2; 512]);
    disk.kick(0);
    thread::sleep(A_WHILE);
    assert!(
        store.begun().is_empty(),
        "the second write went before the first one"
    );
    disk.bench.device.release_all();
    assert_eq!(disk.wait(0), ((0, 0), OK));
    assert_eq!(disk.wait(0), ((0, 1), OK));
    assert_eq!(store.sector(4), 2);
}
