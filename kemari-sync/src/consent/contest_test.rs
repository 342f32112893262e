use super::*;
use crate::record::{ArbiterRequest, Epoch};

const PAIR_TERM: Epoch = 5;

fn host(name: &str, nonce: u128) -> Incarnation {
    Incarnation {
        host: name.to_owned(),
        nonce,
    }
}

fn pair() -> Record {
    Record {
        vm: "vm".to_owned(),
        store: 9,
        term: PAIR_TERM,
        base: PAIR_TERM,
        owner: host("a", 1),
        peer: Some(host("b", 2)),
        phase: Phase::Acting,
        work: Default::default(),
    }
}

fn won_by_a() -> Record {
    Record {
        term: PAIR_TERM + 1,
        phase: Phase::Won,
        ..pair()
    }
}

/// B's contest, driven by the answers of a scripted arbiter.
struct Bench {
    contest: Contest,
    timing: Timing,
    now_ms: u64,
    next_ask: AskId,
}

impl Bench {
    fn new(goal: Goal) -> Self {
        let contest = Contest::new(host("b", 2), Some(host("a", 1)), PAIR_TERM, 9, goal, 0);
        Self {
            contest,
            timing: Timing::default(),
            now_ms: 0,
            next_ask: 1,
        }
    }

    /// Waits until something is asked; returns it.
    fn asked(&mut self) -> (AskId, ArbiterRequest) {
        self.now_ms = self
            .now_ms
            .max(self.contest.deadline().expect("something is to be asked"));
        self.contest
            .poll(self.now_ms, &mut self.next_ask)
            .expect("it is asked")
    }

    fn answer(&mut self, answer: ArbiterAnswer) -> Ruling {
        let (ask, _) = self.asked();
        self.contest.answer(self.now_ms, &self.timing, ask, &answer)
    }

    fn read(&mut self, record: Record) -> Ruling {
        self.answer(ArbiterAnswer::Record(Some(record)))
    }
}

#[test]
fn a_recorded_member_wins_and_declares() {
    let mut bench = Bench::new(Goal::Rule);
    assert_eq!(bench.read(pair()), Ruling::Open);
    assert!(!bench.contest.can_cancel());
    let (ask, request) = bench.asked();
    let won = Record {
        owner: host("b", 2),
        peer: Some(host("a", 1)),
        ..won_by_a()
    };
    assert_eq!(
        request,
        ArbiterRequest::Swap {
            expected: Some(pair()),
            new: won.clone()
        }
    );
    let ruling = bench
        .contest
        .answer(0, &bench.timing, ask, &ArbiterAnswer::Swapped);
    assert_eq!(ruling, Ruling::Won);
    bench.contest.declare(Phase::Acting);
    let acting = Record {
        base: PAIR_TERM + 1,
        peer: None,
        phase: Phase::Acting,
        ..won
    };
    assert_eq!(bench.answer(ArbiterAnswer::Swapped), Ruling::Settled(acting));
}

#[test]
fn a_stop_is_written_in_one_step() {
    let mut bench = Bench::new(Goal::Stop);
    assert_eq!(bench.read(pair()), Ruling::Open);
    let Ruling::Settled(record) = bench.answer(ArbiterAnswer::Swapped) else {
        panic!("it is written")
    };
    assert_eq!(
        (record.phase, record.term, record.owner),
        (Phase::Stopped, PAIR_TERM + 1, host("b", 2))
    );
}

#[test]
fn a_winner_that_stalls_is_replaced_and_one_that_acts_is_not() {
    let mut bench = Bench::new(Goal::Rule);
    assert_eq!(bench.read(won_by_a()), Ruling::Rival);
    assert!(!bench.contest.can_cancel(), "somebody has won");
    while bench.read(won_by_a()) == Ruling::Rival {}
    assert!(bench.now_ms >= bench.timing.won_stall_ms);
    let (_, request) = bench.asked();
    let ArbiterRequest::Swap {
        expected: Some(expected),
        new,
    } = request
    else {
        panic!("it asks")
    };
    assert_eq!(
        (expected, new.term, new.base),
        (won_by_a(), PAIR_TERM + 2, PAIR_TERM)
    );

    let mut bench = Bench::new(Goal::Rule);
    assert_eq!(bench.read(won_by_a()), Ruling::Rival);
    let acting = Record {
        base: PAIR_TERM + 1,
        peer: None,
        phase: Phase::Acting,
        ..won_by_a()
    };
    assert_eq!(bench.read(acting.clone()), Ruling::Lost(acting));
}

#[test]
fn only_the_recorded_pair_of_ones_own_term_may_ask() {
    let with_another = Record {
        peer: Some(host("c", 3)),
        ..pair()
    };
    assert_eq!(
        Bench::new(Goal::Rule).read(with_another.clone()),
        Ruling::Lost(with_another)
    );
    let of_another_life = Record {
        peer: Some(host("b", 4)),
        ..pair()
    };
    assert_eq!(
        Bench::new(Goal::Rule).read(of_another_life.clone()),
        Ruling::Lost(of_another_life)
    );
    let ours_with_another = Record {
        owner: host("b", 2),
        peer: Some(host("c", 3)),
        ..pair()
    };
    assert_eq!(
        Bench::new(Goal::Rule).read(ours_with_another.clone()),
        Ruling::Lost(ours_with_another)
    );
    let later = Record {
        term: PAIR_TERM + 2,
        base: PAIR_TERM + 2,
        ..pair()
    };
    assert_eq!(Bench::new(Goal::Rule).read(later.clone()), Ruling::Lost(later));
    let won_from_another_pair = Record {
        base: PAIR_TERM + 1,
        term: PAIR_TERM + 2,
        ..won_by_a()
    };
    assert_eq!(
        Bench::new(Goal::Rule).read(won_from_another_pair.clone()),
        Ruling::Lost(won_from_another_pair)
    );
}

