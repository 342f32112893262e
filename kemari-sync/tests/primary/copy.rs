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

/// What a store may show that has lost the record of a VM that runs alone, was restored, or is another one.
fn doubtful() -> [Option<Record>; 4] {
    [
        None,
        Some(Record {
            term: 0,
            base: 0,
            ..alone(1)
        }),
        Some(Record { store: 8, ..alone(1) }),
        Some(Record {
            store: 8,
            owner: host("c", 3),
            ..alone(5)
        }),
    ]
}

fn assert_goes_on_alone(bench: &Bench, actions: &[PrimaryAction]) {
    let [Do::CloseSession { reason, .. }] = actions else {
        panic!("nothing else happens: {actions:?}")
    };
    assert!(reason.contains("`kemari adopt-record`"), "{reason}");
    assert!(!bench.primary.is_over() && bench.primary.may_show(bench.now_ms));
    assert!(!bench.primary.wants_peer(), "not at once");
    let waiting = bench.primary.status(bench.now_ms).waiting.expect("it says why");
    assert!(waiting.contains("`kemari adopt-record`"), "{waiting}");
}

#[test]
fn a_lost_record_does_not_end_the_vm_that_a_secondary_would_join() {
    for found in doubtful() {
        let mut bench = Bench::new(Mode::Lockstep);
        bench.feed(PrimaryEvent::PeerConnected { session: 1 });
        let asked = bench.welcome(1, 2, None);
        let actions = bench.answer(&asked, ArbiterAnswer::Record(found.clone()));
        assert_goes_on_alone(&bench, &actions);
        // The same before the first sync.
        let mut bench = Bench::new(Mode::Lockstep);
        let asked = bench.copy_up_to_confirmation();
        let actions = bench.answer(&asked, ArbiterAnswer::Record(found));
        assert_goes_on_alone(&bench, &actions);
    }
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
