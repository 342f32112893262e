//! From alone to a pair.

use kemari_sync::wire::{Goodbye, Message};
use kemari_sync::{
    ArbiterAnswer, ArbiterRequest, Mode, PrimaryAction, PrimaryEvent, Protection, Record, Timing,
};

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

fn lost() -> [Option<Record>; 3] {
    let older = Record {
        term: 0,
        base: 0,
        ..alone(1)
    };
    [None, Some(older), Some(Record { store: 8, ..pair() })]
}

#[test]
fn a_pair_that_a_store_without_the_record_refuses_is_given_up() {
    for found in lost() {
        let (mut bench, _) = Bench::copied(Mode::Lockstep);
        bench.captured(1);
        let asked = bench.ack(1);
        let actions = bench.answer(&asked, ArbiterAnswer::Conflict(found));
        assert_eq!(actions[0], Do::GiveBack { epoch: 1 });
        assert_eq!(
            actions[2..],
            [Do::OpenGate, Do::Resume],
            "it was recorded nowhere"
        );
        assert_eq!(*bench.primary.record(), alone(1));
    }
}

/// Another store may have it, to which the secondary has a way.
#[test]
fn a_pair_whose_record_may_stand_where_it_is_not_seen_keeps_output_waiting() {
    for found in lost() {
        let (mut bench, _) = Bench::copied(Mode::Pipelined);
        bench.captured(1);
        let mut asked = bench.ack(1);
        bench.answer(&asked, ArbiterAnswer::Unknown("time-out".to_owned()));
        for _ in 0..3 {
            bench.hear(1, heartbeat());
            asked = bench.wait(Timing::default().ask_retry_ms);
            assert!(
                matches!(
                    &asked[..],
                    [Do::Ask {
                        request: ArbiterRequest::Read,
                        ..
                    }]
                ),
                "{asked:?}"
            );
            assert_eq!(bench.answer(&asked, ArbiterAnswer::Record(found.clone())), []);
        }
        let waiting = bench.primary.status(bench.now_ms).waiting.expect("it waits");
        assert!(
            waiting.contains("output waits") && waiting.contains("the arbiter"),
            "{waiting}"
        );
        // The store is the right one again.
        asked = bench.wait(Timing::default().ask_retry_ms);
        bench.store = pair();
        assert_eq!(bench.read(&asked), [Do::Release { epoch: 1 }]);
        assert_eq!(bench.status(), Protection::Protected);
    }
}

#[test]
fn a_pair_whose_record_passed_to_another_halts() {
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    let asked = bench.ack(1);
    let other = Record {
        owner: host("c", 3),
        ..alone(2)
    };
    let actions = bench.answer(&asked, ArbiterAnswer::Conflict(Some(other)));
    assert!(
        matches!(actions[..], [Do::Halt { .. }, Do::CloseSession { .. }]),
        "{actions:?}"
    );
}

#[test]
fn while_a_pair_is_made_the_outside_is_told_until_its_record_is_in_doubt() {
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    let now = |bench: &Bench| bench.primary.may_show(bench.now_ms);
    assert!(now(&bench), "nobody else can have it");
    bench.captured(1);
    assert!(now(&bench));
    let asked = bench.ack(1);
    assert!(!now(&bench), "the pair may be recorded");
    bench.swap(&asked);
    assert!(now(&bench));
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
        bench.hear(1, heartbeat());
        if bench.wait(100).contains(&Do::OpenGate) {
            return;
        }
    }
    panic!("output is held for ever");
}

/// Without an arbiter it would go on by what it may have committed.
#[test]
fn a_secondary_whose_first_sync_is_given_up_is_told_so() {
    let told = |actions: &[PrimaryAction]| {
        let is_alone = |action: &PrimaryAction| {
            matches!(
                action,
                Do::Send {
                    session: 1,
                    message: Message::Goodbye(Goodbye::Alone(_)),
                }
            )
        };
        let told = actions.iter().filter(|action| is_alone(action)).count();
        let before = actions.iter().position(is_alone);
        let closed = actions
            .iter()
            .position(|action| matches!(action, Do::CloseSession { .. }));
        assert!(told == 1 && before < closed, "{actions:?}");
        assert!(actions.contains(&Do::OpenGate), "{actions:?}");
    };
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    told(&bench.wait(Timing::default().suspicion_ms));
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    told(&bench.hear(1, Message::Prepare));
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    let reason = "no".to_owned();
    told(&bench.feed(PrimaryEvent::CaptureFailed { epoch: 1, reason }));
}

/// The record of the successor of the pair to be.
fn successor() -> Record {
    Record {
        term: 3,
        base: 3,
        owner: host("b", 2),
        peer: None,
        ..pair()
    }
}

#[test]
fn a_secondary_that_has_won_while_the_pair_is_recorded_is_what_an_arbiter_without_a_store_assumes() {
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    let asked = bench.ack(1);
    assert_eq!(bench.assumed, []);
    bench.hear(1, Message::Goodbye(Goodbye::Alone("it has won".to_owned())));
    assert_eq!(bench.assumed, [Do::Assume(successor())]);
    bench.swap(&asked);
    bench.store = successor();
    let asked = bench.wait(Timing::default().reconnect_ms);
    assert!(matches!(bench.read(&asked)[..], [Do::Halt { .. }]));
}

/// The secondary may have committed the first sync, and go on.
#[test]
fn a_host_that_fails_while_a_pair_is_made_leaves_a_record_of_the_pair() {
    let failing = || PrimaryEvent::HostFailing {
        reason: "KVM".to_owned(),
    };
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.feed(failing());
    assert_eq!(bench.assumed, [], "nothing was sent");
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    bench.feed(failing());
    assert_eq!(bench.assumed, [Do::Assume(pair())]);
    // It has.
    let (mut bench, _) = Bench::copied(Mode::Lockstep);
    bench.captured(1);
    bench.ack(1);
    bench.feed(failing());
    assert_eq!(bench.assumed, [Do::Assume(successor())]);
    let mut bench = Bench::new(Mode::Lockstep);
    bench.feed(failing());
    assert_eq!(bench.assumed, [], "nobody else can have it");
}
