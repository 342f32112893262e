//! Who is accepted as a primary.

use kemari_sync::wire::{CommitId, Hello, Message};
use kemari_sync::{Protection, SecondaryAction, SecondaryEvent, Timing};

use SecondaryAction as Do;

use super::support::*;

#[test]
fn strangers_are_refused_with_a_reason() {
    let cases = [
        (
            Hello {
                protocol: 9,
                ..hello()
            },
            "same version",
        ),
        (
            Hello {
                vm: "other".to_owned(),
                ..hello()
            },
            "for VM vm",
        ),
        (
            Hello {
                config_digest: 8,
                ..hello()
            },
            "configurations differ",
        ),
        (
            Hello {
                incarnation: host("b", 2),
                ..hello()
            },
            "follow itself",
        ),
        (
            Hello {
                term: u64::MAX,
                ..hello()
            },
            "no VM has come to term",
        ),
    ];
    for (hello, why) in cases {
        let mut bench = Bench::new(false);
        let actions = bench.hear(1, Message::Hello(hello));
        let [
            Do::Send {
                message: Message::Refuse(text),
                ..
            },
            Do::CloseSession { .. },
        ] = &actions[..]
        else {
            panic!("{actions:?}")
        };
        assert!(text.contains(why), "{text}");
        assert_eq!(bench.secondary.status(0).protection, Protection::Unprotected);
    }
    let mut bench = Bench::new(false);
    assert!(matches!(
        bench.hear(1, Message::Prepare)[..],
        [Do::CloseSession { session: 1, .. }]
    ));
}

#[test]
fn a_greeting_that_a_newer_one_has_overtaken_begins_no_session() {
    let mut bench = Bench::holding(false);
    // The session of the commit was the second; the connection of the first is heard only now.
    bench.hear(2, Message::Hello(hello_again()));
    let actions = bench.hear(3, Message::Hello(hello()));
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                session: 3,
                message: Message::Refuse(_)
            },
            Do::CloseSession { session: 3, .. }
        ]
    ));
    assert!(bench.secondary.holds().is_some(), "the commit stays");
}

#[test]
fn whoever_holds_a_commit_follows_nobody_else() {
    let mut bench = Bench::holding(false);
    let another = Hello {
        incarnation: host("c", 3),
        ..hello_again()
    };
    let actions = bench.hear(2, Message::Hello(another.clone()));
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Refuse(_),
                ..
            },
            Do::CloseSession { session: 2, .. }
        ]
    ));
    bench.feed(SecondaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    let actions = bench.hear(2, Message::Hello(another));
    let Do::Send {
        message: Message::Refuse(text),
        ..
    } = &actions[0]
    else {
        panic!("{actions:?}");
    };
    assert!(text.contains("holds term 2"), "{text}");
    assert_eq!(bench.secondary.holds(), Some(CommitId { term: 2, epoch: 1 }));
}

#[test]
fn the_same_pair_goes_on_in_a_new_session() {
    let mut bench = Bench::holding(false);
    bench.receive(2, Some(1), false);
    let actions = bench.hear(2, Message::Hello(hello_again()));
    assert!(
        matches!(actions[0], Do::CloseSession { session: 1, .. }),
        "the old one is closed first"
    );
    assert_eq!(actions[1], Do::Discard { epoch: 2 });
    assert!(
        matches!(&actions[2], Do::Send { session: 2, message: Message::Welcome(welcome) }
        if welcome.last == Some(CommitId { term: 2, epoch: 1 }))
    );
    assert_eq!(
        bench.feed(SecondaryEvent::Checked {
            epoch: 2,
            result: Ok(())
        }),
        [],
        "it was rolled back"
    );
    assert_eq!(
        bench.hear(2, begin(3, Some(1))),
        [Do::Stage { session: 2, epoch: 3 }]
    );
}

#[test]
fn a_primary_whose_record_leaves_this_side_out_makes_its_commit_void() {
    let never_recorded = hello();
    let alone_since = Hello { term: 3, ..hello() };
    let with_another = Hello {
        term: 2,
        peer: Some(3),
        ..hello()
    };
    for hello in [never_recorded, alone_since, with_another] {
        let mut bench = Bench::holding(false);
        bench.feed(SecondaryEvent::PeerClosed {
            session: 1,
            reason: "reset".to_owned(),
        });
        let actions = bench.hear(2, Message::Hello(hello));
        let [
            Do::Forget { .. },
            Do::Send {
                message: Message::Welcome(welcome),
                ..
            },
        ] = &actions[..]
        else {
            panic!("{actions:?}");
        };
        assert_eq!(welcome.last, None);
        assert_eq!(bench.secondary.holds(), None);
    }
}

#[test]
fn an_unfinished_copy_is_worth_nothing() {
    let mut bench = Bench::copying(false);
    let actions = bench.feed(SecondaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert!(matches!(actions[..], [Do::Forget { .. }]));
    let mut bench = Bench::copying(false);
    let actions = bench.wait(Timing::default().suspicion_ms);
    assert!(
        matches!(actions[..], [Do::CloseSession { .. }, Do::Forget { .. }]),
        "{actions:?}"
    );
    let mut bench = Bench::new(false);
    bench.hear(1, Message::Hello(hello()));
    bench.hear(1, Message::Prepare);
    let no_memory = SecondaryEvent::Prepared {
        session: 1,
        result: Err("no memory".to_owned()),
    };
    assert_unfit(&bench.feed(no_memory));
}

#[test]
fn a_proof_is_sent_back_as_it_came() {
    let mut bench = Bench::new(false);
    bench.hear(1, Message::Hello(hello()));
    let proof = Message::Proof { bytes: 64 << 10 };
    let message = proof.clone();
    assert_eq!(bench.hear(1, proof), [Do::Send { session: 1, message }]);
}

/// A peer that sent them without end, and took none back, swelled this side by more than a GiB in ten
/// seconds.
#[test]
fn a_second_proof_ends_the_session() {
    let mut bench = Bench::new(false);
    bench.hear(1, Message::Hello(hello()));
    let proof = || Message::Proof { bytes: 64 << 10 };
    bench.hear(1, proof());
    assert_unfit(&bench.hear(1, proof()));
}
