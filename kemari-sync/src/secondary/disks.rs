//! The replicated disks on the receiving side: marked before they are written, flushed, and failing.

use crate::faults::{Fault, fault};
use crate::wire::{DiskMark, Message};

use super::session::Stage;
use super::{Actions, Secondary};
use crate::primary::SessionId;

impl Secondary {
    pub(super) fn on_targets_marked(
        &mut self,
        id: SessionId,
        result: Result<(), String>,
        actions: &mut Actions,
    ) {
        let Some(session) = self.session.as_mut().filter(|session| session.id == id) else {
            return;
        };
        if session.stage != Stage::Marking {
            return;
        }
        match result {
            Ok(()) => {
                session.stage = Stage::Copying;
                self.send(Message::DisksReady, actions);
            }
            Err(reason) => self.unfit(&reason, actions),
        }
    }

    /// What is committed cannot be applied: nothing can go on from here,
    /// and the right to ask for the VM goes with it.
    pub(super) fn on_replica_failed(&mut self, reason: String) {
        if !fault(Fault::KeepFailedReplica) {
            self.replica_failure = Some(reason);
        }
    }

    /// An ask that is not resolved may have won: then the takeover finds out that it cannot restore.
    pub(super) fn check_replica(&mut self, actions: &mut Actions) {
        let may_have_won = self
            .takeover
            .as_ref()
            .is_some_and(|takeover| takeover.contest.may_have_won());
        let Some(reason) = self.replica_failure.take_if(|_| !may_have_won) else {
            return;
        };
        self.unfit(&reason, actions);
        if self.held.is_some() {
            self.forget(&reason, actions);
        }
    }

    pub(super) fn on_disk_flushed(&mut self, mark: DiskMark, actions: &mut Actions) {
        match self.flushed.iter_mut().find(|known| known.disk == mark.disk) {
            Some(known) => *known = mark,
            None => self.flushed.push(mark),
        }
        if self.is_live() {
            self.send(Message::Flushed(mark), actions);
        }
    }

    /// What was said in a session that broke may not have arrived.
    pub(super) fn tell_flushed(&self, actions: &mut Actions) {
        for mark in &self.flushed {
            self.send(Message::Flushed(*mark), actions);
        }
    }

    fn is_live(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.stage == Stage::Live)
    }
}
