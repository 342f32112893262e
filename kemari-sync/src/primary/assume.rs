//! What it means for the record that the secondary goes on, where nobody keeps one for both sides (`arbiter = "none"`).
//!
//! There this side would never read that another has won the VM: it would win it again, with both hosts well.

use crate::faults::{Fault, fault};
use crate::record::{Phase, Record, Work};

use super::{Actions, Primary, PrimaryAction};

impl Primary {
    /// The VM is the secondary's: it was given to it, or it has said that it has won.
    pub(super) fn assume_successor(&self, actions: &mut Actions) {
        let Some(owner) = self
            .record
            .peer
            .clone()
            .filter(|_| !fault(Fault::AssumeNoSuccessor))
        else {
            return;
        };
        let term = self.record.term + 1;
        actions.push(PrimaryAction::Assume(Record {
            term,
            base: term,
            owner,
            peer: None,
            phase: Phase::Acting,
            work: Work::default(),
            ..self.record.clone()
        }));
    }
}
