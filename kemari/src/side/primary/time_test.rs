//! When a primary's loop wakes, and for what.

use std::io::Read;

use kemari_sync::wire::{Begin, FrameHeader, FrameKind, HEADER_BYTES};
use kemari_sync::{Opening, PrimaryAction};
use kemari_vmm::disk::DiskWatch;
use kemari_vmm::event::Direction;

use super::super::super::ahead;
use super::super::rig::{Rig, TERM, connected};
use super::*;
use crate::config::Mode;

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
    rig.side.shown.note(rig.side.clock.now_ms(), None);
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

#[test]
fn output_that_has_gathered_while_a_sync_is_under_way_is_asked_for_at_its_end() {
    let is_pending = |event: &PrimaryEvent| matches!(event, PrimaryEvent::OutputPending);
    let mut rig = Rig::new();
    rig.boot();
    rig.capture(1);
    rig.make_output();
    rig.events();
    rig.side.demand.gather.await_until(1);
    rig.side.fire(Timer::Gather, 1);
    assert_eq!(rig.side.due_us(Timer::Gather), None);
    assert!(!rig.tells(is_pending));
    rig.side.perform(PrimaryAction::Release { epoch: 1 });
    assert!(rig.tells(is_pending));
}

#[test]
fn console_output_is_not_put_off_by_more_of_it_and_goes_with_any_sync() {
    let mut rig = Rig::new();
    rig.side.demand.await_console(1_000);
    let due_us = rig.side.due_us(Timer::Console);
    assert!(due_us > Some(1_000), "it gathers");
    rig.side.demand.await_console(2_000);
    assert_eq!(rig.side.due_us(Timer::Console), due_us);
    rig.capture(1);
    assert_eq!(rig.side.due_us(Timer::Console), None);
}

#[test]
fn marks_are_settled_with_a_secondary() {
    let mut rig = Rig::new();
    assert_eq!(rig.side.due_us(Timer::Settle), None);
    let _peer = rig.force_connect();
    assert!(rig.side.due_us(Timer::Settle).is_some());
}

#[test]
fn more_pages_go_ahead_as_soon_as_the_last_have_left() {
    const PAGE: u64 = 0x2f00;
    let mut rig = Rig::new();
    let _peer = rig.force_connect();
    let session = rig.side.peer.id().expect("a session");
    rig.capture(1);
    rig.side.perform(PrimaryAction::Release { epoch: 1 });
    rig.side.holds.remove(Hold::Mechanism);
    assert_eq!(rig.side.due_us(Timer::Ahead), None, "nothing waits");
    rig.find(PAGE..PAGE + 200);
    ahead::offer(&mut rig.side.owed.debt);
    rig.side.fire(Timer::Ahead, rig.side.clock.now_us());
    assert!(
        rig.side.due_us(Timer::Ahead) > Some(rig.side.clock.now_us()),
        "the core is asked"
    );
    let begin = Begin {
        epoch: 2,
        base: None,
        term: TERM,
        store: 1,
        primary: 1,
        secondary: 2,
    };
    rig.side.perform(PrimaryAction::SendAhead(Opening {
        session,
        begin,
        pages_max: 4096,
    }));
    let due_us = rig.side.due_us(Timer::Ahead);
    assert!(
        due_us.is_some_and(|due_us| due_us <= rig.side.clock.now_us()),
        "{due_us:?}"
    );
    // More than a socket takes that nobody reads.
    rig.side
        .peer
        .on_link(session, |session| session.main.send(vec![0; 64 << 20]));
    assert_eq!(rig.side.due_us(Timer::Ahead), None, "a sync would wait behind it");
}

#[test]
fn where_the_clock_starts_syncs_output_asks_for_none() {
    let mut rig = Rig::new();
    let machine = rig.side.machine.clone();
    rig.side.demand.attach(&machine).expect("room for a tap");
    let channels = machine.channels();
    let channel = channels.iter().find(|channel| channel.name() == "test");
    let mut pace = rig.side.demand.pace();
    for (mode, asks) in [(Mode::Interval, false), (Mode::Lockstep, true)] {
        pace.mode = mode;
        rig.side.demand.set_pace(pace);
        channel.expect("it can kick").notify(Direction::Out, true);
        assert_eq!(rig.side.demand.looked().is_some(), asks, "{mode:?}");
    }
}
