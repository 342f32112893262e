//! What keeps a host from running the VM well although it lives: liveness is progress, not a heartbeat.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A host's own trouble. Its driver watches for it; the secondary's travels in its heartbeats. A primary in
/// trouble steps down if its secondary is not in trouble itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Trouble {
    /// The guest's network leads nowhere from here: its uplink has no carrier. The VM leaves by a switchover.
    Uplink(String),
    /// Own I/O makes no progress: the oldest unfinished request is past `progress_timeout_ms`, or storage
    /// does not answer. A switchover would wait for that request, so the host hands over as one that fails.
    Disk(String),
}

impl Trouble {
    /// Cuts its text to what a message may carry.
    pub fn shortened(&self) -> Self {
        match self {
            Self::Uplink(text) => Self::Uplink(crate::wire::reason_text(text.as_str())),
            Self::Disk(text) => Self::Disk(crate::wire::reason_text(text.as_str())),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uplink(text) | Self::Disk(text) => f.write_str(text),
        }
    }
}
