//! Syncs: when one begins, and what its ack releases.

use kemari_sync::wire::{CommitId, Message};
use kemari_sync::{Mode, Pace, PrimaryAction, PrimaryEvent, Timing};

use PrimaryAction as Do;

use super::support::*;

#[test]
fn lockstep_resumes_at_the_ack_and_pipelined_at_the_capture() {
    let mut bench = Bench::protected(Mode::Lockstep);
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), [capture(2)]);
    assert!(matches!(bench.captured(2)[..], [Do::Transmit { .. }]));
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }, Do::Resume]);

    let mut bench = Bench::protected(Mode::Pipelined);
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), [capture(2)]);
    assert!(matches!(bench.captured(2)[..], [Do::Resume, Do::Transmit { .. }]));
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }]);
}

#[test]
fn a_pipelined_guest_may_wait_for_the_ack_and_is_let_go_while_it_waits() {
    let mut bench = Bench::protected(Mode::Pipelined);
    assert_eq!(bench.feed(PrimaryEvent::GuestWaits(true)), []);
    bench.feed(PrimaryEvent::OutputPending);
    assert!(
        bench.at_once.is_some(),
        "sent while it is captured, as in lockstep"
    );
    assert!(matches!(bench.captured(2)[..], [Do::Transmit { .. }]));
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }, Do::Resume]);

    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(3);
    assert_eq!(bench.feed(PrimaryEvent::GuestWaits(false)), [Do::Resume]);
    assert_eq!(bench.feed(PrimaryEvent::DirtyLimit), [Do::Pause]);
    assert_eq!(
        bench.feed(PrimaryEvent::GuestWaits(false)),
        [],
        "it would only make the next sync larger"
    );
    assert_eq!(bench.ack(3), [Do::Release { epoch: 3 }, Do::Resume, capture(4)]);
    assert!(matches!(bench.captured(4)[..], [Do::Resume, Do::Transmit { .. }]));

    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    assert_eq!(
        bench.feed(PrimaryEvent::GuestWaits(false)),
        [],
        "it waits for every ack"
    );
}

#[test]
fn what_the_guest_waits_for_may_be_sent_while_it_is_captured() {
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.feed(PrimaryEvent::OutputPending);
    assert_eq!(bench.at_once, None, "the guest waits for the capture");

    let mut bench = Bench::protected(Mode::Lockstep);
    assert_eq!(bench.at_once, None, "the first of a pair comes after its disks");
    bench.feed(PrimaryEvent::OutputPending);
    let opening = bench.at_once.expect("it may");
    assert_eq!((opening.begin.epoch, opening.begin.base), (2, Some(1)));
    let Do::Transmit { session, begin, .. } = bench.captured(2)[0] else {
        panic!("it is sent");
    };
    assert_eq!((opening.session, opening.begin), (session, begin));
    bench.ack(2);

    // What was sent is a part of a sync that does not come: only a new session is without it.
    bench.feed(PrimaryEvent::OutputPending);
    let failed = bench.feed(PrimaryEvent::CaptureFailed {
        epoch: 3,
        reason: "no memory".to_owned(),
    });
    assert!(
        matches!(failed[..], [Do::CloseSession { .. }, Do::GiveBack { epoch: 3 }]),
        "{failed:?}"
    );
}

#[test]
fn one_sync_is_under_way_and_the_rest_joins_the_next() {
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.feed(PrimaryEvent::OutputPending);
    assert_eq!(
        bench.feed(PrimaryEvent::OutputPending),
        [],
        "contained in the capture that is under way"
    );
    bench.captured(2);
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), []);
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), []);
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }, capture(3)]);
}

#[test]
fn without_output_a_sync_starts_at_the_interval_and_at_the_dirty_limit() {
    let mut bench = Bench::protected(Mode::Pipelined);
    assert_eq!(bench.wait(500), []);
    bench.hear(1, heartbeat());
    assert_eq!(bench.wait(Timing::default().max_interval_ms)[..1], [capture(2)]);
    bench.captured(2);
    assert_eq!(
        bench.feed(PrimaryEvent::DirtyLimit),
        [Do::Pause],
        "the next sync must not become larger still"
    );
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }, Do::Resume, capture(3)]);
}

/// While the first sync of a pair waits for its ack or its record,
/// the guest dirties what the second one will carry.
#[test]
fn a_guest_that_dirties_too_much_during_the_first_sync_is_paused_until_the_next() {
    let (mut bench, _) = Bench::copied(Mode::Pipelined);
    bench.captured(1);
    assert_eq!(bench.feed(PrimaryEvent::DirtyLimit), [Do::Pause]);
    assert_eq!(bench.feed(PrimaryEvent::DirtyLimit), []);
    let asked = bench.ack(1);
    let actions = bench.swap(&asked);
    let is_sync = |action: &&Do| {
        matches!(
            action,
            Do::Release { .. } | Do::Resume | Do::Pause | Do::Capture { .. }
        )
    };
    let syncs: Vec<&Do> = actions.iter().filter(is_sync).collect();
    assert_eq!(syncs, [&Do::Release { epoch: 1 }, &Do::Resume, &capture(2)]);
}

