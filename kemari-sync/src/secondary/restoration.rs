//! What a winner does before it acts, part by part.
//!
//! Any part can fail, for the weather or for an operator's slip, and then the restore is tried again: what
//! was done stays done. But for two things. The images' records name a term, and a win that another has
//! replaced, and that is won again, has another one. And whenever a part fails the cards are unplugged: the
//! network must not send here while this side does not run.

use crate::faults::{Fault, fault};
use crate::record::Term;

/// A part of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestorePart {
    /// The committed state goes into the standby VM: only once, since packets may have come in afterwards.
    Load,
    /// All that was committed is on the replicated images, and their records say the term that is won.
    Rule,
    /// The VM gets its disks.
    Disks,
    /// The VM gets its network cards.
    Cards,
}

/// What is done of the restore of one standby VM.
#[derive(Clone, Debug, Default)]
pub struct Restoration {
    is_loaded: bool,
    ruled: Option<Term>,
    has_disks: bool,
    has_cards: bool,
}

impl Restoration {
    /// What is to be done next of a restore under this term; `None`: nothing is left.
    pub fn next(&self, term: Term) -> Option<RestorePart> {
        let is_ruled = match fault(Fault::RuleOnce) {
            true => self.ruled.is_some(),
            false => self.ruled == Some(term),
        };
        let parts = [
            (self.is_loaded, RestorePart::Load),
            (is_ruled, RestorePart::Rule),
            (self.has_disks, RestorePart::Disks),
            (self.has_cards, RestorePart::Cards),
        ];
        parts
            .into_iter()
            .find(|(is_done, _)| !is_done)
            .map(|(_, part)| part)
    }

    /// Whether the VM has its state from a restore.
    pub fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// This part is done, under this term.
    pub fn note_done(&mut self, part: RestorePart, term: Term) {
        match part {
            RestorePart::Load => self.is_loaded = true,
            RestorePart::Rule => self.ruled = Some(term),
            RestorePart::Disks => self.has_disks = true,
            RestorePart::Cards => self.has_cards = true,
        }
    }

    /// A part has failed, and the cards are unplugged.
    pub fn note_failed(&mut self) {
        self.has_cards &= fault(Fault::ForgetUnplugged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is done until nothing is left, or until a part fails.
    fn run(restoration: &mut Restoration, term: Term, fails: Option<RestorePart>) -> Vec<RestorePart> {
        let mut tried = Vec::new();
        while let Some(part) = restoration.next(term) {
            tried.push(part);
            if fails == Some(part) {
                restoration.note_failed();
                break;
            }
            restoration.note_done(part, term);
        }
        tried
    }

    #[test]
    fn what_is_done_stays_done() {
        use RestorePart::{Cards, Disks, Load, Rule};
        let mut restoration = Restoration::default();
        assert_eq!(run(&mut restoration, 3, Some(Disks)), [Load, Rule, Disks]);
        assert_eq!(run(&mut restoration, 3, Some(Cards)), [Disks, Cards]);
        assert_eq!(run(&mut restoration, 3, None), [Cards]);
        assert_eq!(run(&mut restoration, 3, None), []);
    }

    #[test]
    fn another_win_needs_its_own_term_in_the_records_and_cards_that_were_unplugged() {
        use RestorePart::{Cards, Rule};
        let mut restoration = Restoration::default();
        run(&mut restoration, 3, None);
        assert_eq!(run(&mut restoration, 5, Some(Rule)), [Rule]);
        assert_eq!(run(&mut restoration, 5, None), [Rule, Cards]);
    }
}
