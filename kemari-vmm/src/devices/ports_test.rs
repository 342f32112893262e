//! A power-off, a reset and a kick, each through captures that succeed or fail.

use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::arch::layout::PM_CONTROL;
use crate::devices::pm::Pm;
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
        let (of_one, events) = self::ports(true);
        let (other, value) = match port {
            KEYBOARD_PORT => (!KEYBOARD_RESET, KEYBOARD_RESET),
            // All other bits than the one that counts, then that one.
            RESET_CONTROL_PORT => (!RESET_CONTROL_RESET, 6),
            _ => (!RESET_VALUE, RESET_VALUE),
        };
        of_one.write(port.into(), &[other]);
        assert_eq!(heard(&events), [], "{port:#x}");
        of_one.write(port.into(), &[value]);
        assert_eq!(heard(&events), [PowerEvent::Reset], "{port:#x}");
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

#[test]
fn the_fixed_registers_power_off_by_their_sleep_type_and_keep_what_is_written() {
    let (ports, events) = ports(false);
    let pm = Pm::new(ports);
    let read = |offset, count| {
        let mut bytes = vec![0xee; count];
        pm.read(offset, &mut bytes);
        bytes
    };
    assert_eq!(read(0, 4), [0; 4], "no event has come");
    assert_eq!(read(u64::from(PM_CONTROL), 2), [1, 0], "ACPI has the machine");
    pm.write(2, &[0x20, 1]);
    pm.write(0, &[0xff; 2]);
    // A type that is not "soft off"; the type alone; something behind the registers.
    pm.write(u64::from(PM_CONTROL), &0x2001u16.to_le_bytes());
    pm.write(u64::from(PM_CONTROL), &(5u16 << 10).to_le_bytes());
    pm.write(6, &[0xff; 4]);
    pm.write(u64::from(PM_CONTROL), &[]);
    assert_eq!(heard(&events), []);
    assert_eq!(read(0, 6), [0, 0, 0x20, 1, 1, 5 << 2]);
    let state = pm.save();
    assert_eq!((state.kind, state.bytes.len()), (StateKind::AcpiRegisters, 4));
    let (other, _events) = self::ports(false);
    let other = Pm::new(other);
    other.load(&state).expect("a state of the registers");
    assert_eq!(other.save(), state);
    let sleeping = StateBlob {
        bytes: vec![0, 0x80, 0x40],
        ..state
    };
    other.load(&sleeping).expect("a state of the registers");
    assert_eq!(other.save().bytes, [0, 0], "it does not sleep");
    pm.write(u64::from(PM_CONTROL), &(5u16 << 10 | 1 << 13).to_le_bytes());
    assert_eq!(heard(&events), [PowerEvent::PowerOff]);
    assert_eq!(
        read(u64::from(PM_CONTROL), 2),
        [1, 5 << 2],
        "nobody reads that it sleeps"
    );
    pm.reset();
    assert_eq!(read(0, 6), [0, 0, 0, 0, 1, 0]);
}
