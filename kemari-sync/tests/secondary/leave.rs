//! A secondary whose process is told to end, and what it says of its host.

use kemari_sync::wire::{Goodbye, Heartbeat, Message};
use kemari_sync::{Phase, READINESS_MS_MAX, Record, SecondaryAction, SecondaryEvent, Trouble};

use SecondaryAction as Do;

use super::support::*;

#[test]
fn it_tells_its_primary_gives_up_what_it_holds_and_ends() {
    let mut bench = Bench::holding(true);
    let actions = bench.feed(SecondaryEvent::OperatorLeave);
    assert!(
        matches!(
            actions[..],
            [
                Do::Send {
                    message: Message::Goodbye(Goodbye::Unfit(_)),
                    ..
                },
                Do::CloseSession { .. },
                Do::Forget { .. },
                Do::Leave
            ]
        ),
        "{actions:?}"
    );
    assert_eq!(bench.secondary.holds(), None);
    assert!(bench.secondary.is_over());
}

#[test]
fn without_a_primary_it_just_ends() {
    let actions = Bench::new(false).feed(SecondaryEvent::OperatorLeave);
    assert_eq!(actions, [Do::Leave]);
}

#[test]
fn it_stays_while_the_vm_may_depend_on_it() {
    // Its primary is silent, and the arbiter is being asked.
    let mut bench = Bench::holding(true);
    bench.suspecting();
    assert_eq!(bench.feed(SecondaryEvent::OperatorLeave), []);
    // The link broke a moment ago: whether the primary lives is not known yet.
    let mut bench = Bench::holding(true);
    bench.feed(SecondaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(bench.feed(SecondaryEvent::OperatorLeave), []);
    assert!(bench.secondary.holds().is_some() && !bench.secondary.is_over());
}

#[test]
fn its_trouble_is_told_at_once_and_with_every_heartbeat() {
    let mut bench = Bench::holding(false);
    let trouble = Some(Trouble::Uplink("x".repeat(2000)));
    let actions = bench.feed(SecondaryEvent::Health { trouble });
    let [
        Do::Send {
            message: Message::Heartbeat(Heartbeat {
                trouble: Some(told), ..
            }),
            ..
        },
    ] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    // It fits into a message.
    assert!(told.to_string().len() < 600);
}

#[test]
fn its_readiness_is_told_at_once_when_it_changes_and_grows_old() {
    let mut bench = Bench::holding(false);
    let told = |actions: &[Do]| match actions {
        [
            Do::Send {
                message: Message::Heartbeat(Heartbeat { readiness, .. }),
                ..
            },
        ] => readiness.clone(),
        [] => None,
        other => panic!("{other:?}"),
    };
    let found = |reasons: &[&str]| SecondaryEvent::Readiness {
        reasons: reasons.iter().map(|reason| reason.to_string()).collect(),
    };
    let well = told(&bench.feed(found(&[]))).expect("the first word is a change");
    assert!(well.is_ready());
    assert_eq!(
        told(&bench.feed(found(&[]))),
        None,
        "the next heartbeat is soon enough"
    );
    let unwell = told(&bench.feed(found(&["no TAP"]))).expect("a change");
    assert_eq!(unwell.reasons, ["no TAP"]);
    bench.feed(found(&[]));
    let status = |later_ms| bench.secondary.status(bench.now_ms + later_ms).readiness;
    assert!(status(0).is_some_and(|readiness| readiness.is_ready()));
    assert!(status(READINESS_MS_MAX + 1).is_some_and(|readiness| !readiness.is_ready()));
    // Nothing is held, so there is nothing to be ready for.
    assert_eq!(Bench::new(false).secondary.status(0).readiness, None);
}

#[test]
fn what_the_primary_says_is_what_an_arbiter_without_a_store_assumes() {
    let mut bench = Bench::holding(false);
    assert_eq!(bench.assumed, [Do::Assume(pair())]);
    bench.sync(2, Some(1), false);
    assert_eq!(bench.assumed.len(), 1, "once a pair");
    for (goodbye, phase) in [
        (Goodbye::Alone("it wants to".to_owned()), Phase::Acting),
        (Goodbye::Stopped, Phase::Stopped),
    ] {
        let mut bench = Bench::holding(false);
        bench.hear(1, Message::Goodbye(goodbye));
        let record = Record {
            term: 3,
            base: 3,
            peer: None,
            phase,
            ..pair()
        };
        assert_eq!(bench.assumed[1..], [Do::Assume(record)]);
    }
    let mut bench = Bench::holding(false);
    bench.hear(1, Message::Goodbye(Goodbye::HandOver("KVM".to_owned())));
    assert_eq!(bench.assumed.len(), 1, "the VM is this side's");
}

#[test]
fn who_is_unfit_assumes_that_the_primary_goes_on_alone_until_it_is_back() {
    let mut bench = Bench::holding(false);
    bench.hear(1, Message::Prepare);
    let alone = Record {
        term: 3,
        base: 3,
        peer: None,
        ..pair()
    };
    assert_eq!(bench.assumed[1..], [Do::Assume(alone)]);
    // It has not heard it, and the pair stands.
    bench.hear(2, Message::Hello(hello_again()));
    assert_eq!(bench.assumed[2..], [Do::Assume(pair())]);
    // With nothing held there is nothing to give up.
    let mut bench = Bench::new(false);
    bench.hear(1, Message::Hello(hello()));
    bench.hear(1, Message::Prepare);
    bench.hear(1, Message::Prepare);
    assert_eq!(bench.assumed, []);
}
