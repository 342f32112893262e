//! Deliberate faults: rules of the mechanism that a test takes out, to prove that it would notice.
//!
//! Without the cargo feature `faults` every question is answered `false` at compile time.

/// One rule taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Fault {
    /// The primary releases a sync when it is sent, not when it is acked.
    ReleaseBeforeAck,
    /// The secondary acks a sync whose check has not passed yet.
    AckBeforeCheck,
    /// The secondary acks a sync of which it has only the beginning.
    AckBeforeWhole,
    /// The secondary takes over without asking the arbiter.
    TakeoverWithoutTerm,
    /// The primary acts alone without asking the arbiter.
    ActAloneWithoutTerm,
    /// Dirty pages of a failed sync are not given back.
    ForgetGiveBack,
    /// A takeover starts from a sync that the secondary had not decided on.
    KeepUnchecked,
    /// The expected value of an ask is whatever was just read.
    AskWithReadTerm,
    /// An ask without an answer counts as one that did nothing.
    IgnoreUnresolvedAsk,
    /// A pair counts as soon as its first sync is acked, recorded or not.
    PairUnrecorded,
    /// The right to act alone stays while the first sync of a pair is under way.
    KeepRightToActAlone,
    /// The secondary runs the guest when it has won, without having written that it acts.
    RunBeforeActing,
    /// The secondary runs the guest before the old host is fenced.
    RunBeforeFence,
    /// The secondary runs the guest without a fence although the old host has not said that its disks are
    /// closed.
    SpareSilent,
    /// A primary that hands over says that its disks are closed while requests of it are under way.
    CloseUndrained,
    /// A winner is replaced while its fence may still strike.
    ReplaceFencing,
    /// A fence begins that may strike later than the record says.
    FenceLate,
    /// A VM is booted while the fence of its last winner may still strike. Not among [`Self::ALL`]: in the
    /// simulation the next host that could be struck is never ready so soon; a test of the start finds it.
    BootUnderFence,
    /// Output is held for a secondary to which the way is not proved.
    HoldUnproved,
    /// A primary says that the VM is here although its peer may have taken over.
    ShowUnasked,
    /// A restore that has failed counts as done.
    ActUnrestored,
    /// A win that another has replaced counts as restored when it is won again.
    /// Neither this nor the next is among
    /// [`Self::ALL`]: both sides must win in turn, and stand still in the few steps between a restore and the
    /// record; tests of the transitions find it.
    KeepRestored,
    /// The term that the images' records say stays, though another one was won meanwhile.
    RuleOnce,
    /// The records of a primary's images go back to the term of the pair that it has just left.
    RuleBackwards,
    /// Cards that were unplugged after a restore had failed count as plugged in.
    ForgetUnplugged,
    /// A secondary that holds a committed stop runs the guest.
    ResurrectStop,
    /// A cold boot does not ask what the recorded peer holds.
    ColdBootOverPeer,
    /// Whoever holds a commit of the record's term may ask, recorded or not.
    AskUnrecorded,
    /// A greeting that a newer one has overtaken begins a session.
    HearOvertaken,
    /// A handshake counts as an ack whoever it is with, and whatever it says.
    AckFromAnybody,
    /// What a third host says when it is greeted counts as the peer's ack.
    AckFromThird,
    /// The secondary commits and acks while its ask is not resolved. Not among [`Self::ALL`]: taken out alone
    /// this rule breaks nothing, since the winner starts from the state that it has at the win.
    CommitWhileAsking,
    /// A page is sent as its difference from what was sent and not acked.
    DeltaAgainstUnacked,
    /// A state is left out that is as it was sent, and not acked.
    StatesAgainstUnacked,
    /// A state is left out that another standby had.
    StatesOfAnother,
    /// The loser gives up its state as soon as another has won.
    ForgetAtWon,
    /// A queue's reset completes before what was captured in it is finished, and an ack releases past it.
    /// This and the next two are what devices owe the mechanism, which they do not know: the simulation's own
    /// break them.
    AckAcrossReset,
    /// Requests in flight are missing in the request list that a takeover starts from.
    ForgetRequest,
    /// A takeover reads the ring again, from as many requests on as were finished.
    ReadRingAgain,
    /// Pages that went ahead of a sync are not owed any more.
    ForgetAhead,
    /// A takeover starts from the commit before the last.
    RollBackAcked,
    /// A stop is recorded while released requests are still being carried out.
    StopBeforeDrained,
    /// Outputs are applied to the replica before their sync is committed.
    ApplyBeforeCommit,
    /// At its first commit a replica does without the first of the outputs that were under way then.
    ForgetInFlight,
    /// An image that is being copied into counts as whole.
    WholeEarly,
    /// What is written is not recorded before.
    RecordAfterWrite,
    /// A block's mark is taken as soon as the block is durable on the primary's image.
    UnmarkEarly,
    /// The mark of a block goes as soon as the other image has stored a copy of it, durable here or not.
    UnmarkCopied,
    /// The secondary says that what was copied is durable when a flush has ended that had begun before.
    StoredEarly,
    /// An image is compared with whatever its cache shows, also after a flush of it has failed.
    TrustCache,
    /// A flush that failed on the primary is forgotten: the next one proves nothing, and counts.
    ForgetFailedFlush,
    /// A flush that failed on the secondary is forgotten, and it goes on.
    ForgetFailedReplicaFlush,
    /// A flush that failed is forgotten by the last one, with which a VM ends.
    ForgetFailedDrain,
    /// The guest is told of a flush that should wait for both disks when the primary's has done it.
    FlushWithoutPeer,
    /// The secondary says that a flush is done when another has ended that had begun before.
    FlushedEarly,
    /// A VM is started from whatever image is there.
    StartFromAnyImage,
    /// A secondary whose image could not be written goes on as if it had been.
    AckFailedWrite,
    /// A secondary that learns that its image has failed keeps what it holds.
    KeepFailedReplica,
    /// The mark of a block whose write has failed goes like any other.
    UnmarkFailed,
    /// A guest is told that its request is done although the disk could not do it.
    HideFailure,
    /// The primary goes on with the size that its image had before it grew.
    KeepOldSize,
    /// The guest is told that its disk has grown while the other host's image follows.
    GrowWhilePaired,
    /// The record of an image that has grown does not say that what is new may differ.
    GrowUnmarked,
    /// An image is copied over any other. Not among [`Self::ALL`]: whoever copies has read at the arbiter
    /// that the last reign is its own, so in no seed does this rule have anything to do; it is for stores
    /// that forget.
    CopyOverNewer,
    /// A primary whose uplink or disk is dead stays although its secondary is well.
    StayInTrouble,
    /// What a secondary has found that would keep it from taking over counts for nothing.
    ReadyAnyhow,
    /// A primary in trouble gives its VM to a secondary that is not ready.
    StepDownBlindly,
    /// Where there is no arbiter, a primary does not note that its secondary goes on. Not
    /// among [`Self::ALL`]: the simulation has an arbiter; a test of the switchover finds it.
    AssumeNoSuccessor,
}

