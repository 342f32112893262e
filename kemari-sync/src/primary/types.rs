//! What goes into the primary's state machine, and what comes out.

use serde::{Deserialize, Serialize};

use crate::consent::AskId;
use crate::record::{ArbiterAnswer, ArbiterRequest, Epoch, Incarnation, Record, Term};
use crate::replica::{CopyDisk, Source};
use crate::timing::Timing;
use crate::trouble::Trouble;
use crate::wire::{Begin, DiskMark, Message};

/// Names one connection to a peer (both channels of it). Never used twice by one process.
pub type SessionId = u64;

/// What starts a sync, and what the guest does while it is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Output starts it; the guest stays paused until the ack.
    Lockstep,
    /// Output starts it; the guest runs on after the capture, while its output waits.
    #[default]
    Pipelined,
    /// The clock alone starts it, every [`Timing::interval_ms`]; the guest runs on after the capture, and
    /// output waits for the next sync that contains it. To compare with.
    Interval,
}

/// What an operator may change of the syncs while they go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pace {
    /// From the next sync on.
    pub mode: Mode,
    /// See [`Timing::interval_ms`].
    pub interval_ms: u64,
    /// See [`Timing::max_interval_ms`].
    pub max_interval_ms: u64,
}

/// What becomes of the VM when its secondary is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnSecondaryLoss {
    /// It runs on, unprotected.
    #[default]
    Continue,
    /// It is stopped.
    Stop,
}

/// When the first copy ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CopyLimits {
    /// So few dirty pages are left to the first sync.
    pub converged_pages: u64,
    /// After so many rounds the copy ends: with a larger first sync, or given up if that does not fit.
    pub rounds_max: u32,
}

impl Default for CopyLimits {
    fn default() -> Self {
        Self {
            converged_pages: 512,
            rounds_max: 30,
        }
    }
}

/// Captures of a pair that fail in a row before the secondary goes on instead, or is given up if it cannot.
pub const CAPTURE_FAILURES_MAX: u32 = 3;

/// So large a part of the secondary's staging, one in this, is for pages that go ahead of their sync.
pub(super) const AHEAD_SHARE: u64 = 4;

/// What a primary is.
#[derive(Clone, Debug, Hash)]
pub struct PrimaryConfig {
    /// This process.
    pub me: Incarnation,
    /// Digest of the configuration that both sides must share.
    pub config_digest: u64,
    /// What starts a sync, and whether the guest waits for the ack.
    pub mode: Mode,
    /// Time-outs.
    pub timing: Timing,
    /// When the first copy ends.
    pub copy: CopyLimits,
    /// What follows the loss of the secondary.
    pub on_secondary_loss: OnSecondaryLoss,
    /// Whether a secondary is wanted from the start.
    pub protect: bool,
    /// The images of the replicated disks, in the order of the configuration.
    pub sources: Vec<Source>,
}

