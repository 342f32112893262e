//! What is so of a primary whenever no event is being handled.

use crate::record::{Epoch, Term};

use super::session::Stage;
use super::sync::Stage as SyncStage;
use super::{Pairing, Primary, Standing};

/// What only rises.
pub(super) struct Risen {
    term: Term,
    next_epoch: Epoch,
    is_over: bool,
}

impl Primary {
    pub(super) fn risen(&self) -> Risen {
        Risen {
            term: self.record.term,
            next_epoch: self.next_epoch,
            is_over: self.is_over(),
        }
    }

    /// `before`: as it was before the event.
    pub(super) fn assert_invariants(&self, before: &Risen) {
        assert!(self.record.term >= before.term, "a record does not go back");
        assert!(self.next_epoch >= before.next_epoch, "no epoch comes twice");
        assert!(self.is_over() || !before.is_over, "what is over stays over");
        match &self.standing {
            Standing::Alone => self.assert_alone(),
            Standing::Pairing(pairing) => self.assert_pairing(pairing),
            Standing::Paired => self.assert_paired(),
            Standing::Over(_) => self.assert_over(),
        }
        self.assert_session();
        self.assert_sync();
        self.assert_ahead();
        self.assert_asks();
        self.assert_guest();
    }

    fn assert_alone(&self) {
        assert!(self.record.peer.is_none(), "alone is who shares no record");
        assert!(self.sync.is_none(), "nobody is there to be synchronised with");
        assert!(self.switchover.is_none(), "nobody is there to go on");
        assert!(self.lost_since_ms.is_none(), "nobody is there to be lost");
        let parts = self.parting.is_some() && !self.stop_is_committed();
        assert!(!parts, "there is nobody to part from");
    }

    fn assert_pairing(&self, pairing: &Pairing) {
        let new = &pairing.new;
        assert!(self.record.peer.is_none(), "the pair is not recorded yet");
        assert!(new.peer.is_some(), "a pair has two members");
        assert_eq!(new.term, self.record.term + 1, "a pair begins the next term");
        assert!(self.sync.is_some(), "a pair begins with a sync");
        assert!(
            self.parting.is_none() && self.adoption.is_none() && self.switchover.is_none(),
            "one thing is asked at a time, and nothing else for a pair that is none yet"
        );
        assert!(
            !self.stop_is_committed(),
            "the first sync of a pair is not its last"
        );
        let is_asked = pairing.asker.is_some();
        let is_committed = self
            .sync
            .as_ref()
            .is_some_and(|sync| sync.stage == SyncStage::Committed);
        assert_eq!(is_asked, is_committed, "the record names who has the first sync");
        assert!(is_asked || self.is_live(), "without its session it is given up");
    }

    fn assert_paired(&self) {
        assert!(self.record.peer.is_some(), "the record names the peer");
        assert!(self.acked.is_some(), "whoever is recorded has a sync");
        assert_eq!(
            self.lost_since_ms.is_some(),
            !self.is_live(),
            "who is not there is missed, so that it comes to an end"
        );
    }

    fn assert_over(&self) {
        assert!(
            self.parting.is_none() && self.sync.is_none() && self.adoption.is_none(),
            "who is over wants nothing any more"
        );
        assert!(
            self.session.is_none() || self.hand_over.is_some(),
            "only who hands over still has a word to say"
        );
    }

    fn assert_session(&self) {
        assert!(
            self.hand_over.is_none() || self.is_over(),
            "who hands over is over"
        );
        let Some(session) = &self.session else { return };
        let is_greeting = matches!(session.stage, Stage::Greeting);
        assert_eq!(session.peer.is_none(), is_greeting, "a greeting says who it is");
        let recorded = match &self.standing {
            Standing::Over(_) => return,
            Standing::Alone => return assert!(!self.is_live(), "syncs go to members of a pair"),
            Standing::Pairing(pairing) => &pairing.new.peer,
            Standing::Paired => &self.record.peer,
        };
        assert!(is_greeting || self.is_live(), "the peer of a pair copies nothing");
        assert!(
            is_greeting || session.peer == *recorded,
            "acks count from the recorded incarnation alone"
        );
    }

    fn assert_sync(&self) {
        let Some(sync) = &self.sync else { return };
        assert_eq!(sync.epoch + 1, self.next_epoch, "one sync at a time");
        assert!(sync.since_ms <= self.now_ms, "it began in the past");
        match (sync.stage, &self.session) {
            (SyncStage::Capturing, _) => assert!(self.paused, "who is captured stands still"),
            (SyncStage::Captured, _) => assert!(!self.is_live(), "what is captured is sent"),
            (SyncStage::Sent(to), Some(session)) if self.is_live() => {
                assert_eq!(to, session.id, "what was sent before is settled by the greeting");
            }
            (SyncStage::Sent(_), _) => {}
            (SyncStage::Committed, _) => {
                let is_pairing = matches!(self.standing, Standing::Pairing(_));
                assert!(is_pairing, "what the peer of a pair has is released");
            }
        }
        match sync.stage {
            SyncStage::Committed => assert_eq!(self.acked, Some(sync.epoch), "it is the last one acked"),
            _ => assert!(self.acked < Some(sync.epoch), "syncs rise"),
        }
        assert!(
            !sync.stop || self.stop.is_some(),
            "nobody wants this to be the last"
        );
        assert!(!(sync.stop && sync.last_here), "a stop is no change of roles");
        assert!(
            !sync.last_here || self.switchover.is_some(),
            "nobody wants to go on elsewhere"
        );
    }

    /// What goes ahead is of the sync that comes next, in this session.
    fn assert_ahead(&self) {
        let Some(ahead) = self.ahead.filter(|_| !self.is_over()) else {
            return;
        };
        assert!(self.is_joined(), "pages go ahead to the peer of a pair");
        let of = self.sync.as_ref().map_or(self.next_epoch, |sync| sync.epoch);
        assert_eq!(ahead, of, "pages go ahead of the next sync");
        assert!(
            self.sync.as_ref().is_none_or(|sync| !sync.was_sent()),
            "ahead is what the sync follows"
        );
    }

    fn assert_asks(&self) {
        let Some(parting) = &self.parting else { return };
        parting.contest.assert_invariants();
        assert!(
            parting.contest.asks_from(self.record.term, self.record.store),
            "what is asked for follows this side's own record"
        );
        assert!(
            !self.is_writing_record() || parting.contest.can_cancel(),
            "one thing is asked at a time"
        );
    }

    fn assert_guest(&self) {
        let is_stopped = self.stop_is_committed() || self.is_past_last_sync();
        assert!(
            self.paused || !is_stopped || self.is_over(),
            "behind its last sync no guest runs"
        );
        assert!(
            self.sync.is_none() || !(self.stop_is_committed() || self.is_past_last_sync()),
            "behind the last sync there is none"
        );
    }
}
