//! A power-off, a reset and a kick, each through captures that succeed or fail.

use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::memory;

fn ports(held: bool) -> (Arc<Ports>, Receiver<PowerEvent>) {
    let vm = crate::arch::preflight::open()
        .and_then(|kvm| Ok(crate::arch::create_vm(&kvm)?))
        .expect("KVM");
    let hub = Hub::new(memory::create(64 << 20).expect("memory"), Arc::new(vm));
    hub.hold_output(held);
    let (said, heard) = channel();
    let sink = Box::new(move |event| said.send(event).expect("it is listened to"));
    (Ports::new(hub, sink), heard)
}

fn heard(events: &Receiver<PowerEvent>) -> Vec<PowerEvent> {
    events.try_iter().collect()
}

fn power_off(ports: &Ports) {
    ports.write(SLEEP_CONTROL_PORT.into(), &[POWER_OFF_VALUE]);
}

#[test]
fn a_power_off_leaves_with_the_ack_of_a_capture_that_has_it_and_once() {
    let (ports, events) = ports(true);
    power_off(&ports);
    power_off(&ports);
    ports.release(9);
    assert!(
        heard(&events).is_empty() && ports.output_held(),
        "no capture has it"
    );
    assert_eq!(ports.capture(3), 1);
    ports.release(2);
    assert!(heard(&events).is_empty() && !ports.output_held());
    ports.uncapture(2);
    assert!(!ports.output_held(), "another capture has failed");
    ports.uncapture(3);
    assert!(ports.output_held(), "the next capture must have it");
    ports.release(3);
    assert!(heard(&events).is_empty());
    assert_eq!((ports.capture(4), ports.capture(5)), (1, 0));
    ports.release(5);
    assert_eq!(heard(&events), [PowerEvent::PowerOff]);
    ports.release_all();
    assert!(heard(&events).is_empty() && !ports.power_off_wanted());
}

#[test]
fn with_the_gate_open_a_power_off_leaves_at_once() {
    let (ports, events) = ports(false);
    power_off(&ports);
    assert_eq!(heard(&events), [PowerEvent::PowerOff]);
    assert!(!ports.output_held() && ports.power_off_wanted());
}

#[test]
fn an_ack_is_one_of_its_own_capture_too() {
    let (ports, events) = ports(true);
    power_off(&ports);
    ports.capture(3);
    ports.release(3);
    assert_eq!(heard(&events), [PowerEvent::PowerOff]);
}

#[test]
fn a_reset_is_asked_for_once_and_again_by_who_takes_over() {
    let (ports, events) = ports(true);
    for port in [RESET_PORT, KEYBOARD_PORT, RESET_CONTROL_PORT] {
        let value = match port {
            KEYBOARD_PORT => KEYBOARD_RESET,
            // All other bits than the one that counts, then that one.
            RESET_CONTROL_PORT => 6,
            _ => RESET_VALUE,
        };
        ports.write(port.into(), &[value]);
    }
    assert_eq!(heard(&events), [PowerEvent::Reset]);
    let (next, events) = self::ports(true);
    next.wake();
    assert_eq!(heard(&events), []);
    next.load(&ports.save()).expect("a state of ports");
    next.wake();
    assert_eq!(heard(&events), [PowerEvent::Reset]);
}

#[test]
fn a_machine_that_was_reset_has_nothing_pending() {
    let (ports, events) = ports(true);
    power_off(&ports);
    ports.write(KICK_PORT.into(), &[0]);
    ports.want_reset();
    assert_eq!(heard(&events), [PowerEvent::Reset]);
    ports.reset();
    assert!(!ports.output_held() && !ports.power_off_wanted());
    ports.wake();
    ports.release_all();
    assert_eq!(heard(&events), []);
}
