//! What a human is told about a side.

use serde::{Deserialize, Serialize};

use crate::faults::{Fault, fault};
use crate::readiness::Readiness;
use crate::record::{Epoch, Term};

/// Role of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It executes the VM.
    Primary,
    /// It holds, or waits to hold, the last committed state.
    Secondary,
}

/// How the VM is protected, seen from one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// Nobody else holds its state.
    Unprotected,
    /// The first copy is under way.
    Copying,
    /// The first sync is under way; output waits.
    Pairing,
    /// Each sync is committed by the secondary before its output leaves.
    Protected,
    /// The pair is broken, and the arbiter is being asked who goes on.
    Deciding,
    /// The VM does not run here, and will not: another has it, or it was stopped.
    Over,
}

/// Whether a replicated disk may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Now.
    Now,
    /// When the protection has ended: the other host must know it before the guest writes there.
    Alone,
    /// It is open who has the VM.
    Open,
}

impl Protection {
    /// Whether a replicated disk may grow under it.
    pub fn growth(self) -> Growth {
        match self {
            _ if fault(Fault::GrowWhilePaired) => Growth::Now,
            Self::Unprotected => Growth::Now,
            Self::Copying | Self::Pairing | Self::Protected => Growth::Alone,
            Self::Deciding | Self::Over => Growth::Open,
        }
    }
}

/// A snapshot for humans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Primary or secondary.
    pub role: Role,
    /// Term of the last record or commit that this side knows to be its own; 0: none.
    pub term: Term,
    /// The last committed sync; 0: none.
    pub epoch: Epoch,
    /// How the VM is protected.
    pub protection: Protection,
    /// For how long `protection` has been what it is, in milliseconds.
    pub for_ms: u64,
    /// Whether the secondary could take over now; `None`: it holds nothing that it could go on from,
    /// or no session.
    pub readiness: Option<Readiness>,
    /// What something waits for, and why; `None`: nothing waits.
    pub waiting: Option<String>,
}
