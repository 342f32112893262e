//! What the core wants done, one action at a time.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use kemari_sync::wire::{Begin, Message, Welcome};
use kemari_sync::{ArbiterRequest, Incarnation, Opening, Phase, Record, Ruled, SessionId};
use kemari_vmm::disk::DiskWatch;
use kemari_vmm::memory::PAGE_BYTES;

use super::super::ahead;
use super::peer::check_welcome;
use super::rig::{OLD_TERM, Rig, TERM, record};
use super::*;
use crate::link::LinkError;

/// Pages that neither the guest nor anybody else uses.
const PAGE: u64 = 0x2f00;
const PAGES_AHEAD: u64 = 200;

fn is_pending(event: &PrimaryEvent) -> bool {
    matches!(event, PrimaryEvent::OutputPending)
}

fn is_captured(event: &PrimaryEvent) -> bool {
    matches!(event, PrimaryEvent::Captured { .. })
}

/// A flush of the guest that waits for the other host's disk. Whether it was told.
fn flush(rig: &Rig, id: u64) -> Arc<AtomicBool> {
    let told = Arc::new(AtomicBool::new(false));
    let tell = told.clone();
    rig.tracker
        .flushed(id, Box::new(move || tell.store(true, Ordering::SeqCst)));
    told
}

/// A secondary, and pages that went ahead of sync 1 to it.
fn with_pages_ahead() -> (Rig, [TcpStream; 2], SessionId) {
    let mut rig = Rig::new();
    let peer = rig.force_connect();
    let session = rig.side.peer.id().expect("a session");
    let begin = Begin {
        epoch: 1,
        base: None,
        term: TERM,
        store: 1,
        primary: 1,
        secondary: 2,
    };
    rig.find(PAGE..PAGE + PAGES_AHEAD);
    ahead::offer(&mut rig.side.owed.debt);
    rig.side.perform(PrimaryAction::SendAhead(Opening {
        session,
        begin,
        pages_max: 4096,
    }));
    // Some of the pages went at once: the others wait.
    assert_eq!(rig.side.owed.debt.went_ahead_in(1), Some(session));
    assert_eq!(rig.side.owed.debt.of_next_sync(), PAGES_AHEAD as usize);
    (rig, peer, session)
}

#[test]
fn what_is_owed_is_in_the_next_capture_and_in_the_one_after_it_if_that_fails() {
    let mut rig = Rig::new();
    rig.find([PAGE]);
    rig.capture(1);
    assert!(rig.tells(is_captured) && rig.captured(PAGE) && rig.side.machine.holds_output());
    assert_eq!(rig.side.owed.debt.of_next_sync(), 0);
    rig.side.perform(PrimaryAction::GiveBack { epoch: 1 });
    assert!(rig.side.capture.is_none());
    rig.capture(2);
    assert!(rig.captured(PAGE));
    rig.side.perform(PrimaryAction::Release { epoch: 2 });
    rig.capture(3);
    assert!(!rig.captured(PAGE));
}

#[test]
fn a_capture_that_cannot_be_made_loses_no_page() {
    let mut rig = Rig::new();
    rig.capture(1);
    rig.side.perform(PrimaryAction::Release { epoch: 1 });
    rig.write(PAGE);
    // No page of the guest.
    let beyond = (64 << 20) / PAGE_BYTES as u64;
    rig.find([beyond]);
    rig.capture(2);
    assert!(rig.tells(|event| matches!(event, PrimaryEvent::CaptureFailed { epoch: 2, .. })));
    assert!(rig.side.capture.is_none());
    let mut owed = rig.take_owed();
    owed.retain(|page| *page != beyond);
    rig.find(owed);
    rig.capture(3);
    assert!(rig.captured(PAGE));
}

#[test]
fn output_asks_for_the_next_sync_when_one_is_given_back_or_acked() {
    let mut rig = Rig::new();
    rig.boot();
    rig.capture(1);
    rig.side.perform(PrimaryAction::Release { epoch: 1 });
    rig.make_output();
    rig.capture(2);
    assert!(!rig.tells(is_pending), "it is captured");
    rig.side.perform(PrimaryAction::GiveBack { epoch: 2 });
    assert!(rig.tells(is_pending), "it is held again");
    rig.capture(3);
    rig.make_output();
    rig.events();
    rig.side.perform(PrimaryAction::Release { epoch: 3 });
    assert!(rig.tells(is_pending), "there is more than was captured");
}

