//! A record that the arbiter has lost is given back under the running VM.

use kemari_sync::{
    ArbiterAnswer, ArbiterRequest, Mode, PrimaryAction, PrimaryEvent, Protection, Record, Timing,
};

use PrimaryAction as Do;

use super::support::*;

/// The id that the store gets.
const STORE: u128 = 77;

fn adopt(bench: &mut Bench) -> Vec<PrimaryAction> {
    bench.feed(PrimaryEvent::OperatorAdopt { store: STORE })
}

fn assert_refused(actions: &[PrimaryAction], why: &str) {
    let [.., Do::Adopted(Err(reason))] = actions else {
        panic!("{actions:?}")
    };
    assert!(reason.contains(why), "{reason}");
}

/// The order is given, and this was found.
fn ordered(found: Option<Record>) -> (Bench, Vec<PrimaryAction>) {
    let mut bench = Bench::protected(Mode::Pipelined);
    let asked = adopt(&mut bench);
    let actions = bench.answer(&asked, ArbiterAnswer::Record(found));
    (bench, actions)
}

/// Up to the swap, which must come from what was found.
fn agreed(found: Option<Record>) -> (Bench, Vec<PrimaryAction>) {
    let (mut bench, actions) = ordered(found.clone());
    assert_eq!(
        actions,
        [capture(2)],
        "the secondary is to agree first, and nothing is written before"
    );
    let actions = bench.captured(2);
    let [Do::Resume, Do::Transmit { begin, .. }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!((begin.store, begin.term), (STORE, 2));
    let actions = bench.ack(2);
    let [Do::Release { epoch: 2 }, asked @ ..] = &actions[..] else {
        panic!("{actions:?}")
    };
    let request = ArbiterRequest::Swap {
        expected: found,
        new: adopted(),
    };
    assert!(
        matches!(asked, [Do::Ask { request: asked, .. }] if *asked == request),
        "{asked:?}"
    );
    let asked = asked.to_vec();
    (bench, asked)
}

fn adopted() -> Record {
    Record {
        store: STORE,
        ..pair()
    }
}

/// Only then is the arbiter's store believed to be the right one, and before it is asked.
#[test]
fn the_operators_word_on_the_store_counts_once_nothing_forbids_the_adoption() {
    let mut bench = Bench::protected(Mode::Pipelined);
    let asked = adopt(&mut bench);
    assert!(
        matches!(asked[..], [Do::TrustArbiter, Do::Ask { .. }]),
        "{asked:?}"
    );
    assert!(matches!(adopt(&mut bench)[..], [Do::Adopted(Err(_))]));
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert!(matches!(adopt(&mut bench)[..], [Do::Adopted(Err(_))]));
}

#[test]
fn a_lost_or_older_record_is_written_anew_once_the_secondary_knows_it() {
    for found in [None, Some(alone(1))] {
        let (mut bench, asked) = agreed(found);
        let actions = bench.swap(&asked);
        assert!(matches!(actions[..], [Do::Adopted(Ok(_))]), "{actions:?}");
        assert_eq!(*bench.primary.record(), adopted());
        assert_eq!(bench.status(), Protection::Protected);
        // The pair lives under it: a lost secondary is left by a swap of this record.
        bench.feed(PrimaryEvent::PeerClosed {
            session: 1,
            reason: "reset".to_owned(),
        });
        let asked = bench.wait(Timing::default().reconnect_ms);
        let asked = bench.read(&asked);
        assert!(
            matches!(&asked[..], [Do::Ask { request: ArbiterRequest::Swap { expected, new }, .. }]
                if *expected == Some(adopted()) && new.store == STORE),
            "{asked:?}"
        );
    }
}

#[test]
fn a_record_that_is_there_or_anothers_is_never_replaced() {
    let (_, actions) = ordered(Some(pair()));
    assert_refused(&actions, "nothing to give back");
    let others = [
        Record { store: 8, ..alone(1) },
        Record { store: 8, ..pair() },
        Record {
            vm: "other".to_owned(),
            ..alone(1)
        },
        Record {
            owner: host("c", 5),
            ..pair()
        },
        won(),
    ];
    for found in others {
        let (bench, actions) = ordered(Some(found.clone()));
        assert_refused(&actions, "Somebody may run the VM under it");
        assert_eq!(*bench.primary.record(), pair(), "{found:?}");
    }
}

#[test]
fn a_sync_that_had_begun_before_is_no_agreement() {
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    let asked = adopt(&mut bench);
    assert_eq!(bench.answer(&asked, ArbiterAnswer::Record(None)), []);
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }, capture(3)]);
    bench.captured(3);
    let actions = bench.ack(3);
    assert!(
        matches!(actions[..], [Do::Release { epoch: 3 }, Do::Ask { .. }]),
        "{actions:?}"
    );
}

