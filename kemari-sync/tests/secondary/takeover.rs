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
        [
            Do::Send { message: Message::Goodbye(Goodbye::Alone(_)), .. },
            Do::CloseSession { .. },
            Do::Discard { epoch: 2 },
            Do::Fence { old, until_ms },
        ] if *old == host("a", 1) && *until_ms == bench.now_ms + FENCE_MS_MAX
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
    assert!(matches!(
        bench.winning()[..],
        [
            Do::Send {
                message: Message::Goodbye(Goodbye::Alone(_)),
                ..
            },
            Do::CloseSession { .. }
        ]
    ));
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
    // Whoever lives there may go on, and is told so.
    let told = bench.feed(fence_fails());
    assert_eq!(new_record(&told).work.fence_ms_max, 0);
    let waiting = bench.secondary.status(bench.now_ms).waiting.expect("it waits");
    assert!(waiting.contains("no route"), "{waiting}");
    assert_eq!(bench.answer(&told, ArbiterAnswer::Swapped), []);
    let asked = bench.wait(Timing::default().takeover_retry_ms);
    let told = bench.read(&asked, new_record(&told));
    // No fence begins before the record says again for how long it may strike.
    let says = new_record(&told);
    assert!(
        says.work.fence_ms_max >= FENCE_MS_MAX && says.work.number == 2,
        "{says:?}"
    );
    assert_eq!(says.work.beat, 0, "a winner that fails does not get on");
    let fence = Do::Fence {
        old: host("a", 1),
        until_ms: bench.now_ms + FENCE_MS_MAX,
    };
    assert_eq!(bench.answer(&told, ArbiterAnswer::Swapped), [fence]);
    let told = bench.feed(fence_fails());
    bench.answer(&told, ArbiterAnswer::Swapped);
    let asked = bench.wait(Timing::default().takeover_retry_ms);
    let acting = Record {
        term: 4,
        base: 4,
        owner: host("a", 1),
        peer: None,
        ..pair()
    };
    let told = bench.read(&asked, acting);
    assert!(
        matches!(told[..], [Do::Forget { .. }]),
        "the loser has replaced it: {told:?}"
    );
}

#[test]
fn a_fence_does_not_begin_when_it_may_strike_later_than_the_record_says() {
    let mut bench = Bench::holding(true);
    let asked = bench.suspecting();
    let asked = bench.read(&asked, pair());
    let first = new_record(&asked);
    // The answer comes late: others may have seen the record long ago.
    bench.now_ms += Timing::default().won_stall_ms + 1;
    let told = bench.answer(&asked, ArbiterAnswer::Swapped);
    assert!(
        !told.iter().any(|action| matches!(action, Do::Fence { .. })),
        "{told:?}"
    );
    let second = new_record(&told);
    assert_eq!(
        (second.work.number, second.work.fence_ms_max),
        (1, first.work.fence_ms_max)
    );
    let told = bench.answer(&told, ArbiterAnswer::Swapped);
    assert!(matches!(told[..], [Do::Fence { .. }]), "{told:?}");
}

#[test]
fn a_winner_that_restores_says_that_it_gets_on() {
    let mut bench = Bench::holding(false);
    bench.winning();
    let beat_ms = Timing::default().won_stall_ms / 3;
    assert_eq!(bench.wait(beat_ms - 1), []);
    for beat in 1..=3 {
        let told = bench.wait(beat_ms);
        let work = new_record(&told).work;
        assert_eq!((work.beat, work.fence_ms_max), (beat, 0));
        assert_eq!(bench.answer(&told, ArbiterAnswer::Swapped), []);
    }
    // One that is under way is resolved before anything else is asked.
    let told = bench.wait(beat_ms);
    assert_eq!(bench.feed(SecondaryEvent::Restored { result: Ok(()) }), []);
    let asked = bench.answer(&told, ArbiterAnswer::Swapped);
    let acting = new_record(&asked);
    assert_eq!((acting.phase, acting.work), (Phase::Acting, Default::default()));
}

#[test]
fn a_restore_that_never_ends_counts_as_stuck() {
    let mut bench = Bench::holding(false);
    bench.winning();
    let mut beats = 0;
    let mut told = bench.wait(Timing::default().won_stall_ms);
    while !told.is_empty() {
        beats += 1;
        assert!(beats < 1_000, "it beats for ever");
        told = bench.answer(&told, ArbiterAnswer::Swapped);
        told.extend(bench.wait(Timing::default().won_stall_ms));
    }
    assert!(beats > 10, "{beats}");
}

fn fence_fails() -> SecondaryEvent {
    SecondaryEvent::Fenced {
        result: Err("no route".to_owned()),
    }
}

/// The record that is to be written.
fn new_record(actions: &[SecondaryAction]) -> Record {
    let swap = actions.iter().find_map(|action| match action {
        Do::Ask {
            request: ArbiterRequest::Swap { new, .. },
            ..
        } => Some(new.clone()),
        _ => None,
    });
    swap.unwrap_or_else(|| panic!("nothing is written: {actions:?}"))
}

