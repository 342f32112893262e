//! Taps on a running machine: they come and go, and count what the guest counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use kemari_vmm::event::{Direction, Event, EventChannel, Interest, MeasuringTap, Tap};
use kemari_vmm::machine::Machine;

use crate::support::resp::{Client, Load};
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

const TIMES: usize = 1_000;

#[derive(Default)]
struct Counter {
    events: AtomicU64,
    wrong: AtomicU64,
}

impl Tap for Counter {
    fn event(&self, event: &Event<'_>) {
        self.events.fetch_add(1, Ordering::SeqCst);
        if event.channel != "test"
            || event.direction != Direction::Out
            || event.output_held
            || !event.notified
        {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn channel(machine: &Machine, name: &str) -> Arc<EventChannel> {
    machine
        .channels()
        .into_iter()
        .find(|channel| channel.name() == name)
        .expect("every machine has it")
}

#[test]
fn taps_come_and_go_while_the_guest_kicks() {
    let _watchdog = Watchdog::new("taps", 120);
    let rig = Rig::new("", 64);
    let machine = rig.running();
    let test = channel(&machine, "test");
    let names: Vec<String> = machine
        .channels()
        .iter()
        .map(|channel| channel.name().to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "console",
            "power",
            "test",
            "blk0",
            "net0.rx",
            "net0.tx",
            "net0.ctrl",
            "rng0"
        ]
    );

    let steady = Arc::new(Counter::default());
    let whole = MeasuringTap::new();
    test.attach(Interest::Out, steady.clone())
        .expect("room for a tap");
    test.attach(Interest::Both, whole.clone())
        .expect("room for a tap");
    let kicks = thread::spawn(|| {
        let mut client = Client::connect();
        (0..4).map(|_| kicks_in(&client.ask("KICKLOOP 1 1"))).sum::<u64>()
    });
    let mut seen_by_passing = 0;
    for _ in 0..TIMES {
        let passing = Arc::new(Counter::default());
        let id = test
            .attach(Interest::Out, passing.clone())
            .expect("room for a tap");
        thread::sleep(Duration::from_micros(500));
        assert!(test.detach(id) && !test.detach(id));
        let seen = passing.events.load(Ordering::SeqCst);
        seen_by_passing += seen;
        assert_eq!(passing.wrong.load(Ordering::SeqCst), 0);
        assert_eq!(
            passing.events.load(Ordering::SeqCst),
            seen,
            "a detached tap is not called"
        );
    }
    let kicked = kicks.join().expect("the guest answers");
    assert_eq!(
        steady.events.load(Ordering::SeqCst),
        kicked,
        "the tap counts what the guest counts"
    );
    assert_eq!(whole.histogram(Direction::Out).count, kicked);
    assert_eq!(
        whole.histogram(Direction::Out).buckets.iter().sum::<u64>(),
        kicked - 1
    );
    assert_eq!(whole.histogram(Direction::In).count, 0);
    assert!(
        seen_by_passing > TIMES as u64 / 2 && seen_by_passing <= kicked,
        "{seen_by_passing} of {kicked}"
    );
}

fn kicks_in(report: &str) -> u64 {
    let count = report
        .lines()
        .find_map(|line| line.strip_prefix("kicks:")?.parse().ok());
    count.unwrap_or_else(|| panic!("no report: {report}"))
}

/// A notification covers one request or several; the guest counts requests.
#[test]
fn measuring_taps_agree_with_the_counters_of_the_guest() {
    let _watchdog = Watchdog::new("measuring taps", 120);
    let rig = Rig::new("event_idx=off", 64);
    let machine = rig.running();
    let mut client = Client::connect();
    // Quiet: nothing is under way when the taps are attached.
    thread::sleep(Duration::from_millis(100));
    let before = [
        "net_tx_avail",
        "net_tx_used",
        "blk_avail",
        "blk_used",
        "irqs",
        "ticks",
    ]
    .map(|key| client.info(key));
    let taps = ["net0.tx", "blk0", "net0.rx"].map(|name| {
        let tap = MeasuringTap::new();
        channel(&machine, name)
            .attach(Interest::Both, tap.clone())
            .expect("room for a tap");
        tap
    });
    let load = Load::start(2);
    client.ok("BLKTEST 300 8");
    thread::sleep(Duration::from_millis(300));
    load.stop();
    thread::sleep(Duration::from_millis(100));
    let after = [
        "net_tx_avail",
        "net_tx_used",
        "blk_avail",
        "blk_used",
        "irqs",
        "ticks",
    ]
    .map(|key| client.info(key));
    let [tx_offered, _, blk_offered, blk_used, irqs, ticks] =
        std::array::from_fn(|i| after[i].wrapping_sub(before[i]));
    let counts = taps.map(|tap| {
        (
            tap.histogram(Direction::Out).count,
            tap.histogram(Direction::In).count,
        )
    });
    eprintln!(
        "(OUT, IN) net0.tx, blk0, net0.rx: {counts:?}; guest: {tx_offered} packets, {blk_offered} requests, \
         {blk_used} finished, {irqs} interrupts of which {ticks} ticks"
    );
    let [(tx_out, tx_in), (blk_out, blk_in), (_, rx_in)] = counts;
    // The answer to INFO itself leaves between the looks: a few more at the taps.
    const SLACK: u64 = 16;
    assert!(tx_out > 0 && tx_out <= tx_offered + SLACK);
    assert!(blk_out > 0 && blk_out <= blk_offered + SLACK);
    assert!(blk_in > 0 && blk_in <= blk_used + SLACK);
    assert!(
        irqs - ticks <= tx_in + blk_in + rx_in + SLACK,
        "no interrupt without an IN event"
    );
}
