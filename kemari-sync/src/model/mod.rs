//! The consent rules, explored exhaustively: one VM, three hosts, and everything that may happen next,
//! breadth first.
//!
//! It drives the production [`crate::Primary`], [`crate::Secondary`] and [`crate::Start`]. Time is abstracted
//! away: a time-out may fire at any moment, a message or an answer may take any time, and what is not
//! delivered is as good as lost. What costs is counted: each failure, time-out and order takes one from a
//! budget, so that the reachable states are finite. Equal states are visited once.
//!
//! The machine is a row of outputs, each of which names the process that executed it; copying, staging and
//! checks are one step, since crashes within them are the simulation's.

mod drive;
mod hash;
mod judge;
mod moves;
mod search;
mod state;

use crate::faults::Fault;

pub use judge::Rule;
pub use search::explore;

/// How far an exploration goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Crashes, returns, breaks of the link, lost answers, time-outs and orders, in any mixture.
    pub blows_max: u8,
    /// Outputs of the guest.
    pub outputs_max: u8,
    /// Moves from the beginning.
    pub depth_max: u32,
    /// Different states after which an exploration ends undecided.
    pub states_max: usize,
    /// Whether it begins with a protected VM, instead of with its boot.
    pub protected: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            blows_max: 3,
            outputs_max: 2,
            depth_max: 200,
            states_max: 20_000_000,
            protected: false,
        }
    }
}

/// A rule taken out of the mechanism, or of what its drivers owe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// Nothing.
    Nothing,
    /// A rule of the state machines.
    Mechanism(Fault),
    /// "The right to take over lives in memory only": a process that restarts finds the first commit that it
    /// had, on its disk, and with it its old name.
    RightInMemory,
    /// "A secondary reads the state it starts from at the win":
    /// it starts from what it had when it began to ask.
    StateAtTheWin,
}

/// A rule that was broken, and the shortest way there.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which rule.
    pub rule: Rule,
    /// What happened.
    pub text: String,
    /// What led to it, one line a move, each followed by what came of it.
    pub trace: Vec<String>,
}

/// What an exploration came to.
#[derive(Clone, Debug, Default)]
pub struct Exploration {
    /// Different states.
    pub states: usize,
    /// Moves made, also to states that were known.
    pub moves: u64,
    /// Moves on the shortest way to the state that is farthest off.
    pub depth: u32,
    /// Nothing within the budget was left out: neither the depth nor the number of states ended it.
    pub complete: bool,
    /// How often each rule had something to judge.
    pub exercised: std::collections::BTreeMap<Rule, u64>,
    /// The first violation.
    pub violation: Option<Violation>,
}
