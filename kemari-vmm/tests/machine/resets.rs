//! Resets and power-off, with output held, captured and in flight.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use kemari_vmm::machine::MachineEvent;

use crate::support::pair::{Pair, sync};
use crate::support::random::Random;
use crate::support::resp::{Client, Load};
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

/// Long enough for an event that should not come.
const A_WHILE: Duration = Duration::from_millis(100);

#[test]
fn queues_are_reset_under_load_and_under_hold() {
    let _watchdog = Watchdog::new("resets of queues", 120);
    let mut random = Random::new(61);
    let rig = Rig::new("", 64);
    let mut machine = rig.running();
    let load = Load::start(3);
    let (send, done) = mpsc::channel();
    let resets = thread::spawn(move || {
        let mut client = Client::connect();
        for _ in 0..40 {
            client.ok("RESETQ");
        }
        client.ok("BLKTEST 100 16");
        client.ok("CHECK");
        let _ = send.send(());
    });
    let mut syncs = 0;
    'all: loop {
        let mut pair = Pair::protect(&rig, machine);
        for _ in 0..120 {
            sync(&mut pair, &mut random);
            syncs += 1;
            if done.recv_timeout(Duration::ZERO) != Err(mpsc::RecvTimeoutError::Timeout) {
                machine = pair.take_over();
                break 'all;
            }
        }
        machine = pair.take_over();
        machine.resume();
    }
    machine.resume();
    resets.join().expect("the guest answers");
    let values = load.stop();
    eprintln!("40 resets of queues over {syncs} syncs, {values} values");
}

#[test]
fn a_guest_reboots_with_output_held() {
    let _watchdog = Watchdog::new("reboots", 120);
    let mut random = Random::new(62);
    let rig = Rig::new("", 64);
    let machine = rig.running();
    let mut client = Client::connect();
    let boots = client.info("boots");
    let mut pair = Pair::protect(&rig, machine);
    for reboot in 0..6u64 {
        // The answers need syncs, so that somebody else asks for them.
        let asking = thread::spawn(move || {
            client.ok(&format!("SET reboot {reboot}"));
            client.ok("REBOOT");
        });
        loop {
            match rig.event_within(Duration::ZERO) {
                None => sync(&mut pair, &mut random),
                Some(event) => break assert_eq!(event, MachineEvent::Reset),
            }
        }
        asking.join().expect("the guest answers");
        pair.machine.pause();
        if reboot % 2 == 0 {
            // The wish is in a capture, and a machine that takes over carries it out.
            let captured = pair.capture();
            pair.commit(&captured);
            pair.machine.release(captured.epoch);
        }
        if reboot == 4 {
            let machine = pair.take_over();
            assert_eq!(
                rig.event(),
                MachineEvent::Reset,
                "the wish for a reset survives a takeover"
            );
            machine.reset().expect("the bare guest boots again");
            machine.resume();
            pair = Pair::protect(&rig, machine);
        } else {
            // Otherwise output may wait here that no capture has: it is dropped with the machine's past.
            pair.machine.reset().expect("the bare guest boots again");
            pair.machine.resume();
        }
        let connecting = thread::spawn(move || {
            let mut client = Client::connect();
            assert_eq!(
                client.ask("GET reboot"),
                reboot.to_string(),
                "what was stored is there after a reboot"
            );
            assert_eq!(client.info("boots"), boots + reboot + 1);
            client.ok("CHECK");
            client
        });
        while !connecting.is_finished() {
            sync(&mut pair, &mut random);
        }
        client = connecting.join().expect("the guest answers");
    }
}

#[test]
fn a_power_off_leaves_with_its_ack_only() {
    let _watchdog = Watchdog::new("power-off", 60);
    let rig = Rig::new("", 64);
    let machine = rig.running();
    let mut client = Client::connect();
    let mut pair = Pair::protect(&rig, machine);
    client.send(&["POWEROFF"]).expect("the TAP takes it");
    while !pair.machine.power_off_wanted() {
        let captured = pair.capture();
        pair.commit(&captured);
        pair.machine.release(captured.epoch);
        pair.machine.resume();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(client.receive().expect("the answer before the end"), "+OK");
    assert!(pair.machine.output_held(), "a power-off is output");
    assert_eq!(rig.event_within(A_WHILE), None, "nobody has the power-off");

    let lost = pair.capture();
    pair.give_back(&lost);
    pair.machine.release(lost.epoch);
    assert_eq!(rig.event_within(A_WHILE), None, "its sync failed");

    let captured = pair.capture();
    pair.commit(&captured);
    assert!(!pair.machine.output_held() && pair.machine.power_off_wanted());
    pair.machine.release(captured.epoch - 1);
    assert_eq!(
        rig.event_within(A_WHILE),
        None,
        "its ack has not come, only an older one"
    );
    pair.machine.release(captured.epoch);
    assert_eq!(rig.event(), MachineEvent::PowerOff);
    assert!(!pair.machine.power_off_wanted());

    // The standby has it too: the takeover's first output is the power-off.
    let _stopped = pair.take_over();
    assert_eq!(rig.event(), MachineEvent::PowerOff);
}

/// An instruction fetched from a device: KVM cannot emulate it, here or elsewhere. The machine says so once,
/// whatever is done with it, and a reset makes it run again.
#[test]
fn a_guest_that_cannot_go_on_is_told_of_once_and_can_be_reset() {
    let _watchdog = Watchdog::new("a guest that cannot go on", 60);
    let rig = Rig::new("", 64);
    let machine = rig.running();
    let mut client = Client::connect();
    client.send(&["ABUSE", "execute", "0"]).expect("the TAP takes it");
    let event = rig.event();
    assert!(matches!(event, MachineEvent::GuestFailed(_)), "{event:?}");
    let parked = Arc::new(AtomicU32::new(0));
    let seen = parked.clone();
    machine.on_parked(Some(Arc::new(move || {
        seen.fetch_add(1, Ordering::SeqCst);
    })));
    for _ in 0..3 {
        machine.pause();
        machine.resume();
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(rig.event_within(A_WHILE), None, "it does not run any more");
    assert!(parked.load(Ordering::SeqCst) <= 3, "its thread sleeps");
    machine.on_parked(None);
    machine.pause();
    machine.reset().expect("the bare guest boots again");
    machine.resume();
    Client::connect().ok("CHECK");
}
