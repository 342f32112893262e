//! Rings survive their re-attachment in another machine, under load, again and again.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::machine::Machine;

use crate::support::network::GUEST;
use crate::support::pair::{Pair, sync};
use crate::support::random::Random;
use crate::support::resp::{Client, Load};
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

/// The machine dies at some moment around a sync.
fn die(mut pair: Pair<'_>, random: &mut Random) -> Machine {
    let some_time = Duration::from_micros(random.below(3000));
    match random.below(4) {
        // Between syncs: what it did since the last one is rolled back.
        0 => thread::sleep(some_time),
        // Captured and committed, nothing released.
        1 => {
            let captured = pair.capture();
            pair.commit(&captured);
        }
        // The same, and it ran on with its output held.
        2 => {
            let captured = pair.capture();
            pair.commit(&captured);
            pair.machine.resume();
            thread::sleep(some_time);
        }
        // Captured, never committed.
        _ => {
            pair.capture();
            pair.machine.resume();
            thread::sleep(some_time);
        }
    }
    pair.take_over()
}

/// Tests of the disk, which are counted, until stopped.
fn disk_tests(stop: Arc<AtomicBool>, tests: Arc<AtomicU64>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut client = Client::connect();
        while !stop.load(Ordering::SeqCst) {
            client.ok("BLKTEST 300 32");
            client.ok("CHECK");
            tests.fetch_add(1, Ordering::SeqCst);
        }
    })
}

fn goes_on_again_and_again(cmdline: &str, seed: u64, takeovers: usize, flood: bool) {
    let mut random = Random::new(seed);
    let rig = Rig::new(cmdline, 64);
    let mut machine = rig.running();
    if flood {
        pass_65535();
    }
    let load = Load::start(4);
    let stop = Arc::new(AtomicBool::new(false));
    let tests = Arc::new(AtomicU64::new(0));
    let disk = disk_tests(stop.clone(), tests.clone());
    // As many at least, and until a test of the disk has gone through some: a busy machine takes its time.
    let mut done = 0;
    while done < takeovers || tests.load(Ordering::SeqCst) == 0 {
        done += 1;
        let mut pair = Pair::protect(&rig, machine);
        for _ in 0..5 + random.below(40) {
            sync(&mut pair, &mut random);
        }
        assert!(
            load.is_well() && !disk.is_finished(),
            "a client failed (seed {seed})"
        );
        machine = die(pair, &mut random);
        machine.resume();
        // Unprotected for a while.
        thread::sleep(Duration::from_micros(random.below(3000)));
    }
    stop.store(true, Ordering::SeqCst);
    disk.join().expect("the tests of the disk go well");
    let values = load.stop();
    let mut client = Client::connect();
    client.ok("BLKTEST 500 32");
    client.ok("CHECK");
    assert!(
        !flood || client.info("blk_used") < 63_000,
        "the disk's indexes have wrapped"
    );
    assert!(values > takeovers as u64, "{values} values");
    let tests = tests.load(Ordering::SeqCst);
    eprintln!(
        "{cmdline:?}: {done} takeovers, {tests} tests of the disk, {values} values; rx {}, tx {}, blk \
         {}",
        client.info("net_rx_avail"),
        client.info("net_tx_avail"),
        client.info("blk_avail")
    );
}

/// Brings the indexes of the guest's network queues past 65,535 and those of its disk close to it, so that
/// these wrap during the takeovers. Packets to a port where nobody listens are answered, each by one.
fn pass_65535() {
    let mut client = Client::connect();
    let socket = UdpSocket::bind("10.77.0.1:0").expect("the TAP's address");
    let begin = Instant::now();
    for key in ["net_rx_used", "net_tx_used"] {
        let (mut last, mut index) = (0, client.info(key));
        while index >= last {
            for _ in 0..64 {
                // Packets beyond what the TAP keeps are lost, or refused because of the answers.
                let _ = socket.send_to(b"?", (GUEST.0, 9));
            }
            assert!(begin.elapsed() < Duration::from_secs(40), "{key} is only {index}");
            (last, index) = (index, client.info(key));
        }
    }
    while client.info("blk_used") < 63_000 {
        client.ok("BLKTEST 500 32");
    }
}

#[test]
fn rings_survive_with_event_index_and_indirect_tables_past_index_65535() {
    let _watchdog = Watchdog::new("rings survive", 120);
    goes_on_again_and_again("event_idx=on indirect=on", 11, 15, true);
}

#[test]
fn rings_survive_with_event_index() {
    let _watchdog = Watchdog::new("rings survive", 120);
    goes_on_again_and_again("event_idx=on indirect=off", 12, 15, false);
}

#[test]
fn rings_survive_with_indirect_tables() {
    let _watchdog = Watchdog::new("rings survive", 120);
    goes_on_again_and_again("event_idx=off indirect=on", 13, 15, false);
}

#[test]
fn rings_survive_without_either() {
    let _watchdog = Watchdog::new("rings survive", 120);
    goes_on_again_and_again("event_idx=off indirect=off", 14, 15, false);
}
