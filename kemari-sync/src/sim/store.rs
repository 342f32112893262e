//! The arbiter: a linearizable record whose answers may be late or lost.

use crate::record::{ArbiterAnswer, ArbiterRequest, Record};

#[derive(Default)]
pub(super) struct Store {
    pub(super) record: Option<Record>,
    /// Every record that ever stood there.
    pub(super) history: Vec<Record>,
    /// When the last of them was written, in microseconds.
    pub(super) changed_us: u64,
    /// No host reaches it.
    pub(super) is_down: bool,
    /// Answers get lost, and requests are carried out late.
    pub(super) is_lossy: bool,
}

impl Store {
    pub(super) fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        match request {
            ArbiterRequest::Read => ArbiterAnswer::Record(self.record.clone()),
            ArbiterRequest::Swap { expected, new } if *expected == self.record => {
                self.record = Some(new.clone());
                self.history.push(new.clone());
                ArbiterAnswer::Swapped
            }
            ArbiterRequest::Swap { .. } => ArbiterAnswer::Conflict(self.record.clone()),
        }
    }
}
