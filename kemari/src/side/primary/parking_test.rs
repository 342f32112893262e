//! Captures that wait until the vCPUs have stopped.

use kemari_sync::{PrimaryAction, PrimaryEvent};

use super::super::holds::Hold;
use super::super::rig::{Rig, until};
use super::*;

fn is_captured(event: &PrimaryEvent) -> bool {
    matches!(event, PrimaryEvent::Captured { epoch: 2, .. })
}

/// A guest that makes output whenever it runs, and that a helper waits for; and a capture that waits with it.
fn waiting() -> Rig {
    let mut rig = Rig::new();
    rig.boot();
    rig.capture(1);
    rig.side.perform(PrimaryAction::Release { epoch: 1 });
    rig.events();
    rig.side.stillness.parks = true;
    rig.capture(2);
    assert!(!rig.tells(is_captured) && rig.side.holds.has(Hold::Mechanism));
    rig
}

#[test]
fn a_capture_is_taken_when_every_vcpu_has_stopped() {
    let mut rig = waiting();
    rig.side.on_input(Input::Parked);
    assert!(rig.tells(is_captured) && !rig.side.stillness.waits());
    // The next one has nothing to wait for.
    rig.side.perform(PrimaryAction::Release { epoch: 2 });
    rig.capture(3);
    assert!(rig.tells(|event| matches!(event, PrimaryEvent::Captured { epoch: 3, .. })));
}

#[test]
fn a_capture_that_was_given_back_is_not_taken_and_the_guest_runs_on() {
    let mut rig = waiting();
    rig.side.perform(PrimaryAction::GiveBack { epoch: 1 });
    assert!(rig.side.stillness.waits(), "it is another's");
    rig.side.perform(PrimaryAction::GiveBack { epoch: 2 });
    rig.side.perform(PrimaryAction::Resume);
    rig.side.machine.pause();
    rig.side.on_input(Input::Parked);
    assert!(!rig.tells(is_captured) && !rig.side.stillness.parks);
    until("the guest runs", || rig.side.machine.output_held());
    rig.side.machine.pause();
}

#[test]
fn a_guest_that_is_wanted_again_while_it_stops_is_captured_once() {
    let mut rig = waiting();
    rig.side.perform(PrimaryAction::GiveBack { epoch: 2 });
    rig.capture(2);
    rig.side.on_input(Input::Parked);
    let captured = rig.events().iter().filter(|event| is_captured(event)).count();
    assert_eq!(captured, 1);
}

#[test]
fn a_pause_is_as_long_as_the_guest_is_to_stand_still() {
    const WAITS: Duration = Duration::from_millis(30);
    let waits_us = WAITS.as_micros() as u64;
    let mut rig = waiting();
    std::thread::sleep(WAITS);
    rig.side.on_input(Input::Parked);
    rig.side.perform(PrimaryAction::Resume);
    assert!(
        rig.side.stopwatch.counters.last_pause_us >= waits_us,
        "{}",
        rig.side.stopwatch.counters.last_pause_us
    );
    rig.side.perform(PrimaryAction::Release { epoch: 2 });
    assert!(
        rig.side.stopwatch.counters.last_sync_us >= waits_us,
        "{}",
        rig.side.stopwatch.counters.last_sync_us
    );
    // What a capture waited for that was given up is no part of the next pause.
    let mut rig = waiting();
    std::thread::sleep(WAITS);
    let before_us = rig.side.clock.now_us();
    rig.side.perform(PrimaryAction::GiveBack { epoch: 2 });
    rig.capture(2);
    rig.side.on_input(Input::Parked);
    assert!(rig.side.stopwatch.paused_us() >= before_us);
}
