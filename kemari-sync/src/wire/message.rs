//! Control messages: all that the two state machines say to each other.

use serde::{Deserialize, Serialize};

use crate::faults::{Fault, fault};
use crate::readiness::Readiness;
use crate::record::{Epoch, Incarnation, Term};
use crate::replica::{CopyDisk, DiskOffer};
use crate::trouble::Trouble;

use super::about::About;
use super::frame::FrameKind;

/// Version of the conversation. Both sides must speak the same.
pub const PROTOCOL_VERSION: u32 = 5;

/// Longest reason in a message, in bytes; longer ones are cut by [`reason_text`].
pub const REASON_BYTES_MAX: usize = 512;

/// Length of a [`Message::Proof`], in bytes: many packets of any size that a network carries.
pub const PROOF_BYTES: u32 = 64 << 10;

/// Which of the two connections of a session carries a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Everything with an order: handshake, pages, syncs, acks.
    Main,
    /// Heartbeats, which must not wait behind pages.
    Heartbeat,
}

/// Names one committed sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CommitId {
    /// Term of the pair.
    pub term: Term,
    /// Number of the sync.
    pub epoch: Epoch,
}

/// The first message of a session, from the side that executes the VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    pub protocol: u32,
    /// The VM's name.
    pub vm: String,
    /// Digest of the configuration that both sides must share.
    pub config_digest: u64,
    /// Who speaks.
    pub incarnation: Incarnation,
    /// Counts the sessions that the speaker has begun: a greeting that a newer one has overtaken begins none.
    pub session: u64,
    /// Term of the record that the speaker knows to be its own.
    pub term: Term,
    /// Nonce of the secondary in that record, or none.
    pub peer: Option<u128>,
    /// The last sync whose ack the speaker has in that term.
    pub last: Option<Epoch>,
}

/// The secondary's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Welcome {
    /// Who answers.
    pub incarnation: Incarnation,
    /// What it holds of this VM. It counts as an ack.
    pub last: Option<CommitId>,
}

/// Opens a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Begin {
    /// Number of this sync. Never used twice by one primary, also not after a failure.
    pub epoch: Epoch,
    /// The sync upon which this one builds: the secondary's last commit. `None`: the first copy.
    pub base: Option<Epoch>,
    /// Term of the pair (of the pair to be, in its first sync).
    pub term: Term,
    /// Which store holds the record.
    pub store: u128,
    /// Nonce of the sender's incarnation.
    pub primary: u128,
    /// Nonce of the receiver's incarnation.
    pub secondary: u128,
}

/// Closes a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Commit {
    /// Number of the sync.
    pub epoch: Epoch,
    /// Pages in it.
    pub pages: u64,
    /// State frames in it.
    pub states: u32,
    /// Checksum over all its frames, in order; see [`crate::SyncTally`].
    pub digest: u32,
    /// The VM ends with this sync: the receiver gives up its right to run the guest.
    pub stop: bool,
}

/// How far the outputs of a disk have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DiskMark {
    /// Which of the replicated disks, in the order of the configuration.
    pub disk: u16,
    /// Number of the request, rising over the life of the disk.
    pub request: u64,
}

/// A sign of life, also while pages fill the other connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts up from the first one of a session.
    pub sequence: u64,
    /// The sender's last committed (secondary) or acked (primary) sync; for humans only.
    pub epoch: Epoch,
    /// What keeps the sender's host from running the VM well, if anything.
    pub trouble: Option<Trouble>,
    /// Of a secondary: whether it could take over now.
    pub readiness: Option<Readiness>,
    /// The sender's wall clock, in milliseconds since 1970. The driver sets it when it sends: the mechanism
    /// knows no such clock.
    pub wall_clock_ms: u64,
    /// The MTU of each network card's TAP on the sender's host, in the configuration's order; 0: it is not
    /// known. The driver sets it as well.
    pub mtus: Vec<u32>,
}

/// Why a side ends a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Goodbye {
    /// The VM was stopped cleanly, and the record says so.
    Stopped,
    /// Its sender goes on alone, and the record says so: the primary, or the secondary, which has won the VM.
    Alone(String),
    /// The primary's host fails: the secondary should take over now.
    HandOver(String),
    /// The secondary cannot hold the VM.
    Unfit(String),
    /// Planned: the primary has committed its last sync, finished all I/O and holds its guest paused. The
    /// secondary goes on, and need not fence it.
    SwitchOver {
        /// For how long the guest has been paused for it so far, in milliseconds; for humans only.
        paused_ms: u64,
    },
    /// The primary's host fails, and lives: its guest has ended for good, and it has closed the disks that
    /// both hosts see. The secondary should take over now, and need not fence it.
    Closed(String),
}

