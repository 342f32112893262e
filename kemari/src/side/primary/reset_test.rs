//! A reset of the machine beside captures.

use kemari_sync::PrimaryAction;

use super::super::rig::Rig;
use super::*;

fn is_done(input: &Input) -> bool {
    matches!(input, Input::WasReset(_))
}

fn is_captured(event: &PrimaryEvent) -> bool {
    matches!(event, PrimaryEvent::Captured { epoch: 2, .. })
}

/// A guest whose reset is under way.
fn resetting() -> Rig {
    let mut rig = Rig::new();
    rig.side.stillness.wants_reset = true;
    rig.side.reset_if_possible();
    assert!(rig.side.holds.has(Hold::Reset));
    rig
}

#[test]
fn a_reset_waits_for_the_sync_under_way() {
    let mut rig = Rig::new();
    rig.capture(1);
    rig.side.stillness.wants_reset = true;
    rig.side.reset_if_possible();
    assert!(!rig.side.holds.has(Hold::Reset));
    rig.side.perform(PrimaryAction::Release { epoch: 1 });
    rig.side.reset_if_possible();
    assert!(rig.side.holds.has(Hold::Reset));
    rig.side.reset_if_possible();
    rig.await_input(is_done);
    assert!(
        !rig.side.holds.has(Hold::Reset) && !rig.side.stillness.wants_reset,
        "it is one reset"
    );
}

#[test]
fn a_capture_waits_for_the_reset_under_way_unless_it_is_given_up() {
    let mut rig = resetting();
    rig.capture(2);
    assert!(!rig.tells(is_captured) && rig.side.holds.has(Hold::Mechanism));
    rig.await_input(is_done);
    assert!(rig.tells(is_captured));
    let mut rig = resetting();
    rig.capture(2);
    rig.side.perform(PrimaryAction::GiveBack { epoch: 2 });
    rig.await_input(is_done);
    assert!(!rig.tells(is_captured));
}

#[test]
fn a_guest_does_not_run_on_while_it_is_reset() {
    let mut rig = resetting();
    rig.side.perform(PrimaryAction::Resume);
    rig.side.machine.pause();
    rig.await_input(is_done);
    rig.side.machine.pause();
}

#[test]
fn a_machine_that_cannot_be_reset_is_a_failure_of_its_host() {
    let mut rig = resetting();
    rig.side.on_reset_done(Err("a test".into()));
    assert!(rig.tells(|event| matches!(event, PrimaryEvent::HostFailing { .. })));
}
