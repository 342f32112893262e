//! The control socket: how `kemari status`, `kemari tap` and commands reach a running side.
//!
//! A Unix socket of mode 0600. A client sends one request as one line of JSON, the server answers with lines
//! of JSON: `{"status":{...}}`, `{"done":"sentence"}`, `{"refused":"sentence"}`, and for a tap any number of
//! `{"tap":{...}}` before the `done`.

mod client;
mod drill;
mod place;
mod readiness;
mod server;
mod status;
mod tap;
mod timings;

use serde::{Deserialize, Serialize};

use crate::config::Mode;

pub use client::{Client, ClientError};
pub use drill::Drill;
pub(crate) use drill::{DRILL_SECONDS, DRILL_SECONDS_DEFAULT};
pub use readiness::{Readiness, Verdict};
pub(crate) use server::CALLS;
#[cfg(feature = "fuzzing")]
pub(crate) use server::serve;
pub use server::{Server, ServerError, TapSink};
pub(crate) use status::duration;
pub use status::{
    Counters, DiskKind, DiskState, DiskStatus, Peer, Protection, Role, Status, Takeover, Waits,
};
pub use tap::Bucket;
pub use tap::{Direction, TapLine, TapRequest, TapStatistics};
pub(crate) use tap::{TAP_SECONDS_MAX, TapTable};
pub(crate) use timings::Histogram;
pub use timings::Timings;

/// Longest line either way, in bytes.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Most clients at a time.
pub const CONNECTIONS_MAX: usize = 16;
// Whatever clients tap, a side's own taps find room: without them there is no sync.
const _: () = assert!(CONNECTIONS_MAX + 8 <= kemari_vmm::event::TAPS_MAX);
/// Longest time in which a client must send its request, or take an answer, in ms.
pub(crate) const IO_TIMEOUT_MS: u64 = 5_000;
/// Longest time that a client waits for what comes of a command, in ms:
/// a stop waits for the guest's last sync.
pub(crate) const COMMAND_TIMEOUT_MS: u64 = 120_000;

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How things stand.
    Status,
    /// What passes at an event channel, for a while.
    Tap(TapRequest),
    /// Something to do.
    Command(Command),
}

/// What an operator may order. What is done is answered with a sentence, what cannot be done with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// End the VM on both sides, cleanly.
    Stop,
    /// Begin to protect the VM.
    Protect,
    /// Let the secondary go, and run on alone.
    Unprotect,
    /// Make this secondary the primary, whatever its peer does; only if it wins the term.
    Takeover,
    /// Exchange the roles, losing nothing.
    Switchover,
    /// Give the running VM its record back, which the arbiter has lost;
    /// the operator vouches that no third host runs it.
    AdoptRecord,
    /// Try again what a disk of this host could not do, and let the VM run.
    Resume,
    /// Look which disks' images have grown, and tell the guest.
    Resize,
    /// Make this host's image of a disk larger; on the primary, then as [`Command::Resize`].
    Enlarge {
        /// The disk's id.
        disk: String,
        /// The size that it is to have.
        bytes: u64,
    },
    /// Start the committed state in isolation, for a while, and judge it; said to the secondary.
    Drill {
        /// For how long its guest runs, in seconds.
        seconds: u32,
    },
    /// Change the pace of the syncs while the VM runs.
    Pace(PaceChange),
    /// End this side: what SIGTERM asks for. A protected primary switches over, an unprotected one stops the
    /// VM, a secondary gives up what it holds. Only from within the process.
    #[serde(skip)]
    Leave,
}

/// What of the pace changes; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaceChange {
    /// What starts a sync, and what the guest does meanwhile.
    pub mode: Option<Mode>,
    /// Time between two syncs in mode `interval`, in ms.
    pub interval_ms: Option<u32>,
    /// Longest time between two syncs in any mode, in ms.
    pub max_interval_ms: Option<u32>,
    /// Dirty pages of 4 KiB that start a sync in any mode.
    pub max_dirty_pages: Option<u32>,
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// Part of the answer to [`Request::Tap`].
    Tap(TapLine),
    /// It was done; the last line.
    Done(String),
    /// It was not done, and why; the last line.
    Refused(String),
}

/// What the control socket controls.
pub trait Control: Send + Sync + 'static {
    /// How things stand.
    fn status(&self) -> Status;

    /// Reports what passes at a channel into `sink` until `request.seconds` are over or the sink is no longer
    /// wanted, with the statistics as the last line. The error is a sentence.
    fn tap(&self, request: &TapRequest, sink: &mut TapSink<'_>) -> Result<(), String>;

    /// Carries out a command; both outcomes are sentences.
    fn command(&self, command: Command) -> Result<String, String>;
}
