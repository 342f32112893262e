//! Staging, check, commit, ack.

use kemari_sync::wire::{Begin, Commit, CommitId, Message};
use kemari_sync::{SecondaryAction, SecondaryEvent};

use SecondaryAction as Do;

use super::support::*;

#[test]
fn a_sync_must_build_upon_the_last_commit() {
    let wrong = [
        begin(2, None),
        begin(2, Some(0)),
        begin(1, Some(1)),
        Message::Begin(Begin {
            epoch: 2,
            base: Some(1),
            term: 3,
            store: 9,
            primary: 1,
            secondary: 2,
        }),
        Message::Begin(Begin {
            epoch: 2,
            base: Some(1),
            term: 2,
            store: 9,
            primary: 4,
            secondary: 2,
        }),
        Message::Begin(Begin {
            epoch: 2,
            base: Some(1),
            term: 2,
            store: 9,
            primary: 1,
            secondary: 4,
        }),
    ];
    for message in wrong {
        let mut bench = Bench::holding(false);
        assert_unfit(&bench.hear(1, message));
        assert_eq!(
            bench.secondary.holds(),
            Some(CommitId { term: 2, epoch: 1 }),
            "the last commit stays"
        );
    }
    assert_unfit(&Bench::copying(false).hear(1, begin(1, Some(0))));
    let of_a_later_term = Message::Begin(Begin {
        epoch: 1,
        base: None,
        term: 3,
        store: 9,
        primary: 1,
        secondary: 2,
    });
    assert_unfit(&Bench::copying(false).hear(1, of_a_later_term));
}

#[test]
fn a_check_of_an_earlier_sync_says_nothing_of_this_one() {
    let mut bench = Bench::holding(false);
    bench.receive(2, Some(1), false);
    let mut checked = |epoch, result| bench.feed(SecondaryEvent::Checked { epoch, result });
    assert_eq!(checked(1, Ok(())), []);
    assert_eq!(checked(1, Err("a bad page".to_owned())), []);
    let actions = checked(2, Ok(()));
    assert!(matches!(actions[..], [Do::Send { .. }, Do::Apply { epoch: 2 }]));
}

#[test]
fn with_a_commit_under_another_store_the_right_to_ask_goes_over_to_it() {
    let mut bench = Bench::holding(false);
    assert_eq!(bench.secondary.lives_under(), Some((9, 2)));
    let other = Message::Begin(Begin {
        epoch: 2,
        base: Some(1),
        term: 2,
        store: 8,
        primary: 1,
        secondary: 2,
    });
    bench.hear(1, other);
    assert_eq!(
        bench.secondary.lives_under(),
        Some((9, 2)),
        "nothing is committed yet"
    );
    bench.hear(
        1,
        Message::Commit(Commit {
            epoch: 2,
            pages: 1,
            states: 1,
            digest: 5,
            stop: false,
        }),
    );
    bench.feed(SecondaryEvent::Checked {
        epoch: 2,
        result: Ok(()),
    });
    assert_eq!(bench.secondary.lives_under(), Some((8, 2)));
}

#[test]
fn a_failed_check_commits_nothing() {
    let mut bench = Bench::holding(false);
    bench.receive(2, Some(1), false);
    let actions = bench.feed(SecondaryEvent::Checked {
        epoch: 2,
        result: Err("a bad page".to_owned()),
    });
    assert_unfit(&actions);
    assert_eq!(actions[2], Do::Discard { epoch: 2 });
    let mut bench = Bench::holding(false);
    bench.hear(1, begin(2, Some(1)));
    assert_unfit(&bench.feed(SecondaryEvent::StagingFailed {
        epoch: 2,
        reason: "full".to_owned(),
    }));
    assert_eq!(bench.secondary.holds(), Some(CommitId { term: 2, epoch: 1 }));
}

#[test]
fn an_ack_waits_until_the_commit_before_is_applied() {
    let mut bench = Bench::holding(false);
    assert!(matches!(
        bench.sync(2, Some(1), false)[..],
        [Do::Send { .. }, Do::Apply { epoch: 2 }]
    ));
    assert_eq!(bench.sync(3, Some(2), false), []);
    let actions = bench.feed(SecondaryEvent::Applied { epoch: 2 });
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Ack(_),
                ..
            },
            Do::Apply { epoch: 3 }
        ]
    ));
}