#[test]
fn pages_that_went_ahead_under_the_old_store_are_no_agreement() {
    let mut bench = Bench::protected(Mode::Pipelined);
    let actions = bench.feed(PrimaryEvent::DirtyAhead);
    assert!(
        matches!(&actions[..], [Do::SendAhead(opening)] if opening.begin.store == 9),
        "{actions:?}"
    );
    let asked = adopt(&mut bench);
    assert_eq!(bench.answer(&asked, ArbiterAnswer::Record(None)), [capture(2)]);
    bench.captured(2);
    assert_eq!(bench.ack(2), [Do::Release { epoch: 2 }, capture(3)]);
    bench.captured(3);
    assert!(matches!(bench.ack(3)[..], [_, Do::Ask { .. }]));
}

#[test]
fn without_a_secondary_that_can_agree_nothing_is_written() {
    let (mut bench, _) = ordered(None);
    let actions = bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_refused(&actions, "not connected");
    assert_refused(&adopt(&mut bench), "not connected");
    // And whatever the next syncs contain is of the old record.
    bench.feed(PrimaryEvent::PeerConnected { session: 2 });
    let actions = bench.welcome(2, 2, Some(kemari_sync::wire::CommitId { term: 2, epoch: 1 }));
    let actions = [actions, bench.captured(2)].concat();
    let store = actions.iter().find_map(|action| match action {
        Do::Transmit { begin, .. } => Some(begin.store),
        _ => None,
    });
    assert!(store.is_none_or(|store| store == 9), "{actions:?}");
}

#[test]
fn what_may_have_been_written_is_settled_before_anything_else_is_asked() {
    let (mut bench, asked) = agreed(None);
    let unknown = ArbiterAnswer::Unknown("no answer".to_owned());
    bench.answer(&asked, unknown);
    bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    let asked = bench.wait(Timing::default().reconnect_ms);
    assert!(
        matches!(
            asked[..],
            [Do::Ask {
                request: ArbiterRequest::Read,
                ..
            }]
        ),
        "only what became of the record: {asked:?}"
    );
    let actions = bench.answer(&asked, ArbiterAnswer::Record(Some(adopted())));
    let [Do::Adopted(Ok(_)), asked @ ..] = &actions[..] else {
        panic!("{actions:?}")
    };
    // Then the contest, under the new record.
    let actions = bench.answer(asked, ArbiterAnswer::Record(Some(adopted())));
    assert!(
        matches!(&actions[..], [Do::Ask { request: ArbiterRequest::Swap { expected, .. }, .. }]
            if *expected == Some(adopted())),
        "{actions:?}"
    );
}

#[test]
fn a_record_that_was_not_taken_is_told_and_the_old_one_stays() {
    let (mut bench, asked) = agreed(None);
    let actions = bench.answer(&asked, ArbiterAnswer::Unavailable("it is full".to_owned()));
    assert_refused(&actions, "it is full");
    assert_eq!(*bench.primary.record(), pair());
    let (mut bench, asked) = agreed(None);
    let actions = bench.answer(&asked, ArbiterAnswer::Conflict(Some(alone(1))));
    assert_refused(&actions, "somebody else wrote");
    bench.feed(PrimaryEvent::OutputPending);
    let actions = bench.captured(3);
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Do::Transmit { begin, .. } if begin.store == 9)),
        "the secondary is told of the old store again: {actions:?}"
    );
}

#[test]
fn the_session_that_an_order_ends_is_no_attempt_that_failed() {
    let mut bench = Bench::new(Mode::Pipelined);
    bench.feed(PrimaryEvent::PeerConnected { session: 1 });
    let asked = bench.welcome(1, 2, None);
    bench.read(&asked);
    let asked = adopt(&mut bench);
    let actions = bench.answer(&asked, ArbiterAnswer::Record(None));
    let [Do::CloseSession { .. }, asked @ ..] = &actions[..] else {
        panic!("{actions:?}")
    };
    bench.swap(asked);
    assert!(bench.primary.wants_peer(), "at once");
}

#[test]
fn a_vm_that_is_alone_needs_nobodys_agreement() {
    let mut bench = Bench::new(Mode::Pipelined);
    let asked = adopt(&mut bench);
    let asked = bench.answer(&asked, ArbiterAnswer::Record(None));
    assert!(
        !bench.primary.wants_peer(),
        "nobody joins a record that is being written"
    );
    let actions = bench.swap(&asked);
    assert!(matches!(actions[..], [Do::Adopted(Ok(_))]), "{actions:?}");
    assert_eq!(
        *bench.primary.record(),
        Record {
            store: STORE,
            ..alone(1)
        }
    );
    assert!(bench.primary.wants_peer());
}
