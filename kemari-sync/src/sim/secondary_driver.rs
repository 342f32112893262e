//! The driver of a secondary: standby memory, staging, fence, restore.

use crate::primary::Reign;
use crate::secondary::{Secondary, SecondaryAction, SecondaryConfig, SecondaryEvent};
use crate::wire::{Commit, CommitId, Message};

use super::events::ToProcess;
use super::fences::FENCE_MS_MAX;
use super::host::{Process, SecondarySide, Staged};
use super::invariants::{Invariant, memory, stop};
use super::net::{Frame, SECONDARY};
use super::parts::take_parts;
use super::replicas::ImageSide;
use super::restores::Restores;
use super::setup::STAGING_PAGES_MAX;
use super::vm::PAGES;
use super::world::World;

/// Actions that one event may lead to.
const ACTIONS_MAX: usize = 16;

impl World {
    pub(super) fn start_secondary(&mut self, host: usize) {
        self.new_process(host);
        let config = SecondaryConfig {
            me: self.hosts[host].me.clone(),
            vm: "vm".to_owned(),
            config_digest: 7,
            timing: self.setup.timing.clone(),
            fence_ms_max: (self.setup.has_disk && !self.setup.replicated).then_some(FENCE_MS_MAX),
            staging_pages_max: STAGING_PAGES_MAX,
        };
        let mut machine = Secondary::new(config, self.now_ms());
        let reasons = self.reasons(host);
        machine.handle(
            self.now_ms(),
            SecondaryEvent::Readiness { reasons },
            &mut Vec::new(),
        );
        self.note(|| format!("host {host} is a secondary"));
        self.hosts[host].process = Process::Secondary(SecondarySide {
            machine,
            session: None,
            primary: 0,
            memory: [0; PAGES],
            staged: None,
            state: None,
            image: ImageSide::default(),
            restores: Restores::default(),
            begun_term: 0,
            checked_stop: false,
            is_stop: false,
        });
        if self.script.unplugs {
            self.tell_after(0, host, ToProcess::LookIfReady);
        }
        self.look_soon(host);
        self.schedule_tick(host);
    }

    pub(super) fn feed_secondary(&mut self, host: usize, event: SecondaryEvent) {
        if self.steps_into(host, "secondary", &event) {
            return;
        }
        let now_ms = self.now_ms();
        let it = &mut self.hosts[host];
        let nonce = it.me.nonce;
        let mut actions = std::mem::take(&mut it.secondary_actions);
        let Some(side) = it.secondary() else { return };
        side.machine.handle(now_ms, event, &mut actions);
        let (decided, primary) = (side.machine.holds(), side.primary);
        if let Some(commit) = decided {
            self.checks.memory.decided(nonce, primary, commit);
        }
        if actions.len() > ACTIONS_MAX {
            self.violate(
                Invariant::Bounds,
                format!("one event led to {} actions", actions.len()),
            );
        }
        for action in actions.drain(..) {
            self.note(|| format!("host {host}: {action:?}"));
            let name = self.steps.name("secondary does", &action);
            self.do_secondary(host, action);
            if self.crashes_after(host, name) {
                return;
            }
        }
        self.hosts[host].secondary_actions = actions;
        self.schedule_tick(host);
    }

    fn do_secondary(&mut self, host: usize, action: SecondaryAction) {
        match action {
            SecondaryAction::Send { session, message } => {
                if let Message::LetGo(commit) = &message {
                    self.checks.stopped = Some((self.vm_life, commit.epoch));
                }
                self.transmit(session, SECONDARY, Frame::Message(message));
            }
            SecondaryAction::CloseSession { session, .. } => self.close_end(session, SECONDARY),
            SecondaryAction::Ask { ask, request } => self.send_ask(host, ask, request),
            SecondaryAction::Prepare { session } => {
                let (delay_us, fails) = (self.some_us(3_000), std::mem::take(&mut self.flags.prepare_fails));
                let Some(side) = self.hosts[host].secondary() else {
                    return;
                };
                (side.session, side.memory, side.state) = (Some(session), [0; PAGES], None);
                side.restores = Restores::default();
                side.image = ImageSide::default();
                side.is_stop = false;
                self.prepared += 1;
                let generation = self.prepared;
                if let Some(side) = self.hosts[host].secondary() {
                    side.image.generation = generation;
                }
                let fails = fails || !self.open_image(host);
                self.hosts[host].image.note_size();
                let offers = self.image_offers(host);
                let marks = self.hosts[host].image.marks;
                self.transmit(session, SECONDARY, Frame::Marks(marks));
                let event = SecondaryEvent::Prepared {
                    session,
                    result: outcome(fails).map(|()| offers),
                };
                self.tell_after(delay_us, host, ToProcess::Secondary(event));
            }
            SecondaryAction::MarkTargets { session, plans } => self.mark_targets(host, session, &plans),
            SecondaryAction::Settled(mark) => self.settle_replica(host, mark.request),
            SecondaryAction::Stage { session, epoch } => {
                let Some(side) = self.hosts[host].secondary() else {
                    return;
                };
                side.session = Some(session);
                side.staged = Some(Staged {
                    epoch,
                    pages: Vec::new(),
                    parts: Vec::new(),
                    damaged: false,
                });
            }
            SecondaryAction::Check { commit } => self.check(host, commit),
            SecondaryAction::Discard { epoch } => {
                let Some(side) = self.hosts[host].secondary() else {
                    return;
                };
                side.staged.take_if(|staged| staged.epoch == epoch);
            }
            SecondaryAction::Apply { epoch } => self.apply(host, epoch),
            SecondaryAction::Fence { old, until_ms } => self.begin_fence(host, &old.host, until_ms),
            SecondaryAction::Restore { .. } => self.begin_restore(host),
            SecondaryAction::Run(reign) => self.run_standby(host, reign),
            SecondaryAction::Forget { .. } => {
                let Some(side) = self.hosts[host].secondary() else {
                    return;
                };
                (side.session, side.staged, side.state) = (None, None, None);
                side.restores = Restores::default();
            }
            SecondaryAction::Exit { .. } | SecondaryAction::Leave => {
                self.stop_replica(host);
                self.end_process(host);
            }
            SecondaryAction::Assume(_) | SecondaryAction::Report(_) => {}
        }
    }

