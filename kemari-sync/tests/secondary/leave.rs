//! A secondary whose process is told to end, and what it says of its host.

use kemari_sync::wire::{Goodbye, Heartbeat, Message};
use kemari_sync::{SecondaryAction, SecondaryEvent, Trouble};

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
