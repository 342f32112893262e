//! The checker must refuse doctored histories, accept valid ones, and agree with a search through all orders.

use proptest::prelude::*;

use super::super::history::{ConnectionEnd, Operation};
use super::*;

const WRITER: u16 = 0;
const READER: u16 = 1;

fn set(counter: u64, invoked: Nanos, answered: Option<Nanos>) -> Operation {
    let answer = answered.map(|at| (at, Answer::Written));
    Operation {
        connection: WRITER,
        key: 0,
        request: Request::Set(counter),
        invoked,
        answer,
    }
}

fn get(value: u64, invoked: Nanos, answered: Nanos) -> Operation {
    let answer = Some((answered, Answer::Value(value)));
    Operation {
        connection: READER,
        key: 0,
        request: Request::Get,
        invoked,
        answer,
    }
}

fn judge(operations: Vec<Operation>) -> Verdict {
    check(&History {
        operations,
        connections: Vec::new(),
    })
    .unwrap()
}

fn counts(operations: Vec<Operation>) -> (usize, usize) {
    let verdict = judge(operations);
    (verdict.lost.len(), verdict.contradicted.len())
}

#[test]
fn a_plain_history_is_clean() {
    let ops = vec![
        get(0, 0, 1),
        set(1, 2, Some(4)),
        get(1, 5, 6),
        set(2, 7, Some(9)),
        get(2, 10, 11),
    ];
    let verdict = judge(ops);
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!((verdict.acknowledged, verdict.reads), (2, 3));
}

#[test]
fn a_read_beside_a_write_may_return_old_or_new() {
    assert_eq!(
        counts(vec![set(1, 2, Some(8)), get(0, 3, 7), get(1, 3, 7)]),
        (0, 0)
    );
}

#[test]
fn an_open_write_may_have_taken_effect_or_not() {
    let open = |value| {
        vec![
            set(1, 0, Some(1)),
            set(2, 2, None),
            get(value, 5, 6),
            get(value, 1000, 1001),
        ]
    };
    assert_eq!(counts(open(1)), (0, 0));
    assert_eq!(counts(open(2)), (0, 0));
    // It may also take effect late, but once.
    assert_eq!(
        counts(vec![
            set(1, 0, Some(1)),
            set(2, 2, None),
            get(1, 5, 6),
            get(2, 7, 8)
        ]),
        (0, 0)
    );
    assert_eq!(
        counts(vec![
            set(1, 0, Some(1)),
            set(2, 2, None),
            get(2, 5, 6),
            get(1, 7, 8)
        ]),
        (0, 1)
    );
}

#[test]
fn a_lost_write_is_refused() {
    assert_eq!(
        counts(vec![set(1, 0, Some(1)), set(2, 2, Some(3)), get(1, 10, 11)]),
        (1, 0)
    );
    assert_eq!(
        counts(vec![set(1, 0, Some(1)), get(0, 10, 11)]),
        (1, 0),
        "gone without a trace"
    );
    assert_eq!(
        counts(vec![
            set(1, 0, Some(1)),
            set(2, 2, Some(3)),
            set(3, 4, Some(5)),
            get(1, 10, 11)
        ]),
        (2, 0),
        "each lost write counts"
    );
    assert_eq!(
        counts(vec![set(1, 0, Some(1)), get(0, 2, 3), get(0, 4, 5)]),
        (1, 0),
        "but once, however often it is missed"
    );
    assert_eq!(
        counts(vec![
            set(1, 0, Some(1)),
            set(2, 2, Some(3)),
            get(1, 10, 11),
            set(3, 12, Some(13)),
            get(3, 14, 15)
        ]),
        (1, 0),
        "a newer write does not heal it"
    );
}

#[test]
fn a_stale_answer_is_refused() {
    assert_eq!(
        counts(vec![
            set(1, 0, Some(1)),
            set(2, 2, Some(3)),
            get(1, 4, 5),
            get(2, 6, 7)
        ]),
        (0, 1)
    );
}

#[test]
fn an_answer_that_goes_back_is_refused() {
    let ops = vec![
        set(1, 0, Some(1)),
        set(2, 2, Some(20)),
        get(2, 3, 4),
        get(1, 5, 6),
    ];
    assert_eq!(counts(ops), (0, 1), "two had been seen, though not acknowledged");
    assert_eq!(
        counts(vec![
            set(1, 0, Some(1)),
            set(2, 2, Some(20)),
            get(2, 3, 7),
            get(1, 5, 6)
        ]),
        (0, 0),
        "reads beside each other may"
    );
}

