//! A crash at every step of a scenario: no rule is broken, and no step is left out.

use kemari_sync::Fault;
use kemari_sync::sim::{Coverage, Invariant, Scenario, crash_everywhere};

/// One in so many pairs of steps; `cargo xtask sim --exhaustive` takes them all.
const PAIRS_STRIDE: u64 = 200;

/// Steps without which the scenario would not be what it is said to be.
const STEPS: [&str; 12] = [
    "start does Run",
    "primary does CopyRound",
    "primary does Capture",
    "primary does Transmit",
    "primary does Release",
    "primary does Drain",
    "secondary does Stage",
    "secondary does Check",
    "secondary does Send Ack",
    "secondary does Send LetGo",
    "secondary does Restore",
    "secondary does Run",
];

#[test]
fn a_crash_at_every_step_breaks_nothing() {
    let mut total = Coverage::default();
    for scenario in Scenario::ALL {
        let coverage = crash_everywhere(scenario, PAIRS_STRIDE, None);
        if let Some((scenario, crashes, violation)) = &coverage.failed {
            let last = violation.trace.len().saturating_sub(80);
            panic!(
                "{scenario:?} with {crashes:?} breaks {:?}: {}\n{}",
                violation.invariant,
                violation.text,
                violation.trace[last..].join("\n")
            );
        }
        assert_eq!(
            coverage.singles,
            2 * coverage.steps,
            "each step, by each kind of crash"
        );
        assert!(coverage.pairs > 0);
        total.add(coverage);
    }
    assert!(
        total.steps > 1_000,
        "the scenarios have only {} steps",
        total.steps
    );
    for step in STEPS {
        assert!(total.crashed_at.contains_key(step), "nothing crashed at `{step}`");
    }
    for invariant in Invariant::ALL {
        if invariant == Invariant::Ready {
            // No secondary lacks anything in these scenarios; in seeds some do.
            assert_eq!(total.exercised[&invariant], 0);
            continue;
        }
        assert!(
            total.exercised[&invariant] > total.singles,
            "{invariant:?} had too little to judge"
        );
    }
}

/// With a rule taken out, some step's crash shows it.
#[test]
fn crashes_show_broken_rules() {
    for fault in [
        Fault::ReleaseBeforeAck,
        Fault::RunBeforeActing,
        Fault::ResurrectStop,
    ] {
        let found = Scenario::ALL
            .into_iter()
            .any(|scenario| crash_everywhere(scenario, 0, Some(fault)).failed.is_some());
        assert!(found, "{fault:?} was not noticed");
    }
}