#[test]
fn states_are_known_of_the_standby_that_has_acked_them() {
    let mut rig = Rig::new();
    rig.capture(1);
    rig.side.perform(PrimaryAction::GiveBack { epoch: 1 });
    assert!(rig.side.known_states.acked_states().is_empty());
    rig.capture(2);
    rig.side.perform(PrimaryAction::Release { epoch: 2 });
    assert!(!rig.side.known_states.acked_states().is_empty());
    rig.side.perform(PrimaryAction::CopyRound {
        session: 1,
        first: true,
    });
    assert!(
        rig.side.known_states.acked_states().is_empty(),
        "it is another one"
    );
}

#[test]
fn pages_are_known_of_the_standby_that_has_acked_them() {
    let is_known = |rig: &mut Rig| {
        let deltas = rig.side.deltas.for_sync().expect("differences are tried first");
        deltas.begin(9);
        deltas.send(PAGE).expect("there is room").1
    };
    for (is_another, expected) in [(false, true), (true, false)] {
        let mut rig = Rig::new();
        rig.find([PAGE]);
        rig.capture(1);
        rig.side.perform(PrimaryAction::Release { epoch: 1 });
        if is_another {
            rig.side.perform(PrimaryAction::CopyRound {
                session: 1,
                first: true,
            });
        }
        assert_eq!(is_known(&mut rig), expected);
    }
}

#[test]
fn who_acts_alone_owes_nothing_holds_nothing_and_waits_for_no_other_disk() {
    let mut rig = Rig::new();
    rig.capture(1);
    rig.make_output();
    rig.tracker.begin_pair();
    let told = flush(&rig, 1);
    rig.find([PAGE]);
    rig.events();
    assert!(rig.tracker.waits_for_peer() && rig.side.machine.output_held());
    rig.side.perform(PrimaryAction::OpenGate);
    assert!(!rig.side.machine.holds_output() && !rig.side.machine.output_held());
    assert_eq!(rig.side.owed.debt.of_next_sync(), 0);
    assert!(rig.side.capture.is_none() && !rig.side.demand.is_attached());
    assert!(told.load(Ordering::SeqCst) && !rig.tracker.waits_for_peer());
    rig.side.machine.pause();
}

#[test]
fn a_guest_that_ends_here_waits_for_no_other_disk() {
    let mut rig = Rig::new();
    rig.tracker.begin_pair();
    let told = flush(&rig, 1);
    rig.side.perform(PrimaryAction::Drain);
    assert!(told.load(Ordering::SeqCst) && rig.side.holds.has(Hold::Mechanism));
    rig.await_input(|input| matches!(input, Input::Drained(1)));
    assert!(rig.tells(|event| matches!(event, PrimaryEvent::Drained)));
    rig.side.perform(PrimaryAction::Drain);
    rig.side.on_input(Input::Drained(1));
    assert!(
        !rig.tells(|event| matches!(event, PrimaryEvent::Drained)),
        "the first one says nothing of the second"
    );
}

#[test]
fn records_know_the_term_before_anything_leaves_in_it() {
    let mut rig = Rig::new();
    assert_eq!(rig.terms(), (OLD_TERM, 0));
    rig.side.disks.ruled = Ruled::default();
    rig.capture(1);
    rig.side.perform(PrimaryAction::Release { epoch: 1 });
    assert_eq!(rig.terms(), (TERM, 0), "output of a pair");
    let mut rig = Rig::new();
    rig.side.disks.ruled = Ruled::default();
    rig.side.perform(PrimaryAction::OpenGate);
    assert_eq!(rig.terms(), (TERM, 0), "output of a side alone");
    rig.side.machine.pause();
}

