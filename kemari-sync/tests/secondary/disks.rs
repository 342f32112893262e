//! Replicated disks on the receiving side.

use kemari_sync::SecondaryAction as Do;
use kemari_sync::wire::{DiskMark, Goodbye, Hello, Message};
use kemari_sync::{ArbiterAnswer, SecondaryEvent};

use crate::support::{Bench, begin, hello, pair};

fn mark(request: u64) -> DiskMark {
    DiskMark { disk: 0, request }
}

fn is_unfit(actions: &[Do], reason: &str) -> bool {
    actions.iter().any(|action| {
        matches!(action, Do::Send { message: Message::Goodbye(Goodbye::Unfit(text)), .. } if text == reason)
    })
}

#[test]
fn images_are_marked_before_the_primary_may_send_blocks() {
    let mut bench = Bench::copying(false);
    let asked = bench.hear(1, Message::CopyDisks(Vec::new()));
    assert_eq!(
        asked,
        [Do::MarkTargets {
            session: 1,
            plans: Vec::new()
        }]
    );
    let marked = |result| SecondaryEvent::TargetsMarked { session: 1, result };
    let ready = bench.feed(marked(Ok(())));
    assert_eq!(
        ready,
        [Do::Send {
            session: 1,
            message: Message::DisksReady
        }]
    );
    assert!(bench.feed(marked(Ok(()))).is_empty(), "it is not asked any more");
}

#[test]
fn an_image_that_cannot_be_marked_makes_the_secondary_unfit() {
    let mut bench = Bench::copying(false);
    bench.hear(1, Message::CopyDisks(Vec::new()));
    let result = Err("a full disk".to_owned());
    assert!(is_unfit(
        &bench.feed(SecondaryEvent::TargetsMarked { session: 1, result }),
        "a full disk"
    ));
}

#[test]
fn a_sync_does_not_begin_while_the_images_are_being_marked() {
    let mut bench = Bench::copying(false);
    bench.hear(1, Message::CopyDisks(Vec::new()));
    let actions = bench.hear(1, begin(1, None));
    assert!(
        matches!(
            &actions[..],
            [
                Do::Send {
                    message: Message::Goodbye(_),
                    ..
                },
                ..
            ]
        ),
        "{actions:?}"
    );
}

#[test]
fn a_replica_that_fails_gives_up_what_is_held_and_the_right_to_ask_with_it() {
    let mut bench = Bench::holding(false);
    let reason = "a full disk".to_owned();
    let actions = bench.feed(SecondaryEvent::ReplicaFailed { reason });
    assert!(is_unfit(&actions, "a full disk"), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Do::Forget { .. })));
    assert_eq!(bench.secondary.holds(), None);
    assert!(
        bench.wait(60_000).is_empty(),
        "it asks for a VM whose disk it does not have"
    );
}

/// The ask that was open may have won. When it has not, the failure counts.
#[test]
fn a_replica_that_fails_while_an_ask_is_open_gives_up_as_soon_as_it_is_known_not_to_have_won() {
    let mut bench = Bench::holding(false);
    bench.receive(2, Some(1), false);
    let asked = bench.suspecting();
    let asked = bench.read(&asked, pair());
    let reason = "a full disk".to_owned();
    assert!(bench.feed(SecondaryEvent::ReplicaFailed { reason }).is_empty());
    let refused = ArbiterAnswer::Unavailable("no connection".to_owned());
    let actions = bench.answer(&asked, refused);
    assert!(is_unfit(&actions, "a full disk"), "{actions:?}");
    assert_eq!(bench.secondary.holds(), None);
    assert!(
        !actions.iter().any(|action| matches!(action, Do::Apply { .. })),
        "nothing more is committed: {actions:?}"
    );
}

#[test]
fn what_is_durable_is_told_at_once_and_again_in_a_new_session() {
    let mut bench = Bench::holding(false);
    let told = |actions: &[Do]| -> Vec<Message> {
        actions
            .iter()
            .filter_map(|action| match action {
                Do::Send {
                    message: message @ Message::Flushed(_),
                    ..
                } => Some(message.clone()),
                _ => None,
            })
            .collect()
    };
    let actions = bench.feed(SecondaryEvent::DiskFlushed(mark(5)));
    assert_eq!(told(&actions), [Message::Flushed(mark(5))]);
    let reason = "cut".to_owned();
    bench.feed(SecondaryEvent::PeerClosed { session: 1, reason });
    assert!(told(&bench.feed(SecondaryEvent::DiskFlushed(mark(8)))).is_empty());
    let greeting = Hello {
        session: 2,
        term: 2,
        peer: Some(2),
        last: Some(1),
        ..hello()
    };
    let actions = bench.hear(2, Message::Hello(greeting));
    assert_eq!(told(&actions), [Message::Flushed(mark(8))]);
    assert_eq!(bench.hear(2, Message::Settled(mark(8))), [Do::Settled(mark(8))]);
}
