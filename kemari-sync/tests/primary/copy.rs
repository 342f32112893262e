//! The first copy, and what must be certain before it.

use kemari_sync::wire::Message;
use kemari_sync::{ArbiterAnswer, Mode, PrimaryAction, PrimaryEvent, Record};

use PrimaryAction as Do;

use super::support::*;

#[test]
fn a_copy_goes_on_until_few_pages_are_left_or_is_given_up() {
    let mut bench = Bench::new(Mode::Lockstep);
    bench.feed(PrimaryEvent::PeerConnected { session: 1 });
    let asked = bench.welcome(1, 2, None);
    bench.read(&asked);
    bench.prove(1);
    bench.hear(
        1,
        Message::Ready {
            staging_pages_max: 100,
            disks: Vec::new(),
        },
    );
    let round = |dirty_pages| PrimaryEvent::CopyRoundSent {
        session: 1,
        dirty_pages,
    };
    for _ in 0..2 {
        assert_eq!(
            bench.feed(round(5_000)),
            [Do::CopyRound {
                session: 1,
                first: false
            }]
        );
    }
    assert!(matches!(bench.feed(round(5_000))[..], [Do::CloseSession { .. }]));
    assert!(!bench.primary.wants_peer());
}

#[test]
fn protection_waits_for_the_arbiter_before_the_first_page() {
    let mut bench = Bench::new(Mode::Lockstep);
    bench.feed(PrimaryEvent::PeerConnected { session: 1 });
    let asked = bench.welcome(1, 2, None);
    assert_eq!(
        bench.answer(&asked, ArbiterAnswer::Unavailable("no route".to_owned())),
        []
    );
    let waiting = bench.primary.status(0).waiting.expect("it waits");
    assert!(waiting.contains("no route"), "{waiting}");
}

#[test]
fn a_record_that_passed_to_another_halts() {
    let mut bench = Bench::new(Mode::Lockstep);
    bench.feed(PrimaryEvent::PeerConnected { session: 1 });
    let asked = bench.welcome(1, 2, None);
    bench.store = Record {
        owner: host("c", 3),
        ..alone(2)
    };
    assert!(matches!(
        bench.read(&asked)[..],
        [Do::Halt { .. }, Do::CloseSession { .. }]
    ));
}