impl Goodbye {
    /// Whether its sender has finished its I/O, and begins none any more without a new term: a fence is for
    /// those who do not say so.
    pub(crate) fn spares_fence(&self) -> bool {
        match self {
            Self::SwitchOver { .. } | Self::Closed(_) => true,
            Self::HandOver(_) => fault(Fault::SpareSilent),
            Self::Stopped | Self::Alone(_) | Self::Unfit(_) => false,
        }
    }
}

/// One control message. Pages and state never appear here: see [`super::PageBatch`] and
/// [`super::StateFrame`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// Primary: begin a session.
    Hello(Hello),
    /// Secondary: the session is accepted.
    Welcome(Welcome),
    /// Secondary: the session is refused, and why.
    Refuse(String),
    /// Primary: these bytes stand for all that is to follow. The secondary sends as many back: so frames of
    /// full size are known to pass, both ways, before anything depends on it.
    Proof {
        /// How many: [`PROOF_BYTES`].
        bytes: u32,
    },
    /// Primary: make a standby VM ready for the first copy. What was held before is void.
    Prepare,
    /// Secondary: memory is populated and locked; so many pages fit into one sync, and these are the images
    /// of the replicated disks. Their maps came before, as `DiskMap` frames.
    Ready {
        /// Most pages of one sync.
        staging_pages_max: u64,
        /// The replicated disks, in the order of the configuration.
        disks: Vec<DiskOffer>,
    },
    /// Primary: so the disks are copied. Nothing is written before this.
    CopyDisks(Vec<CopyDisk>),
    /// Secondary: the images are marked as inconsistent, durably; blocks may come.
    DisksReady,
    /// Primary: a sync begins.
    Begin(Begin),
    /// Primary: the sync is whole.
    Commit(Commit),
    /// Secondary: this sync is committed.
    Ack(CommitId),
    /// Secondary: this last sync is committed, and the guest will never run here.
    LetGo(CommitId),
    /// Secondary: all outputs of a disk up to this one are durable on its image.
    Flushed(DiskMark),
    /// Primary: all outputs of a disk up to this one are durable on both images.
    Settled(DiskMark),
    /// Either side: I live.
    Heartbeat(Heartbeat),
    /// Either side: the session ends.
    Goodbye(Goodbye),
    /// Secondary, to a question and after its `Welcome`: what this host is like.
    About(About),
}

impl Message {
    /// The kind of frame that carries this message.
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::Hello(_) => FrameKind::Hello,
            Self::Welcome(_) => FrameKind::Welcome,
            Self::Refuse(_) => FrameKind::Refuse,
            Self::Proof { .. } => FrameKind::Proof,
            Self::Prepare => FrameKind::Prepare,
            Self::Ready { .. } => FrameKind::Ready,
            Self::Begin(_) => FrameKind::Begin,
            Self::Commit(_) => FrameKind::Commit,
            Self::Ack(_) => FrameKind::Ack,
            Self::LetGo(_) => FrameKind::LetGo,
            Self::CopyDisks(_) => FrameKind::CopyDisks,
            Self::DisksReady => FrameKind::DisksReady,
            Self::Flushed(_) => FrameKind::Flushed,
            Self::Settled(_) => FrameKind::Settled,
            Self::Heartbeat(_) => FrameKind::Heartbeat,
            Self::Goodbye(_) => FrameKind::Goodbye,
            Self::About(_) => FrameKind::About,
        }
    }

    /// The connection that carries this message.
    pub fn channel(&self) -> Channel {
        match self {
            Self::Heartbeat(_) => Channel::Heartbeat,
            _ => Channel::Main,
        }
    }
}

/// Cuts a reason to what a message may carry.
pub fn reason_text(reason: impl Into<String>) -> String {
    shortened(reason.into(), REASON_BYTES_MAX)
}

/// Cuts a text to so many bytes, at a character's boundary.
pub fn shortened(mut text: String, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
