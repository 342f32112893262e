//! A pair whose link broke meets again.

use kemari_sync::wire::{CommitId, Message};
use kemari_sync::{ArbiterRequest, Mode, PrimaryAction, PrimaryEvent, Protection};

use PrimaryAction as Do;

use super::support::*;

#[test]
fn a_handshake_counts_as_an_ack() {
    let (bench, actions) = rejoined(2);
    assert_eq!(actions, [Do::Release { epoch: 2 }, Do::Resume]);
    assert_eq!(bench.status(), Protection::Protected);
}

#[test]
fn a_sync_lost_with_the_link_is_given_back_and_follows_under_a_new_number() {
    let (mut bench, actions) = rejoined(1);
    assert_eq!(actions, [Do::GiveBack { epoch: 2 }, capture(3)]);
    let actions = bench.captured(3);
    let [
        Do::Transmit {
            session: 2, begin, ..
        },
    ] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert_eq!((begin.epoch, begin.base), (3, Some(1)));
}

#[test]
fn a_secondary_that_holds_another_state_is_parted_from() {
    let (_, actions) = rejoined(7);
    assert!(matches!(
        actions[..],
        [
            Do::CloseSession { .. },
            Do::Ask {
                request: ArbiterRequest::Read,
                ..
            }
        ]
    ));
}

#[test]
fn a_capture_is_sent_in_the_session_that_follows() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(bench.captured(2), [], "there is no session");
    bench.feed(PrimaryEvent::PeerConnected { session: 2 });
    let actions = bench.welcome(2, 2, Some(CommitId { term: 2, epoch: 1 }));
    assert!(
        matches!(&actions[..], [Do::Transmit { session: 2, begin, .. }] if begin.epoch == 2),
        "{actions:?}"
    );
}

#[test]
fn an_ack_before_the_greeting_of_a_new_session_releases_nothing() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    bench.feed(PrimaryEvent::PeerConnected { session: 2 });
    let actions = bench.hear(2, Message::Ack(CommitId { term: 2, epoch: 2 }));
    assert!(
        !actions.iter().any(|action| matches!(action, Do::Release { .. })),
        "{actions:?}"
    );
}