#[test]
fn a_failed_restore_never_runs() {
    let mut bench = Bench::holding(false);
    assert!(matches!(
        bench.winning()[..],
        [
            Do::Send {
                message: Message::Goodbye(Goodbye::Alone(_)),
                ..
            },
            Do::CloseSession { .. },
            Do::Restore { epoch: 1 }
        ]
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

#[test]
fn only_who_says_that_its_disks_are_closed_is_not_fenced() {
    for (goodbye, fences) in [
        (Goodbye::Closed("KVM".to_owned()), false),
        (Goodbye::SwitchOver { paused_ms: 0 }, false),
        (Goodbye::HandOver("KVM".to_owned()), true),
        (Goodbye::Alone("it wants to".to_owned()), true),
        (Goodbye::Unfit("it is".to_owned()), true),
    ] {
        let mut bench = Bench::holding(true);
        let asked = bench.hear(1, Message::Goodbye(goodbye.clone()));
        let asked = bench.read(&asked, pair());
        assert_eq!(new_record(&asked).work.fence_ms_max > 0, fences, "{goodbye:?}");
        let actions = bench.answer(&asked, ArbiterAnswer::Swapped);
        match (fences, &actions[..]) {
            (true, [Do::Fence { .. }]) | (false, [Do::Restore { .. }]) => {}
            _ => panic!("{goodbye:?}: {actions:?}"),
        }
    }
}

/// Each attempt takes longer than the pause between two beats.
#[test]
fn a_restore_that_fails_again_and_again_counts_as_stuck() {
    let mut bench = Bench::holding(false);
    let asked = bench.suspecting();
    let asked = bench.read(&asked, pair());
    let mut won = new_record(&asked);
    let mut actions = bench.answer(&asked, ArbiterAnswer::Swapped);
    for _ in 0..300 {
        assert!(matches!(actions.last(), Some(Do::Restore { .. })), "{actions:?}");
        let told = bench.wait(Timing::default().won_stall_ms / 3);
        if !told.is_empty() {
            won = new_record(&told);
            bench.answer(&told, ArbiterAnswer::Swapped);
        }
        let result = Err("KVM".to_owned());
        bench.feed(SecondaryEvent::Restored { result });
        let asked = bench.wait(Timing::default().takeover_retry_ms);
        actions = bench.read(&asked, won.clone());
    }
    assert!((10..200).contains(&won.work.beat), "it beats for ever: {won:?}");
}

#[test]
fn whoever_cannot_trust_the_arbiter_asks_and_tries_nothing_more() {
    let mut bench = Bench::holding(false);
    assert!(bench.winning().contains(&Do::Restore { epoch: 1 }));
    let asked = bench.wait(Timing::default().won_stall_ms / 3);
    assert_eq!(bench.answer(&asked, ArbiterAnswer::Conflict(None)), []);
    let result = Err("no disk".to_owned());
    assert_eq!(bench.feed(SecondaryEvent::Restored { result }), []);
    assert_eq!(bench.wait(60_000), []);
    let waiting = bench.secondary.status(bench.now_ms).waiting.expect("it says why");
    assert!(waiting.contains("cannot be trusted"), "{waiting}");
}

#[test]
fn who_wins_again_fences_and_restores_again() {
    let mut bench = Bench::holding(true);
    bench.winning();
    bench.feed(SecondaryEvent::Fenced { result: Ok(()) });
    let asked = bench.feed(SecondaryEvent::Restored { result: Ok(()) });
    // The other has replaced this side before it could say that it acts, and dies in turn.
    let rival = Record {
        term: 4,
        phase: Phase::Won,
        ..pair()
    };
    let mut actions = bench.answer(&asked, ArbiterAnswer::Conflict(Some(rival.clone())));
    assert_eq!(actions, []);
    let limit_ms = bench.now_ms + 10 * Timing::default().won_stall_ms;
    while !actions.iter().any(|action| {
        matches!(
            action,
            Do::Ask {
                request: ArbiterRequest::Swap { .. },
                ..
            }
        )
    }) {
        assert!(bench.now_ms < limit_ms, "nobody replaces a winner that stalls");
        let asked = bench.wait(Timing::default().ask_retry_ms);
        actions = match asked.is_empty() {
            true => asked,
            false => bench.read(&asked, rival.clone()),
        };
    }
    assert_eq!(new_record(&actions).term, 5);
    let actions = bench.answer(&actions, ArbiterAnswer::Swapped);
    assert!(matches!(actions[..], [Do::Fence { .. }]), "{actions:?}");
    let actions = bench.feed(SecondaryEvent::Fenced { result: Ok(()) });
    assert_eq!(
        actions,
        [Do::Restore { epoch: 1 }],
        "the disks must know of the term"
    );
}
