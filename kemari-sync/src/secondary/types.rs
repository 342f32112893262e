//! What goes into the secondary's state machine, and what comes out.

use crate::consent::AskId;
use crate::primary::{Reign, SessionId};
use crate::record::{ArbiterAnswer, ArbiterRequest, Epoch, Incarnation, Record};
use crate::replica::{CopyDisk, DiskOffer};
use crate::timing::Timing;
use crate::trouble::Trouble;
use crate::wire::{Commit, DiskMark, Message};

/// What a secondary is.
#[derive(Clone, Debug, Hash)]
pub struct SecondaryConfig {
    /// This process.
    pub me: Incarnation,
    /// The VM's name.
    pub vm: String,
    /// Digest of the configuration that both sides must share.
    pub config_digest: u64,
    /// Time-outs.
    pub timing: Timing,
    /// The old host must be fenced before the guest runs, since it shares a disk with this one: a fence is
    /// over, one way or the other, within so long, in milliseconds. `None`: there is nothing to fence from.
    pub fence_ms_max: Option<u64>,
    /// Most pages of one sync, told to the primary.
    pub staging_pages_max: u64,
}

/// What happened to the secondary.
#[derive(Clone, Debug)]
pub enum SecondaryEvent {
    /// Time passed: due at [`super::Secondary::next_deadline`].
    Tick,
    /// A channel of the session failed or was closed by the peer. Nothing of it may come after this.
    PeerClosed {
        /// Which session.
        session: SessionId,
        /// What the system says about it.
        reason: String,
    },
    /// A control message came. A session becomes known by its first one, [`Message::Hello`]; how many
    /// connections may wait without one, and how long, is the driver's to limit.
    Message {
        /// In which session.
        session: SessionId,
        /// What it says.
        message: Message,
    },
    /// [`SecondaryAction::Prepare`] is done: a standby VM is built, its memory populated and locked.
    /// Or it failed.
    Prepared {
        /// As in the action.
        session: SessionId,
        /// The images of the replicated disks, or why it failed.
        result: Result<Vec<DiskOffer>, String>,
    },
    /// [`SecondaryAction::MarkTargets`] is done.
    TargetsMarked {
        /// As in the action.
        session: SessionId,
        /// Why it failed.
        result: Result<(), String>,
    },
    /// An image here cannot be written: nothing can go on from it.
    ReplicaFailed {
        /// What failed.
        reason: String,
    },
    /// The committed state does not load on this host: nothing can go on from it.
    StateRefused {
        /// Why not.
        reason: String,
    },
    /// All outputs of a disk up to this one are durable on its image here.
    DiskFlushed(DiskMark),
    /// A frame of the sync that is being received does not fit, is damaged or malformed.
    StagingFailed {
        /// Which sync.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// [`SecondaryAction::Check`] is done. Nothing that was checked may fail later.
    Checked {
        /// Which sync.
        epoch: Epoch,
        /// Why the sync is refused.
        result: Result<(), String>,
    },
    /// [`SecondaryAction::Apply`] is done, disk writes applied or copied aside included.
    Applied {
        /// Which sync.
        epoch: Epoch,
    },
    /// The arbiter's answer.
    Arbiter {
        /// As in [`SecondaryAction::Ask`].
        ask: AskId,
        /// Its answer.
        answer: ArbiterAnswer,
    },
    /// [`SecondaryAction::Fence`] is done.
    Fenced {
        /// Why it failed.
        result: Result<(), String>,
    },
    /// [`SecondaryAction::Restore`] is done.
    Restored {
        /// Why it failed.
        result: Result<(), String>,
    },
    /// What keeps this host from running the VM well has changed.
    Health {
        /// `None`: nothing.
        trouble: Option<Trouble>,
    },
    /// What would keep this host from taking over now, as was just found out. Told again about once a second,
    /// changed or not: [`crate::READINESS_MS_MAX`].
    Readiness {
        /// Sentences; none: nothing would.
        reasons: Vec<String>,
    },
    /// The operator says that the primary is to be taken over now. The arbiter still decides.
    OperatorTakeover,
    /// The operator ends this process. Nothing comes of it while this side takes the VM over.
    OperatorLeave,
}

/// What the secondary wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecondaryAction {
    /// Send a control message, on the connection that [`Message::channel`] names.
    Send {
        /// In which session.
        session: SessionId,
        /// What to say.
        message: Message,
    },
    /// Build a standby VM, populate and lock its memory and the staging; then take `CopyPages` frames of this
    /// session, at once. Whatever an earlier session left is void. Answer with [`SecondaryEvent::Prepared`].
    Prepare {
        /// In which session.
        session: SessionId,
    },
    /// Mark the images of the replicated disks as inconsistent, durably: then `DiskSums` and `DiskBlocks`
    /// frames of this session may come. Answer with [`SecondaryEvent::TargetsMarked`]. The check of the first
    /// sync includes that all that came is durable, and the images whole again.
    MarkTargets {
        /// In which session.
        session: SessionId,
        /// One for each disk.
        plans: Vec<CopyDisk>,
    },
    /// All outputs of a disk up to this one are durable on both images.
    Settled(DiskMark),
    /// Open an empty staging for this sync; `Pages` and `State` frames of the session go there.
    Stage {
        /// In which session.
        session: SessionId,
        /// Number of the sync.
        epoch: Epoch,
    },
    /// The sync is whole: check everything that could fail later. Answer with [`SecondaryEvent::Checked`].
    Check {
        /// What its sender says it is.
        commit: Commit,
    },
    /// Throw this staging away: rollback. A check of it may still be under way.
    Discard {
        /// Number of the sync.
        epoch: Epoch,
    },
    /// The sync is committed, and staging is the state now: apply it.
    /// Answer with [`SecondaryEvent::Applied`].
    Apply {
        /// Number of the sync.
        epoch: Epoch,
    },
    /// The primary's words mean that this is the record: for an arbiter that has no store of its own.
    Assume(Record),
    /// Ask the arbiter; answer with [`SecondaryEvent::Arbiter`].
    Ask {
        /// Names the request.
        ask: AskId,
        /// What to ask.
        request: ArbiterRequest,
    },
    /// The term is won: make sure that this host's kernel can issue no more I/O. Answer with
    /// [`SecondaryEvent::Fenced`].
    Fence {
        /// Whose host.
        old: Incarnation,
        /// When that is over at the latest, in milliseconds of this machine's clock: what would strike later
        /// must not begin, and what has begun is ended.
        until_ms: u64,
    },
    /// Bring the standby VM to the committed state, rings re-attached, without running it and without any I/O
    /// of the guest's: what [`super::Restoration`] says is left. Answer with [`SecondaryEvent::Restored`].
    Restore {
        /// The last commit.
        epoch: Epoch,
    },
    /// The record says that this side acts: re-issue what was unfinished, open the gate, announce, run. This
    /// state machine is over; a [`crate::Primary`] begins with this reign.
    Run(Reign),
    /// All that is held of the VM is void: drop it. A new session may come.
    Forget {
        /// Why.
        reason: String,
    },
    /// Close both channels of the session. No [`SecondaryEvent::PeerClosed`] follows.
    CloseSession {
        /// Which session.
        session: SessionId,
        /// Why.
        reason: String,
    },
    /// The VM was stopped cleanly, and the record says so. The state machine is over.
    Exit {
        /// Why.
        reason: String,
    },
    /// What was held is given up, on order, and the primary knows it. The state machine is over.
    Leave,
    /// For humans: something they should know.
    Report(String),
}
