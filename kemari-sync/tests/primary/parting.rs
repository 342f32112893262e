//! From a pair to alone, or to a halt.

use kemari_sync::wire::{CommitId, Goodbye, Message};
use kemari_sync::{
    ArbiterAnswer, ArbiterRequest, Mode, Phase, PrimaryAction, PrimaryEvent, Protection, Record, Timing,
};

use PrimaryAction as Do;

use super::support::*;

/// A secondary is lost with a sync under way, and the arbiter is about to be asked.
fn parting() -> (Bench, Vec<PrimaryAction>) {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(bench.wait(Timing::default().reconnect_ms - 1), []);
    let asked = bench.wait(1);
    (bench, asked)
}

#[test]
fn a_lost_secondary_is_left_by_a_won_term_only() {
    let (mut bench, asked) = parting();
    let asked = bench.read(&asked);
    let [
        Do::Ask {
            request: ArbiterRequest::Swap { expected, new },
            ..
        },
    ] = &asked[..]
    else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (expected.as_ref(), new),
        (Some(&pair()), &Record { base: 2, ..won() })
    );
    let asked = bench.swap(&asked);
    assert!(
        matches!(asked[..], [Do::Ask { .. }]),
        "no output before the record says `acting`: {asked:?}"
    );
    assert_eq!(
        bench.swap(&asked),
        [Do::GiveBack { epoch: 2 }, Do::OpenGate, Do::Resume]
    );
    assert_eq!(*bench.primary.record(), alone(3));
    assert!(bench.primary.wants_peer(), "a new secondary may come");
}

#[test]
fn a_secondary_that_is_back_in_time_is_kept() {
    let (mut bench, _) = parting();
    assert!(bench.primary.wants_peer());
    bench.feed(PrimaryEvent::PeerConnected { session: 2 });
    let actions = bench.welcome(2, 2, Some(CommitId { term: 2, epoch: 2 }));
    assert_eq!(actions, [Do::Release { epoch: 2 }, Do::Resume]);
    assert_eq!(bench.status(), Protection::Protected);
}

#[test]
fn an_ack_counts_after_the_arbiter_was_asked() {
    let mut bench = Bench::protected(Mode::Pipelined);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    let asked = bench.wait(Timing::default().suspicion_ms);
    let asked = bench.read(&asked);
    assert_eq!(
        bench.ack(2),
        [Do::Release { epoch: 2 }],
        "and no further sync begins"
    );
    assert_eq!(bench.feed(PrimaryEvent::OutputPending), []);
    let asked = bench.swap(&asked);
    let actions = bench.swap(&asked);
    assert!(matches!(
        actions[..],
        [
            Do::Send {
                message: Message::Goodbye(Goodbye::Alone(_)),
                ..
            },
            Do::CloseSession { .. },
            Do::OpenGate
        ]
    ));
}

#[test]
fn a_primary_that_lost_waits_paused_and_halts_when_the_other_acts() {
    let mut bench = Bench::protected(Mode::Pipelined);
    let asked = bench.feed(PrimaryEvent::PeerClosed {
        session: 1,
        reason: "reset".to_owned(),
    });
    assert_eq!(asked, []);
    let asked = bench.wait(Timing::default().reconnect_ms);
    let other_won = Record {
        owner: host("b", 2),
        peer: Some(host("a", 1)),
        base: 2,
        ..won()
    };
    bench.store = other_won.clone();
    assert_eq!(bench.read(&asked), [Do::Pause]);
    let asked = bench.wait(200);
    bench.store = Record {
        base: 3,
        peer: None,
        phase: Phase::Acting,
        ..other_won
    };
    assert!(matches!(bench.read(&asked)[..], [Do::Halt { .. }]));
    assert!(bench.primary.is_over());
    assert_eq!(bench.primary.next_deadline(), None);
}

#[test]
fn an_arbiter_that_does_not_answer_keeps_output_waiting_and_says_so() {
    let (mut bench, mut asked) = parting();
    for _ in 0..20 {
        assert_eq!(
            bench.answer(&asked, ArbiterAnswer::Unavailable("no route".to_owned())),
            []
        );
        asked = bench.wait(200);
    }
    let waiting = bench.primary.status(bench.now_ms).waiting.expect("it waits");
    assert!(
        waiting.contains("no route") && waiting.contains("link"),
        "{waiting}"
    );
}

#[test]
fn a_heard_secondary_that_does_not_ack_is_parted_from_at_the_progress_limit() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    for _ in 0..49 {
        bench.hear(1, heartbeat());
        assert_eq!(bench.wait(100), []);
    }
    bench.hear(1, heartbeat());
    assert!(matches!(bench.wait(100)[..], [Do::Ask { .. }]));
}

#[test]
fn a_process_that_stood_still_has_proved_no_silence() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.now_ms += 60_000;
    let actions = bench.feed(PrimaryEvent::Tick);
    assert!(
        actions
            .iter()
            .all(|action| is_heartbeat(action) || *action == capture(2)),
        "{actions:?}"
    );
}

#[test]
fn unprotecting_is_a_change_of_the_record() {
    let mut bench = Bench::protected(Mode::Pipelined);
    let asked = bench.feed(PrimaryEvent::OperatorUnprotect);
    let asked = bench.read(&asked);
    let asked = bench.swap(&asked);
    assert!(bench.swap(&asked).contains(&Do::OpenGate));
    assert!(!bench.primary.wants_peer());
    bench.feed(PrimaryEvent::OperatorProtect);
    assert!(bench.primary.wants_peer());
}

/// To hand over to nobody would be the VM's end.
#[test]
fn the_vm_is_handed_over_only_to_a_secondary_that_is_heard() {
    let mut bench = Bench::protected(Mode::Lockstep);
    assert!(bench.primary.may_hand_over());
    bench.wait(Timing::default().suspicion_ms - 1);
    assert!(bench.primary.may_hand_over());
    // Its host has lost its power: the link stands, and nothing is said over it.
    let asked = bench.wait(1);
    assert!(!bench.primary.may_hand_over(), "it is silent");
    let asked = bench.read(&asked);
    assert!(!bench.primary.may_hand_over());
    bench.swap(&asked);
    assert!(!bench.primary.may_hand_over(), "this side has won");
    let (bench, _) = parting();
    assert!(!bench.primary.may_hand_over(), "it is gone");
}

/// Also one that is heard: what is won is not given away.
#[test]
fn what_is_won_is_not_handed_over() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    let timing = Timing::default();
    let mut asked = Vec::new();
    for _ in 0..timing.progress_ms / (timing.suspicion_ms / 2) {
        bench.hear(1, heartbeat());
        asked = bench.wait(timing.suspicion_ms / 2);
    }
    bench.hear(1, heartbeat());
    assert!(bench.primary.may_hand_over(), "it is heard, and nothing is won");
    let asked = bench.read(&asked);
    bench.swap(&asked);
    assert!(!bench.primary.may_hand_over());
}
