//! What is so of a secondary whenever no event is being handled.

use crate::wire::CommitId;

use super::session::{Session, Stage};
use super::sync::{Phase, Staging};
use super::takeover::Takeover;
use super::{Held, Secondary};

impl Secondary {
    /// `before`: what was held before the event.
    pub(super) fn assert_invariants(&self, before: Option<CommitId>) {
        if self.is_over() {
            return self.assert_over();
        }
        match &self.held {
            Some(held) => self.assert_held(held, before),
            None => {
                assert!(self.takeover.is_none(), "who holds nothing asks for nothing");
                assert!(self.lost_since_ms.is_none(), "who holds nothing misses nobody");
            }
        }
        if let Some(session) = &self.session {
            self.assert_session(session);
        }
        if let Some(staging) = &self.staging {
            self.assert_staging(staging);
        }
        let may_have_won = self
            .takeover
            .as_ref()
            .is_some_and(|takeover| takeover.contest.may_have_won());
        assert!(
            self.replica_failure.is_none() || may_have_won,
            "from a failed image nobody goes on"
        );
    }

    fn assert_over(&self) {
        assert!(
            self.held.is_none() && self.takeover.is_none(),
            "who is over cannot ask for the VM"
        );
        assert!(
            self.session.is_none() && self.staging.is_none(),
            "who is over follows nobody"
        );
    }

    fn assert_held(&self, held: &Held, before: Option<CommitId>) {
        if let Some(before) = before {
            assert_eq!(
                held.last.term, before.term,
                "a term ends with what was held in it"
            );
            assert!(held.last.epoch >= before.epoch, "a commit does not go back");
        }
        assert_eq!(
            self.lost_since_ms.is_some(),
            self.session.is_none(),
            "a primary that is not there is missed, so that it comes to an end"
        );
        if let Some(takeover) = &self.takeover {
            takeover.assert_invariants();
            self.assert_takeover(takeover, held);
        }
    }

    fn assert_takeover(&self, takeover: &Takeover, held: &Held) {
        assert!(
            takeover.contest.asks_from(held.last.term, held.store),
            "what is asked for follows the last commit"
        );
        if takeover.has_won() {
            assert!(self.session.is_none(), "who has won follows nobody");
        }
        if takeover.has_begun() {
            assert!(held.applying.is_none(), "what is committed is applied first");
        }
        if takeover.declares() {
            assert!(takeover.may_run(held.stop), "who says that it acts is able to");
        }
    }

    fn assert_session(&self, session: &Session) {
        let is_live = session.stage == Stage::Live;
        assert_eq!(is_live, self.held.is_some(), "syncs go on from what is held");
        if let Some(held) = &self.held {
            assert!(session.primary == held.primary, "one primary is followed");
        }
        let greeted = self.greeted.map(|(nonce, _)| nonce);
        assert_eq!(
            greeted,
            Some(session.primary.nonce),
            "a session begins with a greeting"
        );
    }

    fn assert_staging(&self, staging: &Staging) {
        let Some(session) = &self.session else {
            panic!("what is not decided goes with its session");
        };
        let term = self.held.as_ref().map_or(session.term + 1, |held| held.last.term);
        assert_eq!(staging.begin.term, term, "a sync is of the pair's term");
        if let Some(held) = &self.held {
            assert!(staging.begin.epoch > held.last.epoch, "a sync is newer");
            assert_eq!(
                staging.begin.base,
                Some(held.last.epoch),
                "a sync builds upon what is held"
            );
        }
        let is_asking = self
            .takeover
            .as_ref()
            .is_some_and(|takeover| !takeover.contest.can_cancel());
        let is_applying = self.held.as_ref().is_some_and(|held| held.applying.is_some());
        assert!(
            staging.phase != Phase::Checked || is_asking || is_applying || self.replica_failure.is_some(),
            "what is checked is decided as soon as it can be"
        );
    }
}
