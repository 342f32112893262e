//! A clean stop.

use kemari_sync::wire::{CommitId, Goodbye, Message};
use kemari_sync::{Mode, OnSecondaryLoss, Phase, PrimaryAction, PrimaryEvent, Timing};

use PrimaryAction as Do;

use super::support::*;

#[test]
fn a_clean_stop_is_a_sync_that_the_secondary_lets_go_with() {
    let mut bench = Bench::protected(Mode::Lockstep);
    assert_eq!(bench.feed(PrimaryEvent::OperatorStop), [capture(2)]);
    assert!(matches!(bench.captured(2)[..], [Do::Transmit { stop: true, .. }]));
    let actions = bench.hear(1, Message::LetGo(CommitId { term: 2, epoch: 2 }));
    assert_eq!(actions, [Do::Release { epoch: 2 }, Do::Drain]);
    let asked = bench.feed(PrimaryEvent::Drained);
    let asked = bench.read(&asked);
    let actions = bench.swap(&asked);
    assert_eq!(bench.store.phase, Phase::Stopped);
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Goodbye(Goodbye::Stopped),
                ..
            },
            Do::CloseSession { .. },
            Do::Exit { .. }
        ]
    ));
}

/// Neither host could go on with it: nothing is handed over, and nobody is fenced.
#[test]
fn a_guest_that_cannot_go_on_ends_as_with_a_stop() {
    let mut bench = Bench::protected(Mode::Lockstep);
    let reason = "the guest cannot go on".to_owned();
    assert_eq!(bench.feed(PrimaryEvent::GuestFailed { reason }), [capture(2)]);
    assert!(matches!(bench.captured(2)[..], [Do::Transmit { stop: true, .. }]));
    let actions = bench.hear(1, Message::LetGo(CommitId { term: 2, epoch: 2 }));
    assert_eq!(actions, [Do::Release { epoch: 2 }, Do::Drain]);
}

#[test]
fn a_power_off_in_a_capture_makes_it_the_last() {
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.feed(PrimaryEvent::OutputPending);
    let actions = bench.feed(PrimaryEvent::Captured {
        epoch: 2,
        pages: 1,
        bytes: 1,
        stop: true,
    });
    assert!(
        matches!(actions[..], [Do::Transmit { stop: true, .. }]),
        "and the guest stays paused: {actions:?}"
    );
}

#[test]
fn a_vm_that_is_alone_stops_after_its_io() {
    let mut bench = Bench::new(Mode::Lockstep);
    assert_eq!(bench.feed(PrimaryEvent::PoweredOff), [Do::Drain]);
    let asked = bench.feed(PrimaryEvent::Drained);
    let asked = bench.read(&asked);
    assert!(matches!(bench.swap(&asked)[..], [Do::Exit { .. }]));
    assert_eq!((bench.store.term, bench.store.phase), (2, Phase::Stopped));
}

#[test]
fn the_policy_may_be_to_stop_without_a_secondary() {
    let mut bench = Bench::with(Mode::Lockstep, OnSecondaryLoss::Stop);
    bench.copy();
    bench.captured(1);
    let asked = bench.ack(1);
    bench.swap(&asked);
    bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    let asked = bench.wait(Timing::default().reconnect_ms);
    let asked = bench.read(&asked);
    let asked = bench.swap(&asked);
    assert_eq!(bench.swap(&asked), [Do::OpenGate, Do::Drain]);
}

#[test]
fn a_stop_that_is_let_go_while_the_primary_asks_to_go_alone_is_recorded_all_the_same() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::PoweredOff);
    bench.captured(2);
    let asked = bench.feed(PrimaryEvent::OperatorUnprotect);
    let asked = bench.read(&asked);
    let declares = bench.swap(&asked);
    assert_eq!(bench.store.phase, Phase::Won);
    let actions = bench.hear(1, Message::LetGo(CommitId { term: 2, epoch: 2 }));
    assert_eq!(actions, [Do::Release { epoch: 2 }, Do::Drain]);
    assert_eq!(
        bench.feed(PrimaryEvent::Drained),
        [],
        "what is asked is resolved first"
    );
    let asked = bench.swap(&declares);
    assert_eq!(bench.store.phase, Phase::Acting);
    let asked = bench.read(&asked);
    let actions = bench.swap(&asked);
    assert_eq!(bench.store.phase, Phase::Stopped);
    assert!(matches!(actions[..], [Do::Exit { .. }]), "{actions:?}");
}

#[test]
fn the_first_sync_of_a_pair_is_not_its_last() {
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    let actions = bench.feed(PrimaryEvent::Captured {
        epoch: 1,
        pages: 1,
        bytes: 1,
        stop: true,
    });
    let sent = actions
        .iter()
        .find(|action| matches!(action, Do::Transmit { .. }));
    assert!(
        matches!(sent, Some(Do::Transmit { stop: false, .. })),
        "{actions:?}"
    );
}
