//! Commands that are told what happens to a VM.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a hook may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// The other host could go on with the VM now.
    Protected,
    /// It runs, and no other host has its state.
    Unprotected,
    /// Another host has its state, and could not go on from it now.
    NotReady,
    /// It cannot be told whether it could.
    InDoubt,
    /// The VM goes on here after the other host's failure.
    Takeover,
    /// It goes on here, as planned.
    Switchover,
    /// The side on this host has ended.
    Stopped,
    /// What keeps this host from a new term at the arbiter.
    ArbiterSilent,
    /// That is over.
    ArbiterBack,
}

impl fmt::Display for Occasion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// `[[hook]]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// When it runs.
    pub on: Vec<Occasion>,
    /// Program and arguments; it reads what happened as JSON.
    pub command: Vec<String>,
    /// Time after which it is killed, in ms.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
}

fn default_timeout_ms() -> u32 {
    10_000
}

impl Hook {
    /// [`Self::timeout_ms`].
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.into())
    }
}
