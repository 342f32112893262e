//! The way to run the VM, or to lose it.

use kemari_sync::wire::{CommitId, Goodbye, Message};
use kemari_sync::{
    ArbiterAnswer, ArbiterRequest, Phase, Protection, Record, Reign, SecondaryAction, SecondaryEvent, Timing,
};

use SecondaryAction as Do;

use super::support::*;

#[test]
fn a_takeover_asks_wins_rolls_back_fences_restores_declares_and_runs() {
    let mut bench = Bench::holding(true);
    bench.hear(1, begin(2, Some(1)));
    let asked = bench.suspecting();
    let asked = bench.read(&asked, pair());
    let [
        Do::Ask {
            request:
                ArbiterRequest::Swap {
                    expected: Some(expected),
                    new,
                },
            ..
        },
    ] = &asked[..]
    else {
        panic!("{asked:?}")
    };
    assert_eq!((expected, new.term, new.phase), (&pair(), 3, Phase::Won));
    let actions = bench.answer(&asked, ArbiterAnswer::Swapped);
    assert!(matches!(
        &actions[..],
        [Do::CloseSession { .. }, Do::Discard { epoch: 2 }, Do::Fence { old }] if *old == host("a", 1)
    ));
    assert_eq!(
        bench.feed(SecondaryEvent::Fenced { result: Ok(()) }),
        [Do::Restore { epoch: 1 }]
    );
    let asked = bench.feed(SecondaryEvent::Restored { result: Ok(()) });
    assert!(
        matches!(asked[..], [Do::Ask { .. }]),
        "the guest does not run before the record says so"
    );
    let record = Record {
        term: 3,
        base: 3,
        owner: host("b", 2),
        peer: None,
        ..pair()
    };
    let actions = bench.answer(&asked, ArbiterAnswer::Swapped);
    assert_eq!(
        actions,
        [Do::Run(Reign {
            record,
            last_epoch: 1
        })]
    );
    assert!(bench.secondary.is_over());
}

#[test]
fn a_takeover_waits_for_the_last_commit_to_be_applied() {
    let mut bench = Bench::holding(false);
    bench.sync(2, Some(1), false);
    assert!(matches!(bench.winning()[..], [Do::CloseSession { .. }]));
    assert_eq!(
        bench.feed(SecondaryEvent::Applied { epoch: 2 }),
        [Do::Restore { epoch: 2 }]
    );
}

#[test]
fn while_an_ask_is_open_nothing_is_committed() {
    let mut bench = Bench::holding(false);
    bench.receive(2, Some(1), false);
    let asked = bench.suspecting();
    let asked = bench.read(&asked, pair());
    assert_eq!(
        bench.feed(SecondaryEvent::Checked {
            epoch: 2,
            result: Ok(())
        }),
        []
    );
    assert_eq!(bench.secondary.holds(), Some(CommitId { term: 2, epoch: 1 }));
    // Nothing was done: the ask is over for now, and the sync is good.
    let actions = bench.answer(&asked, ArbiterAnswer::Unavailable("refused".to_owned()));
    assert!(
        matches!(
            actions[..],
            [
                Do::Send {
                    message: Message::Ack(_),
                    ..
                },
                Do::Apply { epoch: 2 }
            ]
        ),
        "{actions:?}"
    );
}

#[test]
fn a_primary_that_is_heard_again_is_not_taken_over() {
    let mut bench = Bench::holding(false);
    let asked = bench.suspecting();
    bench.hear(1, begin(2, Some(1)));
    assert_eq!(bench.read(&asked, pair()), [], "nobody asks any more");
    assert_eq!(
        bench.secondary.status(bench.now_ms).protection,
        Protection::Protected
    );
    assert!(bench.wait(Timing::default().suspicion_ms - 1).is_empty());
}