#[test]
fn an_ack_that_nobody_waits_for_ends_the_session_and_releases_nothing() {
    for ack in [
        CommitId { term: 2, epoch: 3 },
        CommitId { term: 1, epoch: 2 },
        CommitId { term: 2, epoch: 1 },
    ] {
        let mut bench = Bench::protected(Mode::Lockstep);
        bench.feed(PrimaryEvent::OutputPending);
        bench.captured(2);
        let actions = bench.hear(1, Message::Ack(ack));
        assert!(
            matches!(actions[..], [Do::CloseSession { session: 1, .. }]),
            "{actions:?}"
        );
    }
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    assert_eq!(
        bench.hear(8, Message::Ack(CommitId { term: 2, epoch: 2 })),
        [],
        "of another session"
    );
    let actions = bench.hear(1, Message::LetGo(CommitId { term: 2, epoch: 2 }));
    assert!(
        matches!(actions[..], [Do::CloseSession { .. }]),
        "nobody has stopped the VM: {actions:?}"
    );
}

#[test]
fn a_sync_beyond_the_secondarys_staging_is_not_sent() {
    let (mut bench, _) = rejoined(1);
    let actions = bench.feed(PrimaryEvent::Captured {
        epoch: 3,
        pages: 1_001,
        bytes: 1,
        stop: false,
    });
    assert!(
        matches!(actions[..], [Do::CloseSession { .. }, Do::Ask { .. }]),
        "{actions:?}"
    );
}

#[test]
fn in_interval_mode_the_clock_alone_starts_syncs_and_the_pace_can_be_changed() {
    let mut bench = Bench::protected(Mode::Interval);
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), []);
    assert_eq!(bench.wait(Timing::default().interval_ms - 1), []);
    assert_eq!(bench.wait(1), [capture(2)]);
    assert!(matches!(bench.captured(2)[..], [Do::Resume, Do::Transmit { .. }]));
    bench.feed(PrimaryEvent::OutputPending);
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }]);
    assert_eq!(bench.feed(PrimaryEvent::DirtyLimit), [capture(3)]);
    bench.captured(3);
    bench.feed(PrimaryEvent::OutputPending);
    assert_eq!(bench.ack(3), [Do::Release { epoch: 3 }]);
    let pace = Pace {
        mode: Mode::Lockstep,
        interval_ms: 25,
        max_interval_ms: 1000,
    };
    assert_eq!(bench.feed(PrimaryEvent::OperatorPace(pace)), [capture(4)]);
    assert!(matches!(bench.captured(4)[..], [Do::Transmit { .. }]));
    // The guest waits for this ack, whatever the pace is by then.
    let pace = Pace {
        mode: Mode::Pipelined,
        ..pace
    };
    assert_eq!(bench.feed(PrimaryEvent::OperatorPace(pace)), []);
    assert_eq!(bench.ack(4), [Do::Release { epoch: 4 }, Do::Resume]);
}

#[test]
fn the_outside_is_told_where_the_vm_is_only_with_consent() {
    let mut bench = Bench::protected(Mode::Lockstep);
    let now = |bench: &Bench| bench.primary.may_show(bench.now_ms);
    assert!(now(&bench), "the pair was recorded just now");
    bench.now_ms += Timing::default().reconnect_ms;
    assert!(!now(&bench), "an old ack says nothing of the present");
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    assert!(!now(&bench), "not before the ack");
    bench.ack(2);
    assert!(now(&bench));
    // An ack that lay in a buffer while this process stood still.
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(3);
    bench.now_ms += 10_000;
    assert!(!now(&bench));
    bench.ack(3);
    assert!(!now(&bench), "the peer may have taken over since it sent this");
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(4);
    bench.ack(4);
    assert!(now(&bench));
    // Parting from the secondary.
    bench.wait(Timing::default().suspicion_ms);
    assert!(!now(&bench));
}

/// However young the last ack is.
#[test]
fn nothing_is_shown_without_a_secondary_that_is_there() {
    let fresh = || {
        let bench = Bench::protected(Mode::Lockstep);
        assert!(bench.primary.may_show(bench.now_ms));
        bench
    };
    let mut bench = fresh();
    bench.feed(PrimaryEvent::OperatorUnprotect);
    assert!(bench.primary.is_leaving());
    assert!(
        !bench.primary.may_show(bench.now_ms),
        "the arbiter is being asked"
    );

    let mut bench = fresh();
    let reason = "reset".to_owned();
    bench.feed(PrimaryEvent::PeerClosed { session: 1, reason });
    assert!(!bench.primary.is_leaving());
    assert!(!bench.primary.may_show(bench.now_ms), "the link broke");
}

#[test]
fn a_primary_that_is_alone_may_say_so() {
    let bench = Bench::new(Mode::Lockstep);
    assert!(bench.primary.may_show(1_000_000));
}
