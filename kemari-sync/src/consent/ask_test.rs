use super::*;
use crate::record::{Incarnation, Phase};

const RETRY_MS: u64 = 10;

fn record(term: u64) -> Record {
    let owner = Incarnation {
        host: "a".to_owned(),
        nonce: 1,
    };
    Record {
        vm: "vm".to_owned(),
        store: 9,
        term,
        base: term,
        owner,
        peer: None,
        phase: Phase::Acting,
        work: Default::default(),
    }
}

/// Polls until it asks, and answers.
fn answer(asker: &mut Asker, now_ms: u64, next: &mut AskId, answer: ArbiterAnswer) -> Option<Verdict> {
    let (id, _) = asker.poll(now_ms, next).expect("something is asked");
    asker.answer(now_ms, RETRY_MS, id, &answer)
}

fn unknown() -> ArbiterAnswer {
    ArbiterAnswer::Unknown("time-out".to_owned())
}

#[test]
fn an_unanswered_swap_is_resolved_by_reading_back() {
    let (mut asker, mut next) = (Asker::swap(Some(record(1)), record(2)), 1);
    assert_eq!(answer(&mut asker, 0, &mut next, unknown()), None);
    assert_eq!(
        asker.poll(RETRY_MS - 1, &mut next),
        None,
        "not before the pause is over"
    );
    let (id, request) = asker.poll(RETRY_MS, &mut next).expect("it reads back");
    assert_eq!(request, ArbiterRequest::Read);
    let verdict = asker.answer(RETRY_MS, RETRY_MS, id, &ArbiterAnswer::Record(Some(record(2))));
    assert_eq!(verdict, Some(Verdict::Done(record(2))));
}

#[test]
fn an_unanswered_swap_that_was_not_seen_is_asked_again() {
    let (mut asker, mut next) = (Asker::swap(Some(record(1)), record(2)), 1);
    assert_eq!(answer(&mut asker, 0, &mut next, unknown()), None);
    let unchanged = ArbiterAnswer::Record(Some(record(1)));
    assert_eq!(answer(&mut asker, RETRY_MS, &mut next, unchanged), None);
    let (id, request) = asker.poll(RETRY_MS, &mut next).expect("it asks again");
    assert!(matches!(request, ArbiterRequest::Swap { .. }));
    // The first one was carried out late, after all.
    let conflict = ArbiterAnswer::Conflict(Some(record(2)));
    assert_eq!(
        asker.answer(RETRY_MS, RETRY_MS, id, &conflict),
        Some(Verdict::Done(record(2)))
    );
}

#[test]
fn an_unavailable_arbiter_is_certain_only_before_the_first_doubt() {
    let unavailable = ArbiterAnswer::Unavailable("refused".to_owned());
    let (mut asker, mut next) = (Asker::swap(Some(record(1)), record(2)), 1);
    let verdict = answer(&mut asker, 0, &mut next, unavailable.clone());
    assert_eq!(verdict, Some(Verdict::NotDone("refused".to_owned())));

    let mut asker = Asker::swap(Some(record(1)), record(2));
    assert_eq!(answer(&mut asker, 0, &mut next, unknown()), None);
    assert_eq!(answer(&mut asker, RETRY_MS, &mut next, unavailable), None);
    assert!(asker.deadline().is_some(), "it goes on asking");
}

#[test]
fn another_record_means_that_the_swap_is_lost() {
    let (mut asker, mut next) = (Asker::swap(Some(record(1)), record(2)), 1);
    let verdict = answer(&mut asker, 0, &mut next, ArbiterAnswer::Conflict(Some(record(7))));
    assert_eq!(verdict, Some(Verdict::Lost(Some(record(7)))));
}

#[test]
fn answers_to_other_requests_are_ignored() {
    let (mut asker, mut next) = (Asker::read(0), 5);
    let (id, _) = asker.poll(0, &mut next).expect("it reads");
    assert_eq!(
        asker.answer(0, RETRY_MS, id + 1, &ArbiterAnswer::Record(None)),
        None
    );
    assert_eq!(
        asker.answer(0, RETRY_MS, id, &ArbiterAnswer::Record(None)),
        Some(Verdict::Read(None))
    );
    assert_eq!(asker.answer(0, RETRY_MS, id, &ArbiterAnswer::Record(None)), None);
}
