//! The way to the secondary is proved before output is held for it, and failures back off.

use kemari_sync::wire::{Goodbye, Message};
use kemari_sync::{Mode, PrimaryAction, PrimaryEvent, Protection, Timing};

use PrimaryAction as Do;

use super::support::*;

/// A greeting to which a proof follows; small messages come all the time, the proof never comes back.
fn fail_to_prove(bench: &mut Bench, session: u64) -> Vec<PrimaryAction> {
    bench.feed(PrimaryEvent::PeerConnected { session });
    let asked = bench.welcome(session, 2, None);
    let proof = bench.read(&asked);
    assert!(
        matches!(
            proof[..],
            [Do::Send {
                message: Message::Proof { .. },
                ..
            }]
        ),
        "{proof:?}"
    );
    let (begun_ms, timing) = (bench.now_ms, Timing::default());
    loop {
        assert!(bench.now_ms <= begun_ms + timing.progress_ms, "it waits for ever");
        let mut actions = bench.wait(timing.heartbeat_ms);
        actions.extend(bench.hear(session, heartbeat()));
        actions.retain(|action| !is_heartbeat(action));
        if !actions.is_empty() {
            return actions;
        }
    }
}

fn waits_for_ms(bench: &mut Bench) -> u64 {
    let since_ms = bench.now_ms;
    while !bench.primary.wants_peer() {
        bench.wait(100);
        assert!(bench.now_ms < since_ms + 1_000_000, "no peer is wanted any more");
    }
    bench.now_ms - since_ms
}

#[test]
fn a_way_that_drops_large_packets_costs_the_guest_nothing_and_is_named() {
    let mut bench = Bench::new(Mode::Lockstep);
    let record = bench.primary.record().clone();
    let actions = fail_to_prove(&mut bench, 1);
    let [Do::CloseSession { reason, .. }] = &actions[..] else {
        panic!("nothing else happens: {actions:?}")
    };
    assert!(
        reason.contains("drops large packets") && reason.contains("MTU"),
        "{reason}"
    );
    assert_eq!(bench.primary.record(), &record, "no term is used up");
    let status = bench.primary.status(bench.now_ms);
    assert_eq!(status.protection, Protection::Unprotected);
    let waiting = status.waiting.expect("it says why");
    assert!(
        waiting.contains("drops large packets") && waiting.contains("tried again in 1 s"),
        "{waiting}"
    );
}

#[test]
fn a_wrong_proof_is_none() {
    let mut bench = Bench::new(Mode::Lockstep);
    bench.feed(PrimaryEvent::PeerConnected { session: 1 });
    let asked = bench.welcome(1, 2, None);
    bench.read(&asked);
    let actions = bench.hear(1, Message::Proof { bytes: 100 });
    assert!(matches!(actions[..], [Do::CloseSession { .. }]), "{actions:?}");
}

#[test]
fn failures_back_off_up_to_a_limit_and_an_order_ends_that() {
    let mut bench = Bench::new(Mode::Lockstep);
    let mut pauses = Vec::new();
    for session in 1..=9 {
        fail_to_prove(&mut bench, session);
        pauses.push(waits_for_ms(&mut bench) / 1_000);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    fail_to_prove(&mut bench, 10);
    assert!(!bench.primary.wants_peer());
    bench.feed(PrimaryEvent::OperatorProtect);
    assert!(bench.primary.wants_peer());
    fail_to_prove(&mut bench, 11);
    assert_eq!(waits_for_ms(&mut bench) / 1_000, 1);
}

#[test]
fn a_refusal_is_no_failure_of_the_way() {
    let mut bench = Bench::new(Mode::Lockstep);
    for session in 1..10 {
        bench.feed(PrimaryEvent::PeerConnected { session });
        bench.hear(session, Message::Refuse("the configurations differ".to_owned()));
        assert!(bench.primary.wants_peer());
    }
}

/// The secondary is heard, and acks nothing.
fn part_for_lack_of_progress(bench: &mut Bench) {
    bench.feed(PrimaryEvent::OutputPending);
    bench.captured(2);
    let mut asked = Vec::new();
    while !asked.iter().any(|action| matches!(action, Do::Ask { .. })) {
        asked = bench.wait(100);
        asked.extend(bench.hear(1, heartbeat()));
    }
    go_on_alone(bench, &asked);
}

/// The arbiter lets the primary.
fn go_on_alone(bench: &mut Bench, asked: &[PrimaryAction]) {
    let asked = bench.read(asked);
    let asked = bench.swap(&asked);
    bench.swap(&asked);
    assert_eq!(bench.status(), Protection::Unprotected);
}

#[test]
fn a_pair_that_parts_for_lack_of_progress_backs_off_too() {
    let mut bench = Bench::protected(Mode::Lockstep);
    part_for_lack_of_progress(&mut bench);
    assert!(!bench.primary.wants_peer(), "not at once");
    fail_to_prove_after_wait(&mut bench, 3, 1);
    fail_to_prove_after_wait(&mut bench, 4, 2);
    assert_eq!(waits_for_ms(&mut bench) / 1_000, 4);
}

#[test]
fn a_pair_whose_secondary_cannot_follow_backs_off_too() {
    let unfit = |bench: &mut Bench| {
        let goodbye = Goodbye::Unfit("its disk is full".to_owned());
        bench.hear(1, Message::Goodbye(goodbye))
    };
    let exceed = |bench: &mut Bench| {
        bench.feed(PrimaryEvent::OutputPending);
        bench.feed(PrimaryEvent::Captured {
            epoch: 2,
            pages: 1_001,
            bytes: 1,
            stop: false,
        })
    };
    // A link that flaps in this way costs the guest as much each time.
    let fall_silent = |bench: &mut Bench| {
        bench.wait(Timing::default().suspicion_ms - 1);
        bench.wait(1)
    };
    for part in [unfit, exceed, fall_silent] {
        let mut bench = Bench::protected(Mode::Lockstep);
        let asked = part(&mut bench);
        go_on_alone(&mut bench, &asked);
        let waiting = bench.primary.status(bench.now_ms).waiting.expect("it says why");
        assert!(waiting.contains("tried again in 1 s"), "{waiting}");
        fail_to_prove_after_wait(&mut bench, 3, 1);
        assert_eq!(waits_for_ms(&mut bench) / 1_000, 2);
    }
}

#[test]
fn a_secondary_that_was_started_anew_is_taken_at_once() {
    let mut bench = Bench::protected(Mode::Lockstep);
    let reason = "reset".to_owned();
    bench.feed(PrimaryEvent::PeerClosed { session: 1, reason });
    bench.feed(PrimaryEvent::PeerConnected { session: 2 });
    let asked = bench.welcome(2, 3, None);
    go_on_alone(&mut bench, &asked);
    assert!(bench.primary.wants_peer());
}

fn fail_to_prove_after_wait(bench: &mut Bench, session: u64, pause_s: u64) {
    assert_eq!(waits_for_ms(bench) / 1_000, pause_s);
    fail_to_prove(bench, session);
}