    pub(super) fn secondary_receives(&mut self, host: usize, session: u64, frame: Frame) {
        if let Frame::Message(message) = frame {
            if let (Message::Begin(begin), Some(side)) = (&message, self.hosts[host].secondary()) {
                side.primary = begin.primary;
                side.begun_term = begin.term;
            }
            self.note(|| format!("host {host} <- {message:?}"));
            return self.feed_secondary(host, SecondaryEvent::Message { session, message });
        }
        let Some(side) = self.hosts[host]
            .secondary()
            .filter(|side| side.session == Some(session))
        else {
            return;
        };
        if let Frame::Blocks(blocks) = frame {
            return self.take_blocks(host, blocks);
        }
        match (frame, &mut side.staged) {
            (Frame::CopyPages(pages), None) => {
                pages
                    .into_iter()
                    .for_each(|(page, value)| side.memory[page] = value);
            }
            (Frame::Pages(pages), Some(staged)) => staged.pages.extend(pages),
            (Frame::States(parts), Some(staged)) => staged.parts.extend(parts),
            (_, Some(staged)) => staged.damaged = true,
            (_, None) => {}
        }
        let staged = side.staged.as_ref().map_or(0, |staged| staged.pages.len() as u64);
        if staged > STAGING_PAGES_MAX {
            self.violate(Invariant::Bounds, format!("{staged} pages are staged"));
        }
    }

    fn check(&mut self, host: usize, commit: Commit) {
        let (delay_us, fails) = (self.some_us(800), std::mem::take(&mut self.flags.check_fails));
        let Some(side) = self.hosts[host].secondary() else {
            return;
        };
        side.checked_stop = commit.stop;
        let is_whole = side.staged.as_ref().is_some_and(|staged| {
            staged.pages.len() as u64 == commit.pages
                && staged.parts.len() as u32 == commit.states
                && !staged.damaged
        });
        let staged = side.staged.as_ref().filter(|_| is_whole);
        let verdict = staged.map(|staged| memory::refers(staged, &side.memory, side.state.is_some()));
        if let Some(verdict) = verdict {
            self.judge(Invariant::Memory, verdict);
        }
        let is_fine = is_whole && !fails && self.check_image(host);
        let event = SecondaryEvent::Checked {
            epoch: commit.epoch,
            result: outcome(!is_fine),
        };
        self.tell_after(delay_us, host, ToProcess::Secondary(event));
    }

    fn apply(&mut self, host: usize, epoch: u64) {
        let delay_us = self.some_us(800);
        let Some(side) = self.hosts[host].secondary() else {
            return;
        };
        if let Some(staged) = side.staged.take() {
            for (page, content) in staged.pages {
                content.apply(&mut side.memory[page]);
            }
            take_parts(&mut side.state, &staged.parts);
            side.is_stop = side.checked_stop;
        }
        let commit = side.machine.holds().unwrap_or(CommitId { term: 0, epoch });
        let committed = side.state.clone();
        let (memory, primary, session) = (side.memory, side.primary, side.session);
        self.commits += 1;
        let verdict = self
            .checks
            .memory
            .applied(primary, commit, memory, committed.as_deref());
        self.judge(Invariant::Memory, verdict);
        if let Some(vm) = committed {
            self.apply_outputs(host, &vm);
            self.image_follows(host, &vm, epoch);
        }
        if let Some(session) = session
            && std::mem::take(&mut self.flags.breaks_pairing)
        {
            self.reset_session(session);
        }
        self.tell_after(
            delay_us,
            host,
            ToProcess::Secondary(SecondaryEvent::Applied { epoch }),
        );
    }

    fn run_standby(&mut self, host: usize, reign: Reign) {
        let Some(side) = self.hosts[host].secondary() else {
            return;
        };
        let Some(state) = side.state.take() else {
            return self.violate(
                Invariant::Succession,
                format!("host {host} runs without any state"),
            );
        };
        let mut vm = *state;
        vm.pages = side.memory;
        self.takeovers += 1;
        let verdict = stop::runs(self.checks.stopped, vm.life, reign.last_epoch);
        self.judge(Invariant::Stop, verdict);
        self.judge_takeover(host, &reign.record);
        self.takes_over_image(host, &mut vm, reign.last_epoch);
        self.become_primary(host, reign, vm);
    }
}

pub(super) fn outcome(fails: bool) -> Result<(), String> {
    if fails {
        Err("a deliberate failure".to_owned())
    } else {
        Ok(())
    }
}
