//! Machines with more than one vCPU, and with more memory than lies below the hole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use kemari_vmm::arch::layout::HIGH_MEMORY_START;
use kemari_vmm::memory::PAGE_BYTES;

use crate::support::pair::{Pair, sync};
use crate::support::random::Random;
use crate::support::resp::{Client, Load};
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

/// Takeovers of a machine with several vCPUs, and the least number of syncs before each.
const TAKEOVERS: usize = 6;
const SYNCS: u64 = 40;

/// The vCPUs check in each round that memory and all registers are of one moment.
fn vcpus_go_on_together(vcpus: u8, seed: u64) {
    let _watchdog = Watchdog::new("large machines", 120);
    let mut random = Random::new(seed);
    let mut rig = Rig::new("", 64);
    rig.spec.vcpus = vcpus;
    let mut machine = rig.running();
    let load = Load::start(2);
    let mut rounds = 0;
    for _ in 0..TAKEOVERS {
        let mut pair = Pair::protect(&rig, machine);
        for _ in 0..SYNCS + random.below(40) {
            sync(&mut pair, &mut random);
        }
        machine = pair.take_over();
        machine.resume();
        let mut client = Client::connect();
        client.ok("CHECK");
        let now = client.info("worker_rounds");
        assert!(
            now > rounds,
            "the further vCPUs stood still at {now} rounds (seed {seed})"
        );
        rounds = now;
    }
    assert!(load.is_well(), "a client failed (seed {seed})");
    load.stop();
}

#[test]
fn two_vcpus_are_captured_together() {
    vcpus_go_on_together(2, 21);
}

#[test]
fn eight_vcpus_are_captured_together() {
    vcpus_go_on_together(8, 22);
}

#[test]
fn a_machine_with_two_vcpus_is_reset_and_boots_with_both() {
    let _watchdog = Watchdog::new("a reset of two vCPUs", 60);
    let mut rig = Rig::new("", 64);
    rig.spec.vcpus = 2;
    let machine = rig.running();
    let before = Client::connect().info("worker_rounds");
    machine.pause();
    machine.reset().expect("it is reset");
    machine.resume();
    let mut client = Client::connect();
    assert_eq!(client.info("boots"), 2);
    thread::sleep(Duration::from_millis(50));
    let after = client.info("worker_rounds");
    assert!(
        before > 0 && after > 0,
        "{before} rounds before the reset, {after} after it"
    );
    client.ok("CHECK");
}

#[test]
fn memory_above_the_hole_is_captured_and_taken_over() {
    let _watchdog = Watchdog::new("memory above the hole", 120);
    let rig = Rig::new("", 5120);
    let machine = rig.running();
    // Every other page of these lies above 4 GiB; some are only in the first copy.
    Client::connect().ok("DIRTY 400");
    let mut pair = Pair::protect(&rig, machine);
    let stop = Arc::new(AtomicBool::new(false));
    let dirtying = thread::spawn({
        let stop = stop.clone();
        move || {
            let mut client = Client::connect();
            while !stop.load(Ordering::SeqCst) {
                client.ok("DIRTY 60");
                client.ok("CHECK");
            }
        }
    });
    let first_high = HIGH_MEMORY_START / PAGE_BYTES as u64;
    let [mut low, mut high] = [0, 0];
    for _ in 0..SYNCS {
        let captured = pair.capture();
        pair.commit(&captured);
        let above = captured.pages.iter().filter(|page| **page >= first_high).count();
        high += above;
        low += captured.pages.len() - above;
        pair.machine.release(captured.epoch);
        pair.machine.resume();
        thread::sleep(Duration::from_millis(5));
    }
    assert!(
        low > 0 && high > 0,
        "captured: {low} pages below the hole, {high} above it"
    );
    let machine = pair.take_over();
    machine.resume();
    stop.store(true, Ordering::SeqCst);
    dirtying.join().expect("what was dirtied is right");
    let mut client = Client::connect();
    assert!(client.info("pattern_touched") > 400);
    client.ok("CHECK");
}
