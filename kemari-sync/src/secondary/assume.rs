//! What either side's words mean for the record, where nobody keeps one for both sides (`arbiter = "none"`).

use crate::record::{Incarnation, Phase, Record, Term, Work};
use crate::wire::Goodbye;

use super::{Actions, Secondary, SecondaryAction};

impl Secondary {
    /// The first sync of a pair is committed, and the primary has the pair recorded, or will; or it is back,
    /// and has.
    pub(super) fn assume_pair(&self, actions: &mut Actions) {
        let term = self.held.as_ref().map_or(0, |held| held.last.term);
        self.assume(term, Some(self.config.me.clone()), Phase::Acting, actions);
    }

    /// The primary has left the pair.
    pub(super) fn assume_end(&self, goodbye: &Goodbye, actions: &mut Actions) {
        let phase = match goodbye {
            Goodbye::Stopped => Phase::Stopped,
            Goodbye::Alone(_) => Phase::Acting,
            // The VM is this side's.
            Goodbye::HandOver(_) | Goodbye::Closed(_) | Goodbye::Unfit(_) | Goodbye::SwitchOver { .. } => {
                return;
            }
        };
        self.assume_no_pair(phase, actions);
    }

    /// Whoever says that it is unfit gives the VM up for good: the primary goes on alone.
    pub(super) fn assume_unfit(&self, actions: &mut Actions) {
        self.assume_no_pair(Phase::Acting, actions);
    }

    fn assume_no_pair(&self, phase: Phase, actions: &mut Actions) {
        let term = self.held.as_ref().map_or(0, |held| held.last.term + 1);
        self.assume(term, None, phase, actions);
    }

    fn assume(&self, term: Term, peer: Option<Incarnation>, phase: Phase, actions: &mut Actions) {
        let Some(held) = &self.held else { return };
        actions.push(SecondaryAction::Assume(Record {
            vm: self.config.vm.clone(),
            store: held.store,
            term,
            base: term,
            owner: held.primary.clone(),
            peer,
            phase,
            work: Work::default(),
        }));
    }
}
