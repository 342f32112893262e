//! The arbiter's record: who owns a VM, in which term, and with which peer.
//!
//! All that decides between two sides that cannot hear each other is one record per VM, changed only by
//! compare-and-set. See docs/concepts.md, "Consent".

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name of a VM or a host, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Number of a reign at the arbiter. Every change of membership adds one.
pub type Term = u64;

/// No VM comes as far as this term: whoever names it, or a higher one, is not to be believed.
pub const TERM_MAX: Term = u64::MAX >> 1;

/// Number of a sync. Epoch *n* is what the guest executed between sync *n-1* and sync *n*.
pub type Epoch = u64;

/// One life of a process on a host. A restarted process is another incarnation, and holds nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Incarnation {
    /// The host's name in the configuration.
    pub host: String,
    /// Drawn at random when the process starts.
    pub nonce: u128,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:08x}", self.host, self.nonce >> 96)
    }
}

/// How far the owner of a term has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The term was won by a side that has not yet released anything in it. The loser keeps its state.
    Won,
    /// The owner executes the VM, and may have released output in this term.
    Acting,
    /// The VM was stopped cleanly: nobody executes it, and whoever holds its disks may start it.
    Stopped,
}

/// What a winner that does not act yet says of its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Rises with each word: no record ever comes back.
    pub number: u64,
    /// Rises while the winner gets on with what it does. One whose beat stands still may be replaced.
    pub beat: u64,
    /// For so long from the moment at which this was written, in milliseconds, a fence may still strike the
    /// loser's host. 0: none is under way, and none begins under this record.
    pub fence_ms_max: u64,
}

/// A clock may be slow by one part in so many; who waits for a time that another clock measures waits longer
/// by that.
const CLOCK_DRIFT: u64 = 20;

/// The arbiter's record of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The VM's name in the configuration.
    pub vm: String,
    /// Drawn at random when the record is created: a store that was replaced or restored is noticed.
    pub store: u128,
    /// Number of this reign.
    pub term: Term,
    /// While `phase` is [`Phase::Won`]: the term of the pair whose break led to this record. Only members of
    /// that pair whose last commit carries this term may replace a winner that does not progress. Otherwise
    /// equal to `term`.
    pub base: Term,
    /// Who executes the VM, or executed it last.
    pub owner: Incarnation,
    /// Whose acks are consent. While `phase` is [`Phase::Won`]: the loser.
    pub peer: Option<Incarnation>,
    /// How far the owner has come.
    pub phase: Phase,
    /// While `phase` is [`Phase::Won`]: what the owner is doing.
    /// A record of before this was kept says nothing of it.
    #[serde(default)]
    pub work: Work,
}

impl Record {
    /// How long whoever sees this record for the first time waits until no fence of its owner can strike, in
    /// milliseconds of its own clock. It was written before that.
    pub fn strikes_for_ms(&self) -> u64 {
        match self.phase {
            Phase::Won => {
                let fence_ms_max = self.work.fence_ms_max;
                fence_ms_max.saturating_add(fence_ms_max.div_ceil(CLOCK_DRIFT))
            }
            Phase::Acting | Phase::Stopped => 0,
        }
    }
}

/// What an arbiter is asked to do.
// There is one at a time: a box would save nothing.
#[expect(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ArbiterRequest {
    /// Read the record, linearizably: never an older one than any answer before.
    Read,
    /// Replace the record by `new` if it is exactly `expected` (`None`: if there is none).
    Swap {
        /// The record that must stand there.
        expected: Option<Record>,
        /// What then takes its place.
        new: Record,
    },
}

/// What an arbiter answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ArbiterAnswer {
    /// The answer to a read.
    Record(Option<Record>),
    /// The swap was carried out.
    Swapped,
    /// The swap was not carried out, since this stood there instead.
    Conflict(Option<Record>),
    /// No answer: a swap may or may not have been carried out, or may still be.
    /// It must be resolved by reading back.
    Unknown(String),
    /// Certainly nothing was done (the arbiter refused, or could not be reached at all).
    Unavailable(String),
}

/// One record per VM behind a linearizable compare-and-set. Implemented over etcd and over files; the core
/// only returns [`ArbiterRequest`]s and is told [`ArbiterAnswer`]s.
pub trait Arbiter: Send {
    /// Carries out one request, blocking for at most the adapter's configured time.
    fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer;

    /// What the record must be, as far as a peer has told. Only an arbiter that has no store of its own
    /// listens.
    fn assume(&mut self, _record: &Record) {}
}
