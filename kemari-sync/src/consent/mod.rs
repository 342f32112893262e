//! Consent: who may let output leave, and how the right passes from one to the other.
//!
//! * [`ask`]: one question to the arbiter, followed to a certain answer.
//! * [`contest`]: a member of a broken pair asks to rule alone, or to write that the VM is stopped.
//! * [`start`]: a cold boot wins a term before it runs a VM.

pub(crate) mod ask;
pub(crate) mod contest;
mod start;

pub use ask::AskId;
pub use start::{PeerWord, Start, StartAction, StartConfig, StartEvent};
