//! The invariants, each in its own file: what must hold in every run, whatever fails.

pub(super) mod acting;
pub(super) mod cold_boot;
pub(super) mod consent;
pub(super) mod disk;
pub(super) mod fence;
pub(super) mod flush;
pub(super) mod history;
pub(super) mod hold;
pub(super) mod liveness;
pub(super) mod marks;
pub(super) mod memory;
pub(super) mod ready;
pub(super) mod replica;
pub(super) mod show;
pub(super) mod stop;
pub(super) mod succession;
pub(super) mod terms;

use std::collections::BTreeMap;

/// One rule that every run must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// Output leaves only with consent.
    Consent,
    /// What clients see is explained by one single execution.
    History,
    /// Who rules next starts from a state that contains all that left before;
    /// a deposed side adds nothing to it.
    Succession,
    /// Nobody tells the outside that the VM is there who may have been deposed.
    Show,
    /// Output is held only for a secondary to which the way is proved.
    Hold,
    /// Whoever the record says acts lacks nothing that it needs to run.
    Acting,
    /// Whoever counts as ready to take over could do so now.
    Ready,
    /// Never two sides release in one term.
    Terms,
    /// The secondary's memory after a commit is the primary's at the capture.
    Memory,
    /// Whoever acts is not struck any more by a fence of an earlier term.
    Fence,
    /// Writes to one block reach the shared disk in their order.
    Disk,
    /// An image of a replicated disk is explained by the one execution, and half a copy never runs.
    Replica,
    /// What may differ between two images is marked on one of them, at every moment.
    Marks,
    /// What the guest was told is flushed outlives power cuts of both hosts, and a stop keeps all.
    Flush,
    /// A VM that was stopped does not run from the stop.
    Stop,
    /// A cold boot replaces nobody who lives and holds the VM.
    ColdBoot,
    /// The VM runs again within a bound.
    Liveness,
    /// Staging, actions and deadlines are bounded.
    Bounds,
}

/// What the invariants remember.
#[derive(Default)]
pub(super) struct Checks {
    pub(super) violation: Option<(Invariant, String)>,
    /// By invariant: how often it had something to judge.
    exercised: [u64; Invariant::ALL.len()],
    pub(super) history: history::History,
    pub(super) memory: memory::Memory,
    pub(super) releasers: terms::Releasers,
    /// By block: the last write that the guest of this life was told is flushed.
    pub(super) promised: replica::Blocks,
    /// What the image had when the last primary was about to stop.
    pub(super) last_blocks: replica::Blocks,
    /// Life and epoch of the last stop that a secondary let go with.
    pub(super) stopped: Option<(u64, u64)>,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Consent,
        Self::History,
        Self::Succession,
        Self::Show,
        Self::Hold,
        Self::Acting,
        Self::Ready,
        Self::Terms,
        Self::Memory,
        Self::Fence,
        Self::Disk,
        Self::Replica,
        Self::Marks,
        Self::Flush,
        Self::Stop,
        Self::ColdBoot,
        Self::Liveness,
        Self::Bounds,
    ];
}

impl Checks {
    pub(super) fn exercised(&self) -> BTreeMap<Invariant, u64> {
        Invariant::ALL.into_iter().zip(self.exercised).collect()
    }

    pub(super) fn exercise(&mut self, invariant: Invariant) {
        self.exercised[invariant as usize] += 1;
    }
}