#[test]
fn a_pair_that_is_not_written_yet_is_waited_for() {
    let mut bench = Bench::new(Goal::Rule);
    let before = Record {
        term: PAIR_TERM - 1,
        base: PAIR_TERM - 1,
        peer: None,
        ..pair()
    };
    assert_eq!(bench.read(before.clone()), Ruling::Open);
    assert!(bench.contest.can_cancel());
    assert_eq!(bench.read(before), Ruling::Open);
    assert_eq!(bench.read(pair()), Ruling::Open);
    assert!(matches!(bench.asked().1, ArbiterRequest::Swap { .. }));
}

#[test]
fn a_store_that_contradicts_what_is_known_stops_all_asking() {
    let older = Record {
        term: PAIR_TERM - 2,
        base: PAIR_TERM - 2,
        ..pair()
    };
    for found in [None, Some(older), Some(Record { store: 10, ..pair() })] {
        let mut bench = Bench::new(Goal::Rule);
        assert!(matches!(
            bench.answer(ArbiterAnswer::Record(found)),
            Ruling::Alarm(_)
        ));
        assert_eq!(bench.contest.deadline(), None);
        assert!(!bench.contest.can_cancel());
        bench.contest.confirm(bench.now_ms);
        assert_eq!(bench.contest.deadline(), None, "not even to look again");
    }
}

#[test]
fn a_win_is_confirmed_before_a_second_try() {
    let mut bench = Bench::new(Goal::Rule);
    bench.read(pair());
    assert_eq!(bench.answer(ArbiterAnswer::Swapped), Ruling::Won);
    let won = Record {
        owner: host("b", 2),
        peer: Some(host("a", 1)),
        ..won_by_a()
    };
    bench.contest.confirm(bench.now_ms);
    assert_eq!(bench.read(won.clone()), Ruling::Won);
    bench.contest.confirm(bench.now_ms);
    let replaced = Record {
        term: PAIR_TERM + 2,
        ..won_by_a()
    };
    assert_eq!(bench.read(replaced), Ruling::Rival);
}

fn fencing(number: u64, beat: u64, fence_ms_max: u64) -> Record {
    let work = Work {
        number,
        beat,
        fence_ms_max,
    };
    Record { work, ..won_by_a() }
}

/// Reads this record until the winner is replaced; returns when, in milliseconds.
fn replaced_at(bench: &mut Bench, record: &Record) -> u64 {
    while bench.read(record.clone()) == Ruling::Rival {}
    bench.now_ms
}

#[test]
fn a_winner_is_not_replaced_while_its_fence_may_strike() {
    let mut bench = Bench::new(Goal::Rule);
    let at_ms = replaced_at(&mut bench, &fencing(0, 0, 20_000));
    assert!(
        at_ms >= 20_000 + 1_000,
        "the other's clock may be slower: {at_ms}"
    );

    // It begins another fence: all of its time again.
    let mut bench = Bench::new(Goal::Stop);
    while bench.now_ms < 15_000 {
        assert_eq!(bench.read(fencing(0, 0, 20_000)), Ruling::Rival);
    }
    let again_ms = bench.now_ms;
    let at_ms = replaced_at(&mut bench, &fencing(1, 0, 20_000));
    assert!(at_ms >= again_ms + 20_000, "{at_ms}");
}

#[test]
fn a_record_may_say_anything_of_a_fence() {
    let mut bench = Bench::new(Goal::Rule);
    bench.now_ms = 1000;
    assert_eq!(bench.read(fencing(1, 0, u64::MAX)), Ruling::Rival);
}

#[test]
fn a_winner_whose_fence_fails_again_and_again_is_replaced() {
    let mut bench = Bench::new(Goal::Rule);
    for number in 0..100 {
        let fence_ms_max = if number % 2 == 0 { 20_000 } else { 0 };
        if bench.read(fencing(number, 0, fence_ms_max)) != Ruling::Rival {
            assert_eq!(fence_ms_max, 0, "not while it may strike");
            assert!(bench.now_ms >= bench.timing.won_stall_ms);
            return;
        }
    }
    panic!("nobody goes on");
}

#[test]
fn a_winner_that_gets_on_is_not_replaced() {
    let mut bench = Bench::new(Goal::Rule);
    for beat in 0..50 {
        let until_ms = bench.now_ms + bench.timing.won_stall_ms / 2;
        while bench.now_ms < until_ms {
            assert_eq!(bench.read(fencing(beat, beat, 0)), Ruling::Rival);
        }
    }
}

#[test]
fn time_in_which_a_fence_may_strike_counts_from_the_first_ask() {
    let mut bench = Bench::new(Goal::Rule);
    bench.contest.set_fence(20_000);
    bench.read(pair());
    let (asked_ms, unknown) = (bench.now_ms, ArbiterAnswer::Unknown("late".to_owned()));
    assert_eq!(bench.answer(unknown), Ruling::Open);
    assert_eq!(bench.read(pair()), Ruling::Open, "asked again");
    assert_eq!(bench.answer(ArbiterAnswer::Swapped), Ruling::Won);
    assert!(bench.now_ms > asked_ms);
    assert_eq!(bench.contest.strikes_until_ms(), Some(asked_ms + 20_000));
    bench.contest.renew(false, 0);
    assert_eq!(bench.answer(ArbiterAnswer::Swapped), Ruling::Won);
    assert_eq!(bench.contest.strikes_until_ms(), None);
}