/// What happened to the primary.
#[derive(Clone, Debug)]
pub enum PrimaryEvent {
    /// Time passed: due at [`super::Primary::next_deadline`].
    Tick,
    /// Both channels to a secondary are up. Only while [`super::Primary::wants_peer`].
    PeerConnected {
        /// Its name from now on.
        session: SessionId,
    },
    /// A channel of the session failed or was closed by the peer. Nothing of it may come after this.
    PeerClosed {
        /// Which session.
        session: SessionId,
        /// What the system says about it.
        reason: String,
    },
    /// A control message came.
    Message {
        /// In which session.
        session: SessionId,
        /// What it says.
        message: Message,
    },
    /// The machine holds output that no capture contains. Repeat it after [`Self::Captured`] for output held
    /// since.
    OutputPending,
    /// More pages are dirty than a sync should carry.
    DirtyLimit,
    /// The image of a replicated disk has grown, here. Only while the VM is alone,
    /// and no session has heard of the old size.
    SourceGrown {
        /// Which, in the order of [`PrimaryConfig::sources`].
        disk: usize,
        /// Its size in bytes now.
        bytes: u64,
    },
    /// [`PrimaryAction::MarkSources`] is done.
    SourcesMarked {
        /// In which session.
        session: SessionId,
        /// Why it failed.
        result: Result<(), String>,
    },
    /// [`PrimaryAction::CopyDisks`] is done: few blocks are left. Or it failed, then or later.
    DisksCopied {
        /// In which session.
        session: SessionId,
        /// Why it failed.
        result: Result<(), String>,
    },
    /// Many pages are dirty although no sync is due: some of them could go ahead of it.
    DirtyAhead,
    /// One round of the first copy was handed to the link.
    CopyRoundSent {
        /// In which session.
        session: SessionId,
        /// Pages that are dirty again.
        dirty_pages: u64,
    },
    /// The machine is paused and captured.
    Captured {
        /// As in [`PrimaryAction::Capture`].
        epoch: Epoch,
        /// Dirty pages of this sync, those that went ahead counted as often as they were sent.
        pages: u64,
        /// Bytes of its state.
        bytes: u64,
        /// The guest has powered itself off in this epoch (or ended for good in another way).
        stop: bool,
    },
    /// The machine could not be captured. Its dirty pages, if any were read,
    /// wait for [`PrimaryAction::GiveBack`].
    CaptureFailed {
        /// As in [`PrimaryAction::Capture`].
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// All frames of the sync were handed to the link. For humans: an ack may come before it.
    Transmitted {
        /// Which sync.
        epoch: Epoch,
    },
    /// The arbiter's answer.
    Arbiter {
        /// As in [`PrimaryAction::Ask`].
        ask: AskId,
        /// Its answer.
        answer: ArbiterAnswer,
    },
    /// The guest has powered itself off: an output that ends the VM.
    PoweredOff,
    /// The operator stops the VM on both sides.
    OperatorStop,
    /// The operator ends the protection; the VM runs on.
    OperatorUnprotect,
    /// The operator wants a secondary (again).
    OperatorProtect,
    /// The operator exchanges the roles: the secondary goes on, and nothing is lost. See
    /// [`super::Primary::refuses_switchover`].
    OperatorSwitchover,
    /// The operator gives the VM its record back, which the arbiter's store has lost, or has in an older
    /// form; and vouches that no third host runs the VM. Answered with [`PrimaryAction::Adopted`].
    OperatorAdopt {
        /// The id that the store is to have: drawn at random.
        store: u128,
    },
    /// The operator changes the pace of the syncs.
    OperatorPace(Pace),
    /// In [`Mode::Pipelined`]: whether the guest waits for the ack all the same, from the next sync on. If
    /// not, one that waits is let go.
    GuestWaits(bool),
    /// [`PrimaryAction::Drain`] is done.
    Drained,
    /// [`PrimaryAction::CloseDisks`] is done.
    DisksClosed {
        /// Why something may yet be written to an image by this host.
        result: Result<(), String>,
    },
    /// What keeps this host from running the VM well, although it lives, has changed.
    Health {
        /// `None`: nothing.
        trouble: Option<Trouble>,
    },
    /// The guest has done something after which it cannot go on, here or elsewhere: it is at its end,
    /// as after a power-off.
    GuestFailed {
        /// What.
        reason: String,
    },
    /// This host cannot go on running the VM: an internal error of KVM, a memory failure,
    /// its own disk or network.
    HostFailing {
        /// What failed.
        reason: String,
    },
    /// The guest runs well here, and cannot be followed: its memory or its dirty pages cannot be read for the
    /// secondary.
    ProtectionFailing {
        /// What failed.
        reason: String,
    },
}

/// What the primary wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryAction {
    /// Send a control message, on the connection that [`Message::channel`] names.
    Send {
        /// In which session.
        session: SessionId,
        /// What to say.
        message: Message,
    },
    /// The replicated disks are to be copied so: note durably, in the records of the images here, what the
    /// copy is to cover: what is marked there and in the secondary's maps, or everything. Answer with
    /// [`PrimaryEvent::SourcesMarked`].
    MarkSources {
        /// In which session.
        session: SessionId,
        /// One for each disk.
        plans: Vec<CopyDisk>,
    },
    /// Compare and copy the disks while the guest runs, until few changed blocks are left; answer with
    /// [`PrimaryEvent::DisksCopied`]. What changes from here on belongs to the copy, up to the first
    /// [`Self::Transmit`], which sends the rest before anything else.
    CopyDisks {
        /// In which session.
        session: SessionId,
        /// One for each disk.
        plans: Vec<CopyDisk>,
    },
    /// All outputs of a disk up to this one are durable on the secondary's image.
    PeerFlushed(DiskMark),
    /// Send one round of the first copy while the guest runs, as `CopyPages` frames; answer with
    /// [`PrimaryEvent::CopyRoundSent`].
    CopyRound {
        /// In which session.
        session: SessionId,
        /// All pages, and dirty pages are counted from here on. Else: those dirty since the round before.
        first: bool,
    },
    /// Send dirty pages of the sync to come while the guest runs: the message that opens it, unless that was
    /// sent before, and its pages, as many as there are. A page that gets dirty again belongs to the sync
    /// again; all that went ahead are owed as long as the sync is not acked.
    SendAhead(Opening),
    /// Pause the guest (it may be paused already), stop the devices at a known point, take state and dirty
    /// pages. Answer with [`PrimaryEvent::Captured`] or [`PrimaryEvent::CaptureFailed`].
    Capture {
        /// Number of the sync.
        epoch: Epoch,
        /// Term of the pair.
        term: Term,
        /// From here on output is held until [`Self::Release`] or [`Self::OpenGate`]. False only in tests.
        hold: bool,
        /// The guest waits for the ack anyway: its pages may be sent while the rest is captured.
        at_once: Option<Opening>,
    },
    /// Send the captured sync: [`Message::Begin`] as given (unless pages of this sync were sent in this
    /// session before), its pages and states, [`Message::Commit`] with the tally and `stop`. Those two
    /// messages are part of the transmission: there is no other action to send them.
    Transmit {
        /// In which session.
        session: SessionId,
        /// The message that opens it.
        begin: Begin,
        /// The flag for the message that closes it.
        stop: bool,
    },
    /// This sync will not be acked: its dirty pages go back into the next one, its captured output counts as
    /// uncaptured again, its buffers are free. Its capture may still be under way.
    GiveBack {
        /// Which sync.
        epoch: Epoch,
    },
    /// Release all output that this sync captured; its buffers are free.
    Release {
        /// Which sync.
        epoch: Epoch,
    },
    /// The guest stops running until [`Self::Resume`], if it is not paused yet.
    Pause,
    /// The guest runs on.
    Resume,
    /// Ask the arbiter; answer with [`PrimaryEvent::Arbiter`].
    Ask {
        /// Names the request.
        ask: AskId,
        /// What to ask.
        request: ArbiterRequest,
    },
    /// The VM was given to the secondary, or is won by it, which means that this is the record: for an
    /// arbiter that has no store of its own.
    Assume(Record),
    /// The right to act alone is here: release all output, held and to come.
    OpenGate,
    /// The VM ends here, or goes on elsewhere: pause the guest, finish every released request, flush; answer
    /// with [`PrimaryEvent::Drained`]. Only a switchover that failed is followed by [`Self::Resume`].
    Drain,
    /// This host fails: the guest never runs again here, nothing more is released, its TAP goes down. Begin
    /// no request of a disk that both hosts see any more, wait for those under way, and close its image;
    /// answer with [`PrimaryEvent::DisksClosed`]. [`Self::Halt`] follows, whether or not that comes in time.
    CloseDisks,
    /// Another rules, or this host fails: the guest never runs again here, nothing more is released, its TAP
    /// goes down. The state machine is over.
    Halt {
        /// Why.
        reason: String,
    },
    /// Close both channels of the session. No [`PrimaryEvent::PeerClosed`] follows.
    CloseSession {
        /// Which session.
        session: SessionId,
        /// Why.
        reason: String,
    },
    /// The VM is stopped cleanly, and the record says so. The state machine is over.
    Exit {
        /// Why.
        reason: String,
    },
    /// The operator's word counts from here on: the arbiter's store is the right one, also if it went back.
    TrustArbiter,
    /// What [`PrimaryEvent::OperatorAdopt`] came to; both are sentences.
    Adopted(Result<String, String>),
    /// For humans: the first copy goes on.
    Progress {
        /// Round, from 1.
        round: u32,
        /// Pages left.
        dirty_pages: u64,
    },
    /// For humans: something they should know.
    Report(String),
}

/// What pages are sent with before their [`PrimaryAction::Transmit`]: they are a part of that sync, and if
/// the session ends before it they are as if they had never been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// In which session.
    pub session: SessionId,
    /// The message that opens the sync, if nothing of it was sent in this session.
    pub begin: Begin,
    /// No more pages than these may be sent so of one sync, counted as often as they are sent.
    pub pages_max: u64,
}

/// The record under which a primary begins, and how far syncs have been numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reign {
    /// Owner: this process; peer: none; phase: acting.
    pub record: Record,
    /// The last epoch that was ever committed of this VM, or 0.
    pub last_epoch: Epoch,
}
