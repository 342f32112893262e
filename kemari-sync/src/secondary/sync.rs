//! A sync on the receiving side: staged, checked, committed, acked. The passed check is the decision.

use crate::faults::{Fault, fault};
use crate::record::Epoch;
use crate::wire::{Begin, Commit, CommitId, Message};

use super::session::Stage;
use super::{Actions, Held, Secondary, SecondaryAction};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Receiving,
    Checking,
    /// Checked, and not decided: an ask is not resolved, or the commit before is still being applied.
    Checked,
}

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Staging {
    pub(super) begin: Begin,
    stop: bool,
    pub(super) phase: Phase,
    acked: bool,
}

impl Secondary {
    pub(super) fn on_begin(&mut self, begin: Begin, actions: &mut Actions) {
        if let Err(reason) = self.check_begin(&begin) {
            return self.unfit(&reason, actions);
        }
        let Some(session) = &self.session else { return };
        actions.push(SecondaryAction::Stage {
            session: session.id,
            epoch: begin.epoch,
        });
        self.staging = Some(Staging {
            begin,
            stop: false,
            phase: Phase::Receiving,
            acked: false,
        });
        if fault(Fault::AckBeforeWhole) {
            self.ack_staging(actions);
        }
    }

    fn check_begin(&self, begin: &Begin) -> Result<(), String> {
        let Some(session) = &self.session else {
            return Err("there is no session".to_owned());
        };
        if self.staging.is_some() {
            return Err(format!("sync {} began within another", begin.epoch));
        }
        if begin.primary != session.primary.nonce || begin.secondary != self.config.me.nonce {
            return Err(format!("sync {} is from or for another process", begin.epoch));
        }
        let Some(held) = &self.held else {
            return match begin.base.is_none() && begin.term == session.term + 1 {
                true => Ok(()),
                false => Err(format!(
                    "sync {} of term {} cannot be the first",
                    begin.epoch, begin.term
                )),
            };
        };
        // The store may be another one: the operator has given the pair its record back
        // (`primary/adoption.rs`).
        if begin.term != held.last.term {
            return Err(format!(
                "sync {} is of term {}, not {}",
                begin.epoch, begin.term, held.last.term
            ));
        }
        let follows = begin.base == Some(held.last.epoch) && begin.epoch > held.last.epoch;
        match follows {
            true => Ok(()),
            false => Err(format!(
                "sync {} does not build upon sync {}",
                begin.epoch, held.last.epoch
            )),
        }
    }

    pub(super) fn on_commit(&mut self, commit: Commit, actions: &mut Actions) {
        let staging = self.staging.as_mut();
        let Some(staging) = staging.filter(|s| s.begin.epoch == commit.epoch && s.phase == Phase::Receiving)
        else {
            return self.unfit(
                &format!("sync {} ended without having begun", commit.epoch),
                actions,
            );
        };
        staging.phase = Phase::Checking;
        staging.stop = commit.stop;
        actions.push(SecondaryAction::Check { commit });
        if fault(Fault::ApplyBeforeCommit) {
            let epoch = commit.epoch;
            actions.push(SecondaryAction::Apply { epoch });
        }
        if fault(Fault::AckBeforeCheck) {
            self.ack_staging(actions);
        }
    }

    pub(super) fn on_staging_failed(&mut self, epoch: Epoch, reason: &str, actions: &mut Actions) {
        if self
            .staging
            .as_ref()
            .is_some_and(|staging| staging.begin.epoch == epoch)
        {
            self.unfit(reason, actions);
        }
    }

    pub(super) fn on_checked(&mut self, epoch: Epoch, result: Result<(), String>, actions: &mut Actions) {
        let staging = self.staging.as_mut();
        let Some(staging) = staging.filter(|s| s.begin.epoch == epoch && s.phase == Phase::Checking) else {
            return;
        };
        match result {
            Ok(()) => {
                staging.phase = Phase::Checked;
                self.try_commit(actions);
            }
            Err(reason) => self.unfit(&reason, actions),
        }
    }

    pub(super) fn on_applied(&mut self, epoch: Epoch, actions: &mut Actions) {
        if let Some(held) = &mut self.held
            && held.applying == Some(epoch)
        {
            held.applying = None;
            self.try_commit(actions);
            self.continue_takeover(actions);
        }
    }

    /// Commits what is checked, unless something must be certain first.
    pub(super) fn try_commit(&mut self, actions: &mut Actions) {
        // What an unresolved ask may have won must not change under it.
        let is_asking = self
            .takeover
            .as_ref()
            .is_some_and(|takeover| !takeover.contest.can_cancel());
        let is_applying = self.held.as_ref().is_some_and(|held| held.applying.is_some());
        if (is_asking && !fault(Fault::CommitWhileAsking)) || is_applying || self.replica_failure.is_some() {
            return;
        }
        let Some(session) = &mut self.session else { return };
        let Some(staging) = self.staging.take_if(|staging| staging.phase == Phase::Checked) else {
            return;
        };
        session.stage = Stage::Live;
        let Begin {
            epoch, term, store, ..
        } = staging.begin;
        let is_first = self.held.is_none();
        let is_kept = is_first || !fault(Fault::RollBackAcked);
        self.held = Some(Held {
            primary: session.primary.clone(),
            store,
            last: CommitId { term, epoch },
            stop: staging.stop,
            applying: is_kept.then_some(epoch),
        });
        self.lost_since_ms = None;
        // A takeover that has asked for nothing yet asks under no other store than what is held.
        if let Some(takeover) = &mut self.takeover {
            takeover.contest.follow(store);
        }
        if !staging.acked {
            self.send(ack(&staging), actions);
        }
        if is_kept {
            actions.push(SecondaryAction::Apply { epoch });
        }
        if is_first {
            self.assume_pair(actions);
        }
    }

    fn ack_staging(&mut self, actions: &mut Actions) {
        if let Some(staging) = self.staging.as_mut().filter(|staging| !staging.acked) {
            staging.acked = true;
            let message = ack(staging);
            self.send(message, actions);
        }
    }

    /// Rolls back what was not decided.
    pub(super) fn discard_staging(&mut self, actions: &mut Actions) {
        if let Some(staging) = self.staging.take() {
            actions.push(SecondaryAction::Discard {
                epoch: staging.begin.epoch,
            });
        }
    }

    /// A rule taken out for tests: a takeover begins with what happens to lie in staging.
    pub(super) fn keep_unchecked(&mut self, actions: &mut Actions) {
        if let Some(held) = &mut self.held
            && let Some(staging) = self.staging.take()
        {
            let epoch = staging.begin.epoch;
            held.last.epoch = epoch;
            held.applying = Some(epoch);
            actions.push(SecondaryAction::Apply { epoch });
        }
    }
}

/// A stop is acked by letting go: the guest will not run from it.
fn ack(staging: &Staging) -> Message {
    let commit = CommitId {
        term: staging.begin.term,
        epoch: staging.begin.epoch,
    };
    if staging.stop {
        Message::LetGo(commit)
    } else {
        Message::Ack(commit)
    }
}
