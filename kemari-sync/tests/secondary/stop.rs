//! A clean stop.

use kemari_sync::wire::{Goodbye, Message};
use kemari_sync::{ArbiterAnswer, ArbiterRequest, Phase, Record, SecondaryAction, SecondaryEvent};

use SecondaryAction as Do;

use super::support::*;

#[test]
fn a_stop_is_let_go_with_and_never_runs() {
    let mut bench = Bench::holding(true);
    let actions = bench.sync(2, Some(1), true);
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::LetGo(_),
                ..
            },
            Do::Apply { epoch: 2 }
        ]
    ));
    bench.feed(SecondaryEvent::Applied { epoch: 2 });
    let actions = bench.winning();
    assert!(
        matches!(actions[..], [Do::CloseSession { .. }, Do::Fence { .. }]),
        "its last writes may be under way"
    );
    let asked = bench.feed(SecondaryEvent::Fenced { result: Ok(()) });
    let [
        Do::Ask {
            request: ArbiterRequest::Swap { new, .. },
            ..
        },
    ] = &asked[..]
    else {
        panic!("{asked:?}")
    };
    assert_eq!(new.phase, Phase::Stopped);
    let actions = bench.answer(&asked, ArbiterAnswer::Swapped);
    assert!(matches!(actions[..], [Do::Forget { .. }, Do::Exit { .. }]));
}

#[test]
fn a_stopped_record_ends_the_secondary() {
    let mut bench = Bench::holding(false);
    let asked = bench.hear(1, Message::Goodbye(Goodbye::Stopped));
    let stopped = Record {
        term: 3,
        base: 3,
        peer: None,
        phase: Phase::Stopped,
        ..pair()
    };
    let actions = bench.read(&asked, stopped);
    assert!(
        matches!(actions[..], [Do::Forget { .. }, Do::Exit { .. }]),
        "{actions:?}"
    );
}