/// What was acked and could not be let go is owed and held again: more syncs may be made before the pair
/// parts.
#[test]
fn a_sync_whose_pair_cannot_be_recorded_is_given_back() {
    let mut rig = Rig::without_record();
    rig.boot();
    rig.capture(1);
    rig.side.perform(PrimaryAction::Release { epoch: 1 });
    assert!(!rig.side.known_states.acked_states().is_empty());
    rig.side.disks.ruled = Ruled::default();
    rig.find([PAGE]);
    rig.make_output();
    rig.capture(2);
    rig.events();
    rig.side.perform(PrimaryAction::Release { epoch: 2 });
    assert!(rig.side.machine.output_held() && rig.side.capture.is_none());
    assert!(
        rig.side.known_states.acked_states().is_empty(),
        "the secondary has others since"
    );
    let is_failing = |event: &PrimaryEvent| matches!(event, PrimaryEvent::ProtectionFailing { .. });
    let events = rig.events();
    let failing = events.iter().position(is_failing).expect("it is told");
    assert!(events[failing..].iter().any(is_pending), "the pair parts first");
    rig.capture(3);
    assert!(rig.captured(PAGE));
}

#[test]
fn records_know_of_a_term_before_it_is_asked_for() {
    let with_peer = |phase| Record {
        phase,
        peer: Some(Incarnation {
            host: "b".into(),
            nonce: 2,
        }),
        ..record(TERM + 1)
    };
    let won = Record {
        phase: Phase::Won,
        ..record(TERM + 1)
    };
    for (new, terms) in [
        (won, (OLD_TERM, TERM + 1)),
        (with_peer(Phase::Acting), (OLD_TERM, TERM + 1)),
        (record(TERM + 1), (TERM + 1, 0)),
    ] {
        let mut rig = Rig::new();
        let request = ArbiterRequest::Swap {
            expected: Some(record(TERM)),
            new,
        };
        rig.side.perform(PrimaryAction::Ask {
            ask: 1,
            request: request.clone(),
        });
        assert_eq!(rig.asked.recv().expect("it is asked"), request);
        assert_eq!(rig.terms(), terms, "{request:?}");
    }
}

#[test]
fn the_first_sync_of_a_pair_is_announced_in_the_records() {
    let mut rig = Rig::new();
    rig.side.finish_disk_copy(1, TERM + 1);
    assert_eq!(rig.terms(), (OLD_TERM, TERM + 1));
}

#[test]
fn the_first_capture_of_a_pair_waits_for_still_disks_and_may_be_given_up_meanwhile() {
    let capture = |rig: &mut Rig, epoch| {
        rig.side.perform(PrimaryAction::Capture {
            epoch,
            term: TERM,
            hold: true,
            at_once: None,
        });
    };
    let is_still = |input: &Input| matches!(input, Input::DisksAreStill(_));
    let mut rig = Rig::new();
    capture(&mut rig, 1);
    assert!(!rig.tells(is_captured) && rig.side.holds.has(Hold::Mechanism));
    rig.side.perform(PrimaryAction::GiveBack { epoch: 1 });
    rig.await_input(is_still);
    assert!(!rig.tells(is_captured), "it was given up");
    capture(&mut rig, 2);
    rig.await_input(is_still);
    assert!(rig.tells(is_captured));
    rig.side.perform(PrimaryAction::Release { epoch: 2 });
    capture(&mut rig, 3);
    assert!(
        rig.tells(is_captured),
        "nothing has left since that the secondary does not know"
    );
}

#[test]
fn what_went_ahead_is_owed_again_when_its_session_ends_however_it_does() {
    let owed = |mut rig: Rig| rig.take_owed();
    let all: Vec<u64> = (PAGE..PAGE + PAGES_AHEAD).collect();
    let (mut rig, _peer, session) = with_pages_ahead();
    let reason = "a test".to_owned();
    rig.side.perform(PrimaryAction::CloseSession { session, reason });
    assert_eq!(owed(rig), all);
    let (mut rig, _peer, session) = with_pages_ahead();
    rig.side.lose_session(LinkError::Closed);
    assert!(
        rig.tells(
            |event| matches!(event, PrimaryEvent::PeerClosed { session: lost, .. } if *lost == session)
        )
    );
    assert_eq!(owed(rig), all);
    let (mut rig, _peer, _) = with_pages_ahead();
    rig.find([1]);
    rig.side.perform(PrimaryAction::CopyRound {
        session: 9,
        first: true,
    });
    assert_eq!(owed(rig), [0; 0], "a new standby VM gets all pages anyway");
}

