//! What the core wants done.

use std::time::{Duration, Instant};

use kemari_sync::wire::{Channel, Commit, Message, Staging, encode};
use kemari_sync::{Incarnation, SecondaryAction, SecondaryEvent, SessionId};
use kemari_vmm::state::{StateBlob, StateKind};

use super::super::readiness::Source;
use super::super::step::step;
use super::super::{clock, faults};
use super::{End, Input, LastSign, SecondarySide, trial};
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
                self.parted = None;
                self.prepare(session);
            }
            SecondaryAction::Stage { session, epoch } => {
                self.staging.begin(epoch);
                self.staged = Some((session, epoch));
            }
            SecondaryAction::Check { commit } => self.check(&commit),
            SecondaryAction::MarkTargets { session, plans } => self.mark_targets(session, &plans),
            SecondaryAction::Settled(mark) => self.settle_disk(mark),
            SecondaryAction::Discard { .. } => {
                if let Some(standby) = self.berth.standby_mut() {
                    standby.disks.awaited.forget_check();
                }
                self.staging.clear();
                self.staged = None;
            }
            SecondaryAction::Apply { epoch } => self.apply(epoch),
            SecondaryAction::Assume(record) => self.arbiter.assume(record),
            SecondaryAction::Ask { ask, request } => self.arbiter.ask(ask, request),
            SecondaryAction::Fence { old, until_ms } => self.fence(&old, until_ms),
            SecondaryAction::Restore { .. } => self.finish_disks_and_restore(),
            SecondaryAction::Run(reign) => {
                if let Some(standby) = self.berth.take_standby() {
                    let heard_us = self.heard_us.unwrap_or_default();
                    self.end = Some(End::TookOver(
                        reign,
                        standby,
                        LastSign {
                            heard_us,
                            step: self.step,
                            paused_ms: self.paused_ms,
                        },
                    ));
                }
            }
            SecondaryAction::Forget { reason } => {
                tracing::warn!("the VM's state here is void: {reason}");
                if let Some(standby) = self.berth.void() {
                    // It may have been restored for a takeover that another has won.
                    standby.seat.machine.detach_nets();
                    let limit = self.config.protection.replica_timeout();
                    self.remains.extend(standby.disks.abandon_stuck(limit));
                }
                self.forget_findings();
            }
            SecondaryAction::CloseSession { session, reason } => {
                tracing::info!("the session with the primary ends: {reason}");
                self.sessions.retain(|other| other.id != session);
                self.parted = Some(reason);
            }
            SecondaryAction::Exit { reason } => {
                self.stop_disks();
                self.end = Some(End::Stopped(reason));
            }
            SecondaryAction::Leave => {
                self.stop_disks();
                self.end = Some(End::Left);
            }
            SecondaryAction::Report(text) => tracing::info!("{text}"),
        }
    }

    fn send(&mut self, id: SessionId, mut message: Message) {
        clock::stamp(&mut message, self.board.mtus());
        let Some(session) = self.sessions.iter_mut().find(|session| session.id == id) else {
            return;
        };
        faults::before_sending(&message);
        let mut bytes = Vec::new();
        encode(&message, &mut bytes);
        let connection = match message.channel() {
            Channel::Main => &mut session.main,
            Channel::Heartbeat => &mut session.heartbeat,
        };
        connection.send(bytes);
    }

    /// Everything that could fail later is checked here: the sync is whole, and its states would load.
    fn check(&mut self, commit: &Commit) {
        let (epoch, now_ms) = (commit.epoch, self.clock.now_ms());
        let result = self
            .staging
            .check(commit)
            .map_err(|error| error.to_string())
            .and_then(|()| {
                let standby = self.berth.standby_mut().ok_or("there is no standby VM")?;
                standby.disks.check()?;
                let states = staged_states(&self.staging)?;
                let checked = standby.check_states(epoch, &states, now_ms);
                // What only decodes says nothing new.
                if checked != Ok(false) {
                    let refused = checked.as_ref().err().cloned();
                    self.board.findings().note(Source::State, None, refused);
                }
                checked?;
                self.checked_states = states;
                Ok(())
            });
        self.staged = None;
        if let Some(standby) = self.berth.standby_mut() {
            standby.disks.is_stop = commit.stop;
        }
        if result.is_ok() && self.berth.copying().is_some() && self.wait_for_whole_disks(epoch) {
            return;
        }
        self.events.push_back(SecondaryEvent::Checked { epoch, result });
    }

    /// The staged sync becomes the committed state. The first copy ends with the first sync.
    fn apply(&mut self, epoch: u64) {
        self.berth.note_commit();
        if let Some(standby) = self.berth.standby_mut() {
            let mut pages = 0;
            for page in self.staging.pages() {
                standby.write_page(page);
                pages += 1;
            }
            trial::merge(&mut standby.states, self.checked_states.drain(..));
            standby.trial.is_due = true;
            self.counters.pages += pages;
        }
        self.staging.clear();
        self.step = "acked";
        self.counters.syncs += 1;
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

/// The states that the staged sync brings.
pub(super) fn staged_states(staging: &Staging) -> Result<Vec<StateBlob>, String> {
    let blobs = staging.states().map(|frame| {
        let kind = StateKind::from_wire(frame.kind)
            .ok_or_else(|| format!("state of an unknown kind {}", frame.kind))?;
        Ok(StateBlob {
            kind,
            instance: frame.instance,
            version: frame.version,
            bytes: frame.bytes.to_vec(),
        })
    });
    blobs.collect()
}
