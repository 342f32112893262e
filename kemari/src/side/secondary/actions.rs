//! What the core wants done.

use std::time::{Duration, Instant};

use kemari_sync::wire::{Commit, Message};
use kemari_sync::{Incarnation, SecondaryAction, SecondaryEvent, SessionId};

use super::super::readiness::Source;
use super::super::step::step;
use super::super::{clock, faults};
use super::{End, Input, SecondarySide};
use crate::steward;
use crate::threads::helpers;

impl SecondarySide {
    pub(super) fn perform(&mut self, action: SecondaryAction) {
        if matches!(
            action,
            SecondaryAction::Ask { .. }
                | SecondaryAction::Restore { .. }
                | SecondaryAction::Forget { .. }
                | SecondaryAction::Exit { .. }
                | SecondaryAction::Leave
        ) {
            self.end_drill("this side has something else to do");
        }
        match action {
            SecondaryAction::Send { session, message } => self.send(session, message),
            SecondaryAction::Prepare { session } => {
                // Why the session before has ended says nothing of this one.
                self.told.forget_parted();
                self.prepare(session);
            }
            SecondaryAction::Stage { session, epoch } => self.inflow.begin(session, epoch),
            SecondaryAction::Check { commit } => self.check(&commit),
            SecondaryAction::MarkTargets { session, plans } => self.mark_targets(session, &plans),
            SecondaryAction::Settled(mark) => self.settle_disk(mark),
            SecondaryAction::Discard { .. } => {
                if let Some(standby) = self.berth.standby_mut() {
                    standby.disks.awaited.forget_check();
                }
                self.inflow.discard();
            }
            SecondaryAction::Apply { epoch } => self.apply(epoch),
            SecondaryAction::Assume(record) => self.arbiter.assume(record),
            SecondaryAction::Ask { ask, request } => self.arbiter.ask(ask, request),
            SecondaryAction::Fence { old, until_ms } => self.fence(&old, until_ms),
            SecondaryAction::Restore { .. } => self.finish_disks_and_restore(),
            SecondaryAction::Run(reign) => {
                if let Some(standby) = self.berth.take_standby() {
                    self.end = Some(End::TookOver(reign, standby, self.signs.last()));
                }
            }
            SecondaryAction::Forget { reason } => self.forget(&reason),
            SecondaryAction::CloseSession { session, reason } => {
                tracing::info!("the session with the primary ends: {reason}");
                self.sessions.close(session);
                self.told.note_parted(reason);
            }
            SecondaryAction::Exit { reason } => self.end_with(End::Stopped(reason)),
            SecondaryAction::Leave => self.end_with(End::Left),
            SecondaryAction::Report(text) => tracing::info!("{text}"),
        }
    }

    fn send(&mut self, session: SessionId, mut message: Message) {
        clock::stamp(&mut message, self.board.mtus());
        if self.sessions.get(session).is_some() {
            faults::before_sending(&message);
            self.sessions.send(session, &message);
        }
    }

    /// All that is held is void.
    fn forget(&mut self, reason: &str) {
        tracing::warn!("the VM's state here is void: {reason}");
        if let Some(standby) = self.berth.void() {
            // It may have been restored for a takeover that another has won.
            standby.seat.machine.detach_nets();
            let limit = self.config.protection.replica_timeout();
            self.builder.let_go(standby, limit);
        }
        self.forget_findings();
    }

    fn end_with(&mut self, end: End) {
        self.stop_disks();
        self.end = Some(end);
    }

    /// Everything that could fail later is checked here: the sync is whole, and its states would load.
    fn check(&mut self, commit: &Commit) {
        let (epoch, now_ms) = (commit.epoch, self.clock.now_ms());
        let (berth, findings) = (&mut self.berth, self.board.findings());
        let result = self.inflow.check(commit, |states| {
            let standby = berth.standby_mut().ok_or("there is no standby VM")?;
            standby.disks.check()?;
            let checked = standby.check_states(epoch, states, now_ms);
            // What only decodes says nothing new.
            if checked != Ok(false) {
                findings.note(Source::State, None, checked.as_ref().err().cloned());
            }
            checked.map(drop)
        });
        if result.is_ok() && self.berth.copying().is_some() && self.wait_for_whole_disks(epoch) {
            return;
        }
        self.events.push_back(SecondaryEvent::Checked { epoch, result });
    }

    /// The staged sync becomes the committed state. The first copy ends with the first sync.
    fn apply(&mut self, epoch: u64) {
        self.berth.note_commit();
        if let Some(standby) = self.berth.standby_mut() {
            self.inflow.commit_to(standby);
        }
        self.inflow.note_commit();
        self.signs.note_commit();
        self.apply_outputs(epoch);
    }

    fn fence(&mut self, old: &Incarnation, until_ms: u64) {
        let (config, host, peer) = (self.config.clone(), self.host.clone(), old.host.clone());
        let left = Duration::from_millis(until_ms.saturating_sub(self.clock.now_ms()));
        let until = Instant::now() + left;
        let mailbox = self.mailbox.clone();
        helpers::run("fence", move || {
            let fence = || steward::fence(&config, &host, &peer, until).map_err(anyhow::Error::msg);
            let result = step("fence", fence).map_err(|error| format!("{error:#}"));
            mailbox.post(Input::Fenced(result));
        });
    }
}
