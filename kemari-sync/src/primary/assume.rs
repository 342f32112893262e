//! What it means for the record that the secondary goes on,
//! where nobody keeps one for both sides (`arbiter = "none"`).
//!
//! There this side would never read that another has won the VM: it would win it again, with both hosts well.

use crate::faults::{Fault, fault};
use crate::record::{Phase, Record, Work};

use super::sync::Sync;
use super::{Actions, Primary, PrimaryAction, Standing};

impl Primary {
    /// The VM is the secondary's: it was given to it, or it has said that it has won.
    pub(super) fn assume_successor(&self, actions: &mut Actions) {
        // Of a pair that is being recorded the secondary has committed the first sync.
        let pair = match &self.standing {
            Standing::Pairing(pairing) if pairing.asker.is_some() => &pairing.new,
            _ => &self.record,
        };
        let Some(owner) = pair.peer.clone().filter(|_| !fault(Fault::AssumeNoSuccessor)) else {
            return;
        };
        let term = pair.term + 1;
        actions.push(PrimaryAction::Assume(Record {
            term,
            base: term,
            owner,
            peer: None,
            phase: Phase::Acting,
            work: Work::default(),
            ..pair.clone()
        }));
    }

    /// This host fails while a pair is made: the secondary may have committed the first sync, if that was
    /// sent, and go on with it.
    pub(super) fn assume_pairing(&self, actions: &mut Actions) {
        let was_sent = self.sync.as_ref().is_some_and(Sync::was_sent);
        match &self.standing {
            Standing::Pairing(pairing) if pairing.asker.is_none() && was_sent => {
                actions.push(PrimaryAction::Assume(pairing.new.clone()));
            }
            Standing::Pairing(pairing) if pairing.asker.is_none() => {}
            Standing::Pairing(_) => self.assume_successor(actions),
            Standing::Alone | Standing::Paired | Standing::Over(_) => {}
        }
    }
}
