//! Crashes everywhere: one scenario, and a crash laid over every step of either side,
//! then over every pair of steps.
//!
//! A step is an event that a state machine takes, or one action of it that its driver carries out. The run up
//! to a crash is the run without it, since both have the same seed.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::faults::{Fault, inject};
use crate::primary::Mode;

use super::flushes::FlushMode;
use super::script::Script;
use super::setup::Setup;
use super::world::World;
use super::{Invariant, Violation};

/// Seed of the scenario's delays and of its clients.
const SEED: u64 = 4;
/// Longest delay of a frame, in microseconds.
const DELAY_US: u64 = 1_000;

/// What dies at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// The process whose step it is; its kernel tells its peers.
    Kill,
    /// Its host, silently.
    CutPower,
}

/// Which VM the scenario is played with: boot, protection, outputs, a takeover, a new protection, a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// What starts a sync, and what the guest does meanwhile.
    pub mode: Mode,
    /// Which disk it has.
    pub disk: ScenarioDisk,
}

/// The disk of a scenario's VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScenarioDisk {
    /// None.
    None,
    /// One that both hosts share.
    Shared,
    /// An image on each host; a flush waits for both.
    Replicated,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self {
            mode: Mode::Lockstep,
            disk: ScenarioDisk::None,
        },
        Self {
            mode: Mode::Pipelined,
            disk: ScenarioDisk::None,
        },
        Self {
            mode: Mode::Lockstep,
            disk: ScenarioDisk::Shared,
        },
        Self {
            mode: Mode::Pipelined,
            disk: ScenarioDisk::Shared,
        },
        Self {
            mode: Mode::Interval,
            disk: ScenarioDisk::Shared,
        },
        Self {
            mode: Mode::Pipelined,
            disk: ScenarioDisk::Replicated,
        },
    ];
}

/// Crashes of one run: the number of a step, from 1, and what dies at it.
pub type Crashes = Vec<(u64, CrashKind)>;

/// What the world counts of its steps.
#[derive(Debug, Default)]
pub(super) struct Steps {
    counts: bool,
    /// Steps so far, until everything is healed.
    taken: u64,
    /// Those to come, the next one last.
    crashes: Crashes,
    /// By name: how often.
    names: BTreeMap<String, u64>,
    /// Names of the steps that something crashed at.
    crashed_at: Vec<String>,
}

impl Steps {
    fn with(crashes: &[(u64, CrashKind)]) -> Self {
        Self {
            counts: true,
            crashes: crashes.iter().rev().copied().collect(),
            ..Self::default()
        }
    }

    /// What a step is called: who does it, and the first word of what it is.
    pub(super) fn name(&self, who: &str, what: &impl Debug) -> Option<String> {
        if !self.counts {
            return None;
        }
        let text = format!("{what:?}");
        let words: Vec<&str> = text
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        // Of what is sent or heard, which message.
        let message = words
            .iter()
            .position(|word| *word == "message")
            .and_then(|at| words.get(at + 1));
        let first = words.first().copied().unwrap_or_default();
        Some(match message {
            Some(message) => format!("{who} {first} {message}"),
            None => format!("{who} {first}"),
        })
    }
}

impl World {
    /// A state machine is about to take an event; true if its process dies instead.
    pub(super) fn steps_into(&mut self, host: usize, who: &str, event: &impl Debug) -> bool {
        let name = self.steps.name(&format!("{who} takes"), event);
        self.crashes_after(host, name)
    }

    /// A step is done; true if its process dies now.
    pub(super) fn crashes_after(&mut self, host: usize, name: Option<String>) -> bool {
        let Some(name) = name.filter(|_| !self.healed) else {
            return false;
        };
        self.steps.taken += 1;
        let taken = self.steps.taken;
        *self.steps.names.entry(name.clone()).or_default() += 1;
        let Some((_, kind)) = self.steps.crashes.pop_if(|(at, _)| *at <= taken) else {
            return false;
        };
        self.note(|| format!("=== {kind:?} of host {host} at step {taken}: {name}"));
        self.steps.crashed_at.push(name);
        match kind {
            CrashKind::Kill => self.kill(host),
            CrashKind::CutPower => self.cut_power(host),
        }
        true
    }
}

