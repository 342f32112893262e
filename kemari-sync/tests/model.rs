//! The consent rules, explored exhaustively: nothing within the bounds breaks them,
//! and each rule taken out is missed.
//!
//! `cargo xtask sim --model --blows N` explores further.

use kemari_sync::Fault;
use kemari_sync::model::{Bounds, Exploration, Removed, Rule, explore};

/// Two blows that fall upon a protected VM, anywhere within one output.
const PROTECTED: Bounds = Bounds {
    blows_max: 2,
    outputs_max: 1,
    depth_max: 200,
    states_max: 5_000_000,
    protected: true,
};

/// One blow anywhere from the boot of the VM on, with two outputs.
const FROM_BOOT: Bounds = Bounds {
    blows_max: 1,
    outputs_max: 2,
    protected: false,
    ..PROTECTED
};

/// What a rule taken out needs to be missed.
const BROKEN: Bounds = Bounds {
    blows_max: 2,
    outputs_max: 1,
    protected: false,
    ..PROTECTED
};

/// Each rule of the consent, what takes it out, and what that breaks.
const RULES: [(&str, Removed, &[Rule]); 15] = [
    (
        "a takeover is a compare-and-set",
        Removed::Mechanism(Fault::TakeoverWithoutTerm),
        &[Rule::Consent],
    ),
    (
        "from a pair to alone is a compare-and-set",
        Removed::Mechanism(Fault::ActAloneWithoutTerm),
        &[Rule::Consent],
    ),
    (
        "from alone to a pair is a compare-and-set",
        Removed::Mechanism(Fault::PairUnrecorded),
        &[Rule::Consent],
    ),
    (
        "the right to act alone ends at the capture of the first sync of a new pair",
        Removed::Mechanism(Fault::KeepRightToActAlone),
        &[Rule::Consent],
    ),
    (
        "the expected value of an ask is the term of the asker's own last commit",
        Removed::Mechanism(Fault::AskWithReadTerm),
        &[Rule::Succession],
    ),
    (
        "only the recorded owner or peer may ask",
        Removed::Mechanism(Fault::AskUnrecorded),
        &[Rule::Succession],
    ),
    (
        "the right to take over lives in memory only",
        Removed::RightInMemory,
        &[Rule::Succession],
    ),
    (
        "a secondary reads the state it starts from at the win",
        Removed::StateAtTheWin,
        &[Rule::Succession],
    ),
    (
        "an ack counts only from the recorded incarnation, in this term",
        Removed::Mechanism(Fault::AckFromAnybody),
        &[Rule::Succession],
    ),
    (
        "an ack counts only in this session",
        Removed::Mechanism(Fault::HearOvertaken),
        &[Rule::Survival],
    ),
    (
        "an unanswered ask must be resolved",
        Removed::Mechanism(Fault::IgnoreUnresolvedAsk),
        &[Rule::Consent],
    ),
    (
        "acting is written before the first release",
        Removed::Mechanism(Fault::RunBeforeActing),
        &[Rule::Consent],
    ),
    (
        "a loser keeps its state until it sees acting",
        Removed::Mechanism(Fault::ForgetAtWon),
        &[Rule::Survival],
    ),
    (
        "a cold boot over a record with a peer needs that peer's word",
        Removed::Mechanism(Fault::ColdBootOverPeer),
        &[Rule::ColdBoot],
    ),
    (
        "a stop must not be resurrected",
        Removed::Mechanism(Fault::ResurrectStop),
        &[Rule::Stop],
    ),
];

fn assert_clean(result: &Exploration, states_min: usize) {
    if let Some(violation) = &result.violation {
        panic!(
            "{:?}: {}\n{}",
            violation.rule,
            violation.text,
            violation.trace.join("\n")
        );
    }
    assert!(result.complete, "the bounds of the search ended it");
    assert!(
        result.states >= states_min,
        "{} states are too few to mean anything",
        result.states
    );
    for rule in Rule::ALL {
        assert!(
            result.exercised.get(&rule).is_some_and(|times| *times > 0),
            "{rule:?} had nothing to judge"
        );
    }
}

#[test]
fn two_blows_upon_a_protected_vm_break_nothing() {
    assert_clean(&explore(PROTECTED, Removed::Nothing), 500_000);
}

#[test]
fn one_blow_from_the_boot_on_breaks_nothing() {
    assert_clean(&explore(FROM_BOOT, Removed::Nothing), 10_000);
}

#[test]
fn each_rule_taken_out_is_missed() {
    for (sentence, removed, broken) in RULES {
        let result = explore(BROKEN, removed);
        let violation = result.violation.unwrap_or_else(|| {
            panic!(
                "`{sentence}` was taken out, and nothing broke in {} states",
                result.states
            )
        });
        assert!(
            broken.contains(&violation.rule),
            "`{sentence}` broke {:?} ({}), not {broken:?}",
            violation.rule,
            violation.text
        );
        assert!(
            violation
                .trace
                .last()
                .is_some_and(|line| line.starts_with("VIOLATION")),
            "the way there, told again, ends as it did: `{sentence}`"
        );
    }
}

/// The second line of a defence whose first is the state at the win.
#[test]
fn commits_while_asking_break_nothing_alone() {
    let removed = Removed::Mechanism(Fault::CommitWhileAsking);
    assert_clean(
        &explore(
            Bounds {
                protected: false,
                ..FROM_BOOT
            },
            removed,
        ),
        10_000,
    );
}
