//! When a primary's loop wakes, and for what.

use std::io::Read;

use kemari_sync::wire::{FrameHeader, FrameKind, HEADER_BYTES};
use kemari_vmm::disk::DiskWatch;

use super::super::rig::{Rig, connected};
use super::*;

const HOUR_US: u64 = 3_600_000_000;

/// Does what is due so much later, and settles it.
fn later(rig: &mut Rig, after_us: u64) {
    let now_us = rig.side.clock.now_us() + after_us;
    rig.side.fire_due(now_us);
    rig.side.settle();
}

#[test]
fn a_loop_that_has_done_what_is_due_sleeps() {
    let mut rig = Rig::new();
    rig.side.turn();
    later(&mut rig, 0);
    let sleep_ms = rig.side.sleep_ms(rig.side.clock.now_us());
    assert!(sleep_ms.is_some_and(|sleep_ms| sleep_ms > 0), "{sleep_ms:?}");
}

#[test]
fn what_is_set_earlier_wakes_the_loop_earlier() {
    let mut rig = Rig::new();
    rig.side.turn();
    let now_us = rig.side.clock.now_us();
    for due_us in [now_us + 9_000, now_us + 5_000] {
        rig.side.demand.gather.end();
        rig.side.demand.gather.await_until(due_us);
        assert_eq!(rig.side.next_us(), Some(due_us));
    }
    assert_eq!(rig.side.sleep_ms(now_us), Some(5));
    // Another thread sets it while the loop sleeps.
    rig.side.sleep();
    rig.side.demand.console_due_us = Some(now_us + 6_000);
    assert!(!rig.side.is_due_earlier(), "it is awake by then");
    rig.side.demand.console_due_us = Some(now_us + 4_000);
    assert!(rig.side.is_due_earlier());
}

#[test]
fn output_that_has_gathered_asks_for_a_sync_when_that_is_due_and_not_before() {
    let is_pending = |event: &PrimaryEvent| matches!(event, PrimaryEvent::OutputPending);
    let mut rig = Rig::new();
    rig.boot();
    rig.capture(1);
    rig.side.perform(kemari_sync::PrimaryAction::Release { epoch: 1 });
    rig.make_output();
    rig.events();
    let due_us = rig.side.clock.now_us() + HOUR_US;
    for timer in [Timer::Console, Timer::Gather] {
        match timer {
            Timer::Console => rig.side.demand.console_due_us = Some(due_us),
            _ => rig.side.demand.gather.await_until(due_us),
        }
        rig.side.fire_due(due_us - 1);
        assert!(!rig.tells(is_pending), "{timer:?}");
        rig.side.fire_due(due_us);
        assert!(rig.tells(is_pending), "{timer:?}");
        assert_eq!(rig.side.due_us(timer), None, "{timer:?}");
    }
}

#[test]
fn memory_is_looked_at_again_and_again_while_it_gets_dirty() {
    let mut rig = Rig::new();
    assert_eq!(rig.side.due_us(Timer::Look), None, "nobody is owed pages");
    rig.capture(1);
    assert_eq!(rig.side.due_us(Timer::Look), None, "the guest stands still");
    rig.side.holds.remove(Hold::Mechanism);
    let due_us = rig.side.due_us(Timer::Look).expect("it is looked");
    rig.side.fire(Timer::Look, due_us);
    assert!(rig.side.due_us(Timer::Look) > Some(due_us.min(rig.side.clock.now_us())));
}

#[test]
fn whoever_joins_again_hears_a_greeting_before_anything_that_was_due_meanwhile() {
    let mut rig = Rig::new();
    rig.protect();
    rig.tracker.begin_pair();
    rig.tracker.flush_begins(1, Some(1));
    rig.tracker.flushed(1, Box::new(|| {}));
    rig.tracker.note_peer_flushed(1);
    let reason = "the link broke".to_owned();
    rig.side
        .events
        .push_back(PrimaryEvent::PeerClosed { session: 1, reason });
    rig.side.settle();
    let (again, [mut main, _heartbeat]) = connected();
    rig.side.on_connected(Ok(again));
    rig.side.turn();
    for kind in [FrameKind::Hello, FrameKind::Settled] {
        let mut header = [0; HEADER_BYTES];
        main.read_exact(&mut header).expect("a frame");
        let header = FrameHeader::parse(&header).expect("a frame");
        assert_eq!(header.kind, kind);
        main.read_exact(&mut vec![0; header.length]).expect("all of it");
    }
}
