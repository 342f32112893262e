//! Pauses and resumes while the guest runs: nothing is lost.

use std::thread;
use std::time::Duration;

use crate::support::random::Random;
use crate::support::resp::{Client, Load};
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

const PAUSES: usize = 2_000;

#[test]
fn a_guest_that_is_paused_all_the_time_loses_no_interrupt() {
    let _watchdog = Watchdog::new("pauses", 120);
    let mut random = Random::new(81);
    let rig = Rig::new("", 64);
    let machine = rig.running();
    let load = Load::start(3);
    let worker = thread::spawn(|| {
        let mut client = Client::connect();
        for _ in 0..6 {
            for request in ["BLKTEST 100 16", "KICK 20 3", "DIRTY 100", "CHECK"] {
                client.ok(request);
            }
        }
    });
    for pause in 0..PAUSES {
        machine.pause();
        if random.percent(20) {
            drop(machine.freeze());
        }
        machine.resume();
        // Now and then the next pause meets a guest that has hardly begun,
        // or one that was only asked to pause.
        match random.below(4) {
            0 => {}
            1 => machine.pause_requester()(),
            _ => thread::sleep(Duration::from_micros(random.below(1000))),
        }
        if pause % 100 == 0 {
            // An idle guest is halted; its timer and its devices must still wake it.
            machine.pause();
            machine.resume();
            thread::sleep(Duration::from_millis(5));
        }
    }
    machine.pause();
    machine.resume();
    worker.join().expect("the guest answers");
    let values = load.stop();
    Client::connect().ok("CHECK");
    eprintln!("{PAUSES} pauses, {values} values");
    assert!(values > 0);
}

#[test]
fn an_idle_guest_answers_after_each_pause() {
    let _watchdog = Watchdog::new("pauses of an idle guest", 120);
    let rig = Rig::new("", 64);
    let machine = rig.running();
    let mut client = Client::connect();
    for _ in 0..300 {
        machine.pause();
        // The packet comes in while the guest is paused.
        client.send(&["PING"]).expect("the TAP takes it");
        machine.resume();
        assert_eq!(client.receive().expect("an answer"), "+PONG");
    }
}

#[test]
fn a_machine_that_was_drained_or_halted_stands_still_and_a_halted_one_has_no_cable() {
    let _watchdog = Watchdog::new("a machine that ends", 120);
    let rig = Rig::new("kickloop=30:600", 64);
    let machine = rig.running();
    machine.drain();
    drop(machine.freeze());
    assert!(machine.has_cable("net0").expect("it has a card"));
    machine.resume();
    machine.halt();
    drop(machine.freeze());
    assert!(!machine.has_cable("net0").expect("it has a card"));
    machine
        .close_disks(&["blk0".to_owned()])
        .expect("nothing is under way any more");
    let image = machine.disk_image("blk0").expect("it has a disk");
    assert!(image.is_none(), "whoever goes on opens it");
}