#[test]
fn a_doubled_answer_is_refused() {
    // The second read was answered with the first one's answer, delivered again.
    assert_eq!(
        counts(vec![
            set(1, 0, Some(1)),
            get(1, 2, 3),
            set(2, 4, Some(5)),
            get(1, 6, 7),
            get(2, 8, 9)
        ]),
        (0, 1)
    );
    // Or it arrived where nothing was asked.
    let connections = vec![ConnectionEnd {
        connection: WRITER,
        lost: None,
        stray_answers: 1,
    }];
    let history = History {
        operations: vec![set(1, 0, Some(1))],
        connections,
    };
    assert_eq!(check(&history).unwrap().contradicted.len(), 1);
}

#[test]
fn what_nobody_wrote_is_refused() {
    assert_eq!(counts(vec![set(1, 0, Some(1)), get(7, 2, 3)]), (0, 1));
    assert_eq!(
        counts(vec![get(1, 0, 1), set(1, 2, Some(3))]),
        (0, 1),
        "a value from the future"
    );
    let mut op = get(0, 0, 1);
    op.answer = Some((1, Answer::Impossible("rubbish".into())));
    assert_eq!(counts(vec![op]), (0, 1));
    let mut op = set(1, 0, Some(1));
    op.answer = Some((1, Answer::Value(3)));
    assert_eq!(counts(vec![op]), (0, 1), "the answer of another kind of request");
}

#[test]
fn reordered_answers_are_refused() {
    // Two answers exchanged: the older read got the newer value, before that was written.
    let ops = vec![
        set(1, 0, Some(1)),
        get(2, 2, 3),
        set(2, 4, Some(5)),
        get(1, 6, 7),
        get(2, 8, 9),
    ];
    assert_eq!(counts(ops), (0, 2));
}

#[test]
fn a_history_beyond_its_means_is_not_judged() {
    let check_all = |operations| {
        check(&History {
            operations,
            connections: Vec::new(),
        })
        .unwrap_err()
    };
    let mut other = set(2, 2, Some(3));
    other.connection = READER;
    assert_eq!(
        check_all(vec![set(1, 0, Some(1)), other]),
        HistoryError::Writers(0)
    );
    assert_eq!(check_all(vec![set(2, 0, Some(1))]), HistoryError::Order(0, 2));
    assert_eq!(check_all(vec![set(1, 5, Some(1))]), HistoryError::Time(0));
}

/// Searches all orders that respect real time, and the order in which the writer asked.
fn some_order_explains(ops: &[Operation], done: u32, value: u64) -> bool {
    let all_answered = |done: u32| {
        ops.iter()
            .enumerate()
            .all(|(i, op)| done >> i & 1 == 1 || op.answer.is_none())
    };
    if all_answered(done) {
        return true;
    }
    for (i, op) in ops.iter().enumerate().filter(|(i, _)| done >> i & 1 == 0) {
        let must_come_first = |(j, other): (usize, &Operation)| {
            done >> j & 1 == 0 && other.answer.as_ref().is_some_and(|(at, _)| *at < op.invoked)
        };
        if ops.iter().enumerate().any(must_come_first) {
            continue;
        }
        let explained = match (op.request, &op.answer) {
            (Request::Get, Some((_, Answer::Value(returned)))) => {
                *returned == value && some_order_explains(ops, done | 1 << i, value)
            }
            (Request::Get, _) => false,
            (Request::Set(counter), _) => {
                counter > value && {
                    let skipped = |other: &Operation| match other.request {
                        Request::Set(older) => older < counter && other.answer.is_some(),
                        Request::Get => false,
                    };
                    let in_order = ops
                        .iter()
                        .enumerate()
                        .all(|(j, other)| !skipped(other) || done >> j & 1 == 1);
                    in_order && some_order_explains(ops, done | 1 << i, counter)
                }
            }
        };
        if explained {
            return true;
        }
    }
    false
}

prop_compose! {
    /// One writer whose requests may overlap (pipelining) and stay open, and readers that return anything.
    fn small_history()(
        writes in proptest::collection::vec((0u64..6, 0u64..8, prop::bool::weighted(0.25)), 0..4),
        reads in proptest::collection::vec((0u64..24, 0u64..8, 0u64..4), 0..5),
    ) -> Vec<Operation> {
        let mut at = 0;
        let mut ops = Vec::new();
        for (counter, (pause, takes, open)) in (1..).zip(writes) {
            at += pause;
            ops.push(set(counter, at, (!open).then_some(at + takes)));
        }
        ops.extend(reads.into_iter().map(|(began, takes, value)| get(value, began, began + takes)));
        ops
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn agrees_with_a_search_through_all_orders(ops in small_history()) {
        let expected = some_order_explains(&ops, 0, 0);
        let verdict = judge(ops);
        prop_assert_eq!(verdict.is_clean(), expected, "{:?}", verdict);
    }
}
