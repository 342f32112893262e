//! When a secondary's loop wakes, and for what.

use super::super::berth::Berth;
use super::super::build::Build;
use super::super::idle::Idle;
use super::super::rig::{Rig, SESSION};
use super::*;

#[test]
fn a_loop_that_has_done_what_is_due_sleeps() {
    let mut rig = Rig::new();
    rig.hold();
    rig.side.fire_due(rig.side.clock.now_us());
    rig.side.settle();
    rig.side.told.shown.note(rig.side.clock.now_ms(), None);
    let sleep_ms = rig.side.sleep_ms(rig.side.clock.now_us());
    assert!(sleep_ms.is_some_and(|sleep_ms| sleep_ms > 0), "{sleep_ms:?}");
}

#[test]
fn a_side_that_has_nothing_to_do_ends_when_that_lasts_too_long_and_not_before() {
    let mut rig = Rig::new();
    rig.side.idle = Idle::new(Some(100));
    assert_eq!(rig.side.due_us(Timer::Idle), None);
    rig.side.note_idle();
    let due_us = rig.side.due_us(Timer::Idle).expect("it waits for a primary");
    rig.side.fire_due(due_us - 1);
    assert!(rig.side.end.is_none());
    rig.side.fire_due(due_us);
    assert!(matches!(rig.side.end, Some(End::Idle)));
    rig.hold();
    rig.side.note_idle();
    assert_eq!(rig.side.due_us(Timer::Idle), None, "it holds the VM");
}

#[test]
fn a_state_is_tried_once_after_each_commit_and_not_too_often() {
    let mut rig = Rig::new();
    assert_eq!(rig.side.due_us(Timer::Trial), None, "no commit came");
    rig.standby().trial.is_due = true;
    let due_us = rig.side.due_us(Timer::Trial).expect("one came");
    rig.side.fire(Timer::Trial, due_us);
    assert_eq!(rig.side.due_us(Timer::Trial), None);
    rig.standby().trial.is_due = true;
    let again_us = rig.side.due_us(Timer::Trial).expect("another came");
    assert!(again_us > due_us && again_us > rig.side.clock.now_us());
}

#[test]
fn a_side_whose_images_are_being_opened_is_not_idle() {
    let mut rig = Rig::new();
    rig.side.idle = Idle::new(Some(100));
    rig.side.berth = Berth::default();
    rig.side.berth.begin(Build::new(SESSION, 0));
    rig.side.note_idle();
    assert_eq!(rig.side.due_us(Timer::Idle), None);
}

#[test]
fn a_side_that_ends_for_another_reason_does_not_end_as_idle() {
    let mut rig = Rig::new();
    rig.side.end = Some(End::Left);
    rig.side.fire(Timer::Idle, 0);
    assert!(matches!(rig.side.end, Some(End::Left)));
}
