//! A device with a rate: what is over it waits in the ring, goes on without a kick,
//! and goes on so in another machine, too.

use std::time::{Duration, Instant};

use kemari_vmm::devices::Device;
use kemari_vmm::virtio::block::{Block, BlockSpec};
use kemari_vmm::virtio::net::Net;
use kemari_vmm::virtio::rate::{BucketSpec, RateSpec};

use crate::support::asker::{Asker, FLUSH, OK, READ, WRITE};
use crate::support::bench::{self, Bench, SECTOR_BYTES};
use crate::support::driver::{self, Ring};
use crate::support::watchdog::Watchdog;

/// Requests that go at once.
const BURST: u64 = 4;
/// Requests a second after that.
const PER_S: u64 = 50;
/// Requests of a ring.
const ASKED: u16 = 12;

fn operations() -> RateSpec {
    RateSpec {
        operations: Some(BucketSpec {
            per_s: PER_S,
            burst: BURST,
        }),
        ..RateSpec::default()
    }
}

/// What is asked for beyond the burst takes so long, at least.
fn least(requests: u64) -> Duration {
    Duration::from_millis(1000 * requests.saturating_sub(BURST + 1) / PER_S)
}

fn limited(bench: Bench<Block>, queues: u16, rate: RateSpec, image: &tempfile::NamedTempFile) -> Asker {
    bench.device.start_resumer().expect("a thread");
    Asker::on(bench, queues, 0, |block| {
        block.set_rate(rate);
        block.attach(bench::disk(image.path()))
    })
}

fn queues(queues: u16) -> BlockSpec {
    BlockSpec {
        queues,
        ..BlockSpec::new("rates", false)
    }
}

#[test]
fn what_is_over_the_rate_waits_and_goes_on_by_itself() {
    let _watchdog = Watchdog::new("a rate", 60);
    let image = bench::image();
    let mut disk = limited(Bench::new(Block::new(queues(1))), 1, operations(), &image);
    let begun = Instant::now();
    for slot in 0..ASKED {
        match slot % 3 {
            0 => disk.ask((0, slot), FLUSH, 0, &[]),
            _ => disk.ask((0, slot), READ, 0, &[0; SECTOR_BYTES]),
        }
    }
    disk.kick(0);
    for _ in 0..ASKED {
        assert_eq!(disk.wait(0).1, OK);
    }
    assert!(begun.elapsed() >= least(ASKED.into()), "{:?}", begun.elapsed());
    // A guest's reset fills no bucket.
    disk.bench.device.reset();
    let begun = Instant::now();
    let features = driver::agree(&*disk.bench.device, 0);
    let ring = Ring::new(&*disk.bench.device, disk.memory(), 0, 0x1_0000, 64, features);
    disk.rings = vec![ring];
    driver::go(&*disk.bench.device);
    for slot in 0..3 {
        disk.ask((0, slot), READ, 0, &[0; SECTOR_BYTES]);
    }
    disk.kick(0);
    (0..3).for_each(|_| assert_eq!(disk.wait(0).1, OK));
    assert!(
        begun.elapsed() >= Duration::from_millis(1000 / PER_S),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn bytes_are_counted_and_a_large_request_is_paid_for_by_what_follows() {
    let _watchdog = Watchdog::new("a rate of bytes", 60);
    let image = bench::image();
    let rate = RateSpec {
        bytes: Some(BucketSpec {
            per_s: 16 << 10,
            burst: 512,
        }),
        ..RateSpec::default()
    };
    let mut disk = limited(Bench::new(Block::new(queues(1))), 1, rate, &image);
    let begun = Instant::now();
    disk.ask((0, 0), WRITE, 0, &[1; 4096]);
    disk.ask((0, 1), READ, 0, &[0; SECTOR_BYTES]);
    disk.kick(0);
    assert_eq!(disk.wait(0), ((0, 0), OK));
    assert_eq!(disk.wait(0), ((0, 1), OK));
    // 4096 - 512 bytes are owed.
    assert!(
        begun.elapsed() >= Duration::from_millis(215),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn queues_take_turns_at_what_the_rate_lets_in() {
    let _watchdog = Watchdog::new("queues with a rate", 60);
    let image = bench::image();
    let mut disk = limited(Bench::new(Block::new(queues(2))), 2, operations(), &image);
    for (queue, count) in [(0, ASKED), (1, 2)] {
        for slot in 0..count {
            disk.ask((queue, slot), READ, 0, &[0; SECTOR_BYTES]);
        }
    }
    disk.kick(0);
    disk.kick(1);
    disk.wait(1);
    disk.wait(1);
    let of_the_other = std::iter::from_fn(|| disk.finished(0)).count();
    assert!(
        of_the_other < ASKED.into(),
        "the second queue had to wait for all of the first one"
    );
}

#[test]
fn output_over_the_rate_is_in_no_capture_and_goes_on_in_the_machine_that_takes_over() {
    let _watchdog = Watchdog::new("a takeover with a rate", 60);
    let image = bench::image();
    let mut disk = limited(Bench::new(Block::new(queues(1))), 1, operations(), &image);
    disk.bench.hub.hold_output(true);
    for slot in 0..ASKED {
        disk.ask((0, slot), WRITE, slot.into(), &[7; SECTOR_BYTES]);
    }
    disk.kick(0);
    assert_eq!(disk.bench.device.capture(1), BURST, "the rest is not on the list");
    let state = disk.bench.device.save();
    let other = Bench::with_memory(Block::new(queues(1)), bench::copy(disk.memory()));
    other.device.start_resumer().expect("a thread");
    let attached = other.device.with_backend(|block| {
        block.set_rate(operations());
        block.attach(bench::disk(image.path()))
    });
    attached.expect("the image fits");
    other.device.load(&state).expect("the state of an equal device");
    let begun = Instant::now();
    other.device.release_all();
    other.device.wake();
    let mut ring = disk.rings.remove(0);
    ring.memory = other.memory().clone();
    for _ in 0..ASKED {
        ring.wait_used();
    }
    // Its own bucket was full, and what was on the list is not counted again.
    let counted = u64::from(ASKED) - BURST;
    assert!(begun.elapsed() >= least(counted), "{:?}", begun.elapsed());
}

#[test]
fn a_card_transmits_no_more_than_its_rate() {
    let _watchdog = Watchdog::new("a card with a rate", 60);
    let bench = Bench::new(Net::new([2, 0, 0, 0, 0, 1], false));
    bench.device.with_backend(|net| net.set_rate(operations()));
    bench.device.start_resumer().expect("a thread");
    let features = driver::agree(&*bench.device, 0);
    let mut transmit = Ring::new(&*bench.device, bench.memory(), 1, 0x1_0000, 64, features);
    driver::go(&*bench.device);
    let begun = Instant::now();
    for slot in 0..ASKED {
        let head = transmit.request(slot, &[(0x10_0000, 100, false)]);
        transmit.offer(head);
    }
    transmit.kick(&*bench.device);
    for _ in 0..ASKED {
        transmit.wait_used();
    }
    assert!(begun.elapsed() >= least(ASKED.into()), "{:?}", begun.elapsed());
}
