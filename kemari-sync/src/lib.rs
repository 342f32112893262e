//! The mechanism of Kemari: epochs, staging, terms and consent, as state machines without I/O.
//!
//! Two state machines, [`Primary`] and [`Secondary`], are fed with events, time included, and answer with
//! actions. They know no KVM, no socket, no clock and no thread; a driver carries out their actions, in
//! order. [`Start`] is the small third one that decides whether a VM may be booted at all. They handle
//! numbers of pages, never their bytes: those are for [`wire`], which is what goes between two drivers.
//!
//! The rules, and why there is no split brain: docs/concepts.md, "Consent".

mod checksum;
mod consent;
mod debt;
mod faults;
mod invariants;
mod known;
mod marks;
#[cfg(feature = "sim")]
pub mod model;
mod primary;
mod readiness;
mod record;
mod replica;
mod secondary;
#[cfg(feature = "sim")]
pub mod sim;
mod status;
mod timing;
mod trouble;
pub mod wire;

pub use consent::{AskId, PeerWord, Start, StartAction, StartConfig, StartEvent};
pub use debt::Debt;
pub use faults::Fault;
#[cfg(feature = "faults")]
pub use faults::inject;
pub use known::{KnownStates, changed_states};
pub use marks::{Carried, Extent, Marks, ReplicaMarks, RequestId, Settled, new_extents};
pub use primary::{
    CAPTURE_FAILURES_MAX, CopyLimits, Mode, OnSecondaryLoss, Opening, Pace, Primary, PrimaryAction,
    PrimaryConfig, PrimaryEvent, Reign, SessionId,
};
pub use readiness::{READINESS_MS_MAX, READINESS_REASON_BYTES_MAX, READINESS_REASONS_MAX, Readiness, UNSEEN};
pub use record::{
    Arbiter, ArbiterAnswer, ArbiterRequest, Epoch, Incarnation, NAME_BYTES_MAX, Phase, Record, TERM_MAX,
    Term, Work,
};
pub use replica::{
    CopyDisk, DiskOffer, ImageHistory, ImageState, ImageWord, REPLICAS_MAX, Ruled, Source, announced_term,
    lineage_id, may_start, plan_copy,
};
pub use secondary::{Restoration, RestorePart, Secondary, SecondaryAction, SecondaryConfig, SecondaryEvent};
pub use status::{Growth, Protection, Role, Status};
pub use timing::{Timing, TimingError};
pub use trouble::Trouble;