#[test]
fn many_dirty_pages_ask_for_a_sync_before_they_are_more() {
    let mut rig = Rig::new();
    rig.capture(1);
    rig.events();
    let is_limit = |event: &PrimaryEvent| matches!(event, PrimaryEvent::DirtyLimit);
    rig.limit_dirty_pages(1 << 20);
    rig.write(PAGE);
    rig.side.look_at_dirty_pages();
    assert!(!rig.tells(is_limit));
    let owed = rig.take_owed();
    assert!(owed.contains(&PAGE));
    rig.find(owed);
    rig.limit_dirty_pages(1);
    rig.side.look_at_dirty_pages();
    assert!(rig.tells(is_limit));
    // What waits to go ahead, and is found again, is one page of the sync all the same.
    let mut rig = Rig::new();
    rig.side.machine.dirty().start().expect("a dirty log");
    rig.find(PAGE..PAGE + PAGES_AHEAD);
    ahead::offer(&mut rig.side.owed.debt);
    rig.find(PAGE..PAGE + PAGES_AHEAD);
    rig.limit_dirty_pages(PAGES_AHEAD as u32 + 1);
    rig.side.look_at_dirty_pages();
    assert!(!rig.tells(is_limit));
    let (mut rig, _peer, _) = with_pages_ahead();
    rig.side.machine.dirty().start().expect("a dirty log");
    rig.limit_dirty_pages(PAGES_AHEAD as u32);
    rig.side.look_at_dirty_pages();
    assert!(rig.tells(is_limit), "what went ahead counts, too");
    rig.limit_dirty_pages(PAGES_AHEAD as u32 + 1);
    rig.side.look_at_dirty_pages();
    assert!(!rig.tells(is_limit));
}

#[test]
fn a_guest_that_stands_still_for_a_disk_runs_when_the_operator_says_so() {
    let mut rig = Rig::new();
    rig.side.on_disk_trouble("blk0", "it is full", true);
    assert!(
        !rig.tells(|event| matches!(event, PrimaryEvent::HostFailing { .. })),
        "nobody else could go on"
    );
    rig.side.perform(PrimaryAction::Resume);
    rig.side.machine.pause();
    drop(rig.side.machine.freeze());
    assert!(rig.side.holds.disk().is_some());
    assert!(rig.side.resume_after_trouble().is_ok());
    assert!(
        rig.side.resume_after_trouble().is_err(),
        "it stands still no more"
    );
    rig.side.machine.pause();
}

#[test]
fn a_guest_that_stands_still_too_long_for_an_ack_is_let_go() {
    let mut rig = Rig::new();
    rig.side.holds.hold_until_ack(true);
    rig.capture(1);
    rig.events();
    let is_let_go = |event: &PrimaryEvent| matches!(event, PrimaryEvent::GuestWaits(false));
    let far_us = rig.side.clock.now_us() + 60_000_000;
    rig.side.stopwatch.pause(far_us);
    rig.side.fire_due(rig.side.clock.now_us());
    assert!(!rig.tells(is_let_go));
    rig.side.stopwatch.pause(0);
    rig::until("its time is over", || {
        rig.side.fire_due(rig.side.clock.now_us());
        rig.tells(is_let_go)
    });
}

#[test]
fn a_secondary_has_the_name_of_the_host_that_it_was_looked_for_at() {
    let welcome = |host: &str| {
        Message::Welcome(Welcome {
            incarnation: Incarnation {
                host: host.into(),
                nonce: 1,
            },
            last: None,
        })
    };
    assert!(check_welcome("b", &welcome("b")).is_ok());
    assert!(check_welcome("b", &welcome("c")).is_err());
    assert!(check_welcome("b", &Message::Prepare).is_ok());
}
