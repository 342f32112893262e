//! The simulation: the production state machines under a simulated clock, network, arbiter and disk, with
//! crashes drawn from a seed.
//!
//! Three hosts, a toy machine whose every output goes to clients or to a disk, shared or replicated, and
//! invariants that watch all of it, each in its own file under `invariants`. A run is a function of its seed:
//! it is replayed exactly, and its trace can be read.

mod captures;
mod chaos;
mod client;
mod copies;
mod events;
mod exhaustive;
mod failing;
mod fences;
mod flushes;
mod growth;
mod guest;
mod host;
mod image;
mod invariants;
mod net;
mod operator;
mod parts;
mod primary_driver;
mod ready;
mod replicas;
mod restores;
mod script;
mod secondary_driver;
mod setup;
mod store;
mod traffic;
mod vm;
mod world;

use std::collections::BTreeMap;

use crate::faults::{Fault, inject};
use crate::primary::Mode;

pub use exhaustive::{Coverage, CrashKind, Crashes, Scenario, ScenarioDisk, crash_everywhere};
pub use invariants::Invariant;

/// Hosts in the simulation.
const HOSTS: usize = 3;

/// A rule that a run broke.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which rule.
    pub invariant: Invariant,
    /// What happened.
    pub text: String,
    /// What led to it, one line an event, with the time in microseconds.
    pub trace: Vec<String>,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// The rule it broke, if any.
    pub violation: Option<Violation>,
    /// How often each invariant had something to judge.
    pub exercised: BTreeMap<Invariant, u64>,
    /// Times that a secondary took over.
    pub takeovers: u64,
    /// Syncs committed.
    pub commits: u64,
    /// Events simulated.
    pub events: u64,
}

/// Runs one seed. With `fault`, one rule is taken out of the state machines.
pub fn run(seed: u64, fault: Option<Fault>) -> Outcome {
    run_in_mode(seed, None, fault)
}

/// Runs one seed in a mode that is not drawn, if one is named.
pub fn run_in_mode(seed: u64, mode: Option<Mode>, fault: Option<Fault>) -> Outcome {
    let mut outcome = run_once(seed, mode, fault, false);
    if outcome.violation.is_some() {
        outcome = run_once(seed, mode, fault, true);
    }
    outcome
}

/// Runs one seed and returns its trace, whether or not a rule was broken.
pub fn trace(seed: u64, fault: Option<Fault>) -> (Outcome, Vec<String>) {
    inject(fault);
    let mut world = world::World::new(seed, None, true);
    world.run();
    inject(None);
    let lines = world.take_trace();
    (world.outcome(seed), lines)
}

fn run_once(seed: u64, mode: Option<Mode>, fault: Option<Fault>, traced: bool) -> Outcome {
    inject(fault);
    let mut world = world::World::new(seed, mode, traced);
    world.run();
    inject(None);
    world.outcome(seed)
}

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Runs done.
    pub runs: u64,
    /// The first run that broke a rule.
    pub failed: Option<Outcome>,
    /// How often each invariant had something to judge.
    pub exercised: BTreeMap<Invariant, u64>,
    /// Times that a secondary took over.
    pub takeovers: u64,
    /// Syncs committed.
    pub commits: u64,
    /// Events simulated.
    pub events: u64,
}

/// Runs so many seeds from `first` on, until one breaks a rule.
pub fn run_many(first: u64, count: u64, fault: Option<Fault>) -> Summary {
    let mut summary = Summary::default();
    for seed in first..first + count {
        let outcome = run(seed, fault);
        summary.runs += 1;
        summary.takeovers += outcome.takeovers;
        summary.commits += outcome.commits;
        summary.events += outcome.events;
        for (invariant, times) in &outcome.exercised {
            *summary.exercised.entry(*invariant).or_default() += times;
        }
        if outcome.violation.is_some() {
            summary.failed = Some(outcome);
            break;
        }
    }
    summary
}