/// What crashes everywhere came to.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Steps of the scenario without a crash.
    pub steps: u64,
    /// Runs with one crash.
    pub singles: u64,
    /// Runs with two.
    pub pairs: u64,
    /// By name of a step: how often something crashed at it.
    pub crashed_at: BTreeMap<String, u64>,
    /// How often each invariant had something to judge.
    pub exercised: BTreeMap<Invariant, u64>,
    /// Times that a secondary took over.
    pub takeovers: u64,
    /// The run that broke a rule, if any.
    pub failed: Option<(Scenario, Crashes, Violation)>,
}

impl Coverage {
    /// Adds what others came to.
    pub fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.singles += other.singles;
        self.pairs += other.pairs;
        self.takeovers += other.takeovers;
        for (name, times) in other.crashed_at {
            *self.crashed_at.entry(name).or_default() += times;
        }
        for (invariant, times) in other.exercised {
            *self.exercised.entry(invariant).or_default() += times;
        }
        self.failed = self.failed.take().or(other.failed);
    }
}

/// One run; the number of its steps, and what it came to.
fn run(scenario: Scenario, crashes: &[(u64, CrashKind)], fault: Option<Fault>) -> (u64, Coverage) {
    let (mut steps, mut coverage) = run_once(scenario, crashes, fault, false);
    if coverage.failed.is_some() {
        (steps, coverage) = run_once(scenario, crashes, fault, true);
    }
    (steps, coverage)
}

fn run_once(
    scenario: Scenario,
    crashes: &[(u64, CrashKind)],
    fault: Option<Fault>,
    traced: bool,
) -> (u64, Coverage) {
    inject(fault);
    let mut setup = Setup::new(scenario.mode, scenario.disk != ScenarioDisk::None, DELAY_US);
    setup.replicated = scenario.disk == ScenarioDisk::Replicated;
    setup.flush = FlushMode::Both;
    // What is left after a crash in a stop is started once more.
    setup.restarts = setup.replicated;
    let rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut world = World::begun(rng, setup, Script::scenario(), Steps::with(crashes), traced);
    world.run();
    inject(None);
    let steps = std::mem::take(&mut world.steps);
    let outcome = world.outcome(SEED);
    let mut coverage = Coverage {
        takeovers: outcome.takeovers,
        exercised: outcome.exercised,
        failed: outcome
            .violation
            .map(|violation| (scenario, crashes.to_vec(), violation)),
        ..Coverage::default()
    };
    match crashes.len() {
        0 => coverage.steps = steps.taken,
        1 => coverage.singles = 1,
        _ => coverage.pairs = 1,
    }
    for name in steps.crashed_at {
        *coverage.crashed_at.entry(name).or_default() += 1;
    }
    (steps.taken, coverage)
}

/// A crash of each kind at every step of the scenario, and one in `pairs_stride` pairs of steps (1: all of
/// them, 0: none), on all processors. The kinds of a pair take turns. Ends early at the first violation.
pub fn crash_everywhere(scenario: Scenario, pairs_stride: u64, fault: Option<Fault>) -> Coverage {
    let (steps, bare) = run(scenario, &[], fault);
    let (next, total) = (AtomicU64::new(1), Mutex::new(bare));
    let work = || {
        loop {
            let first = next.fetch_add(1, Ordering::Relaxed);
            if first > steps {
                return;
            }
            let found = crash_from(scenario, first, pairs_stride, fault);
            if found.failed.is_some() {
                next.store(steps + 1, Ordering::Relaxed);
            }
            total
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .add(found);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    total
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn crash_from(scenario: Scenario, first: u64, pairs_stride: u64, fault: Option<Fault>) -> Coverage {
    let mut found = Coverage::default();
    for kind in [CrashKind::Kill, CrashKind::CutPower] {
        let (steps, single) = run(scenario, &[(first, kind)], fault);
        found.add(single);
        if found.failed.is_some() || pairs_stride == 0 {
            continue;
        }
        for second in first + 1..=steps {
            let (both, turn) = (first + second, if kind == CrashKind::Kill { 0 } else { 1 });
            // Each kind of the first crash gets every second pair, with the kind of the second by turns.
            if both % 2 != turn || (both / 2) % pairs_stride != 0 {
                continue;
            }
            let other = if (both / 2 / pairs_stride).is_multiple_of(2) {
                CrashKind::Kill
            } else {
                CrashKind::CutPower
            };
            found.add(run(scenario, &[(first, kind), (second, other)], fault).1);
            if found.failed.is_some() {
                return found;
            }
        }
    }
    found
}
