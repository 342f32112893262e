//! From alone to a pair.

use kemari_sync::wire::{Heartbeat, Message};
use kemari_sync::{ArbiterAnswer, ArbiterRequest, Mode, PrimaryAction, PrimaryEvent, Protection};

use PrimaryAction as Do;

use super::support::*;

#[test]
fn output_is_held_from_the_first_capture_until_the_pair_is_recorded() {
    let (mut bench, actions) = Bench::copied(Mode::Lockstep);
    assert_eq!(actions, [capture(1)]);
    let actions = bench.captured(1);
    let [
        Do::Transmit {
            session: 1,
            begin,
            stop: false,
        },
    ] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert_eq!(
        (begin.epoch, begin.base, begin.term, begin.secondary),
        (1, None, 2, 2)
    );
    let asked = bench.ack(1);
    let [
        Do::Ask {
            request: ArbiterRequest::Swap { expected, new },
            ..
        },
    ] = &asked[..]
    else {
        panic!("{asked:?}")
    };
    assert_eq!((expected.as_ref(), new), (Some(&alone(1)), &pair()));
    assert_eq!(bench.status(), Protection::Pairing);
    assert_eq!(bench.swap(&asked), [Do::Release { epoch: 1 }, Do::Resume]);
}

#[test]
fn a_pair_that_was_certainly_not_recorded_is_given_up() {
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    let asked = bench.ack(1);
    let actions = bench.answer(&asked, ArbiterAnswer::Unavailable("refused".to_owned()));
    assert_eq!(actions[0], Do::GiveBack { epoch: 1 });
    assert!(matches!(actions[1], Do::CloseSession { session: 1, .. }));
    assert_eq!(actions[2..], [Do::OpenGate, Do::Resume]);
    assert_eq!(bench.status(), Protection::Unprotected);
}

#[test]
fn while_the_record_of_a_pair_is_in_doubt_nothing_leaves() {
    let (mut bench, _) = Bench::copied(Mode::Pipelined);
    bench.captured(1);
    let asked = bench.ack(1);
    assert_eq!(
        bench.answer(&asked, ArbiterAnswer::Unknown("time-out".to_owned())),
        []
    );
    assert_eq!(
        bench.feed(PrimaryEvent::PeerClosed {
            session: 1,
            reason: "reset".to_owned()
        }),
        []
    );
    assert!(!bench.primary.wants_peer());
    let asked = bench.wait(200);
    assert!(
        matches!(
            asked[..],
            [Do::Ask {
                request: ArbiterRequest::Read,
                ..
            }]
        ),
        "{asked:?}"
    );
    // It was carried out: the pair stands, and has lost its session.
    bench.store = pair();
    assert_eq!(bench.read(&asked), [Do::Release { epoch: 1 }]);
    assert!(bench.primary.wants_peer());
    assert_eq!(bench.status(), Protection::Deciding);
}

#[test]
fn a_link_that_breaks_before_the_first_ack_gives_the_right_to_act_alone_back() {
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    let actions = bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(actions, [Do::GiveBack { epoch: 1 }, Do::OpenGate, Do::Resume]);
    assert!(!bench.primary.wants_peer(), "not at once");
    bench.wait(1_000);
    assert!(bench.primary.wants_peer());
    let actions = bench.feed(PrimaryEvent::PeerConnected { session: 2 });
    assert!(
        matches!(&actions[..], [Do::Send { message: Message::Hello(hello), .. }] if hello.peer.is_none())
    );
}

#[test]
fn a_first_sync_without_ack_does_not_hold_output_for_ever() {
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    for _ in 0..60 {
        bench.hear(
            1,
            Message::Heartbeat(Heartbeat {
                sequence: 1,
                epoch: 0,
                trouble: None,
                readiness: None,
                wall_clock_ms: 0,
            }),
        );
        if bench.wait(100).contains(&Do::OpenGate) {
            return;
        }
    }
    panic!("output is held for ever");
}