#[test]
fn a_broken_link_may_be_replaced_in_time() {
    let mut bench = Bench::holding(false);
    bench.feed(SecondaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(bench.wait(Timing::default().reconnect_ms - 1), []);
    assert!(matches!(
        bench.wait(1)[..],
        [Do::Ask {
            request: ArbiterRequest::Read,
            ..
        }]
    ));
    assert!(matches!(
        bench.hear(2, Message::Hello(hello_again()))[..],
        [Do::Send {
            message: Message::Welcome(_),
            ..
        }]
    ));
}

#[test]
fn nobody_is_welcome_while_a_won_term_is_at_stake() {
    let mut bench = Bench::holding(true);
    bench.winning();
    let actions = bench.hear(2, Message::Hello(hello_again()));
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Refuse(_),
                ..
            },
            Do::CloseSession { .. }
        ]
    ));
}

#[test]
fn a_failed_fence_is_tried_again_only_while_the_win_stands() {
    let mut bench = Bench::holding(true);
    bench.winning();
    let failed = || SecondaryEvent::Fenced {
        result: Err("no route".to_owned()),
    };
    assert_eq!(bench.feed(failed()), []);
    let waiting = bench.secondary.status(bench.now_ms).waiting.expect("it waits");
    assert!(waiting.contains("no route"), "{waiting}");
    let asked = bench.wait(Timing::default().takeover_retry_ms);
    let won = Record {
        term: 3,
        owner: host("b", 2),
        peer: Some(host("a", 1)),
        phase: Phase::Won,
        ..pair()
    };
    assert_eq!(bench.read(&asked, won.clone()), [Do::Fence { old: host("a", 1) }]);
    bench.feed(failed());
    let asked = bench.wait(Timing::default().takeover_retry_ms);
    let acting = Record {
        term: 4,
        base: 4,
        owner: host("a", 1),
        peer: None,
        ..pair()
    };
    assert!(
        matches!(bench.read(&asked, acting)[..], [Do::Forget { .. }]),
        "the loser has replaced it"
    );
}

#[test]
fn a_failed_restore_never_runs() {
    let mut bench = Bench::holding(false);
    assert!(matches!(
        bench.winning()[..],
        [Do::CloseSession { .. }, Do::Restore { epoch: 1 }]
    ));
    assert_eq!(
        bench.feed(SecondaryEvent::Restored {
            result: Err("KVM".to_owned())
        }),
        []
    );
    let asked = bench.wait(Timing::default().takeover_retry_ms);
    assert!(matches!(
        asked[..],
        [Do::Ask {
            request: ArbiterRequest::Read,
            ..
        }]
    ));
}

#[test]
fn a_lost_ask_is_forgotten_when_the_other_acts() {
    let mut bench = Bench::holding(false);
    let asked = bench.suspecting();
    let won_by_the_other = Record {
        term: 3,
        phase: Phase::Won,
        ..pair()
    };
    assert_eq!(bench.read(&asked, won_by_the_other), []);
    assert!(
        bench.secondary.holds().is_some(),
        "the state is kept until the other acts"
    );
    let asked = bench.wait(200);
    let acting = Record {
        term: 3,
        base: 3,
        peer: None,
        ..pair()
    };
    let actions = bench.read(&asked, acting);
    assert!(matches!(
        actions[..],
        [Do::CloseSession { .. }, Do::Forget { .. }]
    ));
    assert_eq!(bench.secondary.holds(), None);
}

#[test]
fn a_hand_over_is_taken_at_once_and_an_operators_word_too() {
    let mut bench = Bench::holding(false);
    let actions = bench.hear(1, Message::Goodbye(Goodbye::HandOver("KVM".to_owned())));
    assert!(matches!(actions[..], [Do::CloseSession { .. }, Do::Ask { .. }]));
    let mut bench = Bench::holding(false);
    assert!(matches!(
        bench.feed(SecondaryEvent::OperatorTakeover)[..],
        [Do::Ask { .. }]
    ));
    assert_eq!(
        Bench::copying(false).feed(SecondaryEvent::OperatorTakeover),
        [],
        "there is nothing to take over"
    );
}