impl Fault {
    /// All that must be noticed.
    pub const ALL: [Self; 62] = [
        Self::ReleaseBeforeAck,
        Self::AckBeforeCheck,
        Self::AckBeforeWhole,
        Self::TakeoverWithoutTerm,
        Self::ActAloneWithoutTerm,
        Self::ForgetGiveBack,
        Self::KeepUnchecked,
        Self::AskWithReadTerm,
        Self::IgnoreUnresolvedAsk,
        Self::PairUnrecorded,
        Self::KeepRightToActAlone,
        Self::RunBeforeActing,
        Self::RunBeforeFence,
        Self::SpareSilent,
        Self::CloseUndrained,
        Self::ReplaceFencing,
        Self::FenceLate,
        Self::ActUnrestored,
        Self::RuleBackwards,
        Self::ForgetUnplugged,
        Self::ResurrectStop,
        Self::ColdBootOverPeer,
        Self::AskUnrecorded,
        Self::HearOvertaken,
        Self::AckFromAnybody,
        Self::AckFromThird,
        Self::ForgetAtWon,
        Self::AckAcrossReset,
        Self::ForgetRequest,
        Self::ReadRingAgain,
        Self::ForgetAhead,
        Self::DeltaAgainstUnacked,
        Self::StatesAgainstUnacked,
        Self::StatesOfAnother,
        Self::RollBackAcked,
        Self::StopBeforeDrained,
        Self::StayInTrouble,
        Self::ReadyAnyhow,
        Self::StepDownBlindly,
        Self::HoldUnproved,
        Self::ShowUnasked,
        Self::ApplyBeforeCommit,
        Self::ForgetInFlight,
        Self::WholeEarly,
        Self::RecordAfterWrite,
        Self::UnmarkEarly,
        Self::UnmarkCopied,
        Self::StoredEarly,
        Self::TrustCache,
        Self::ForgetFailedFlush,
        Self::ForgetFailedReplicaFlush,
        Self::ForgetFailedDrain,
        Self::FlushWithoutPeer,
        Self::FlushedEarly,
        Self::StartFromAnyImage,
        Self::AckFailedWrite,
        Self::KeepFailedReplica,
        Self::UnmarkFailed,
        Self::HideFailure,
        Self::KeepOldSize,
        Self::GrowWhilePaired,
        Self::GrowUnmarked,
    ];

    /// The fault with this name (as in the source).
    pub fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter().chain([
            Self::CommitWhileAsking,
            Self::CopyOverNewer,
            Self::BootUnderFence,
            Self::KeepRestored,
            Self::RuleOnce,
            Self::AssumeNoSuccessor,
        ]);
        all.find(|fault| format!("{fault:?}") == name)
    }
}

#[cfg(feature = "faults")]
mod injected {
    use std::cell::Cell;

    use super::Fault;

    thread_local! {
        static INJECTED: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    /// Takes out one rule, or none, for all state machines that run on this thread.
    pub fn inject(fault: Option<Fault>) {
        INJECTED.set(fault);
    }

    pub(crate) fn fault(fault: Fault) -> bool {
        INJECTED.get() == Some(fault)
    }

    pub(crate) fn are_all_rules_kept() -> bool {
        INJECTED.get().is_none()
    }
}

#[cfg(feature = "faults")]
pub use injected::inject;

#[cfg(feature = "faults")]
pub(crate) use injected::{are_all_rules_kept, fault};

/// Whether this rule is taken out: never, in a build without the feature.
#[cfg(not(feature = "faults"))]
pub(crate) const fn fault(_fault: Fault) -> bool {
    false
}

/// Whether no rule is taken out: always so in a build without the feature.
#[cfg(not(feature = "faults"))]
pub(crate) const fn are_all_rules_kept() -> bool {
    true
}
