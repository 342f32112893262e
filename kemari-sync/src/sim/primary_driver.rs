//! The driver of a primary: how it begins, what its state machine is told, and what that wants done.

use rand::Rng;

use crate::debt::Debt;
use crate::known::KnownStates;
use crate::primary::{
    CopyLimits, Mode, OnSecondaryLoss, Primary, PrimaryAction, PrimaryConfig, PrimaryEvent, Reign,
};
use crate::record::{ArbiterAnswer, ArbiterRequest, Phase};
use crate::replica::announced_term;
use crate::wire::DeltaCache;

use super::copies::ImageCopy;
use super::events::ToProcess;
use super::flushes::SETTLE_US;
use super::guest::Basis;
use super::host::{PrimarySide, Process};
use super::invariants::{Invariant, consent, show, succession};
use super::net::{Frame, PRIMARY};
use super::parts::KNOWN_BYTES_MAX;
use super::vm::Vm;
use super::world::World;

/// Actions that one event may lead to.
const ACTIONS_MAX: usize = 24;

impl World {
    pub(super) fn become_primary(&mut self, host: usize, reign: Reign, vm: Vm) {
        self.judge_fences(host);
        let config = PrimaryConfig {
            me: self.hosts[host].me.clone(),
            config_digest: 7,
            mode: self.setup.mode,
            timing: self.setup.timing.clone(),
            copy: CopyLimits {
                converged_pages: 4,
                rounds_max: 12,
            },
            on_secondary_loss: OnSecondaryLoss::Continue,
            protect: true,
            sources: match self.setup.replicated {
                true => vec![self.hosts[host].image.source()],
                false => Vec::new(),
            },
        };
        let (nonce, record) = (config.me.nonce, reign.record.clone());
        let term = record.term;
        let verdict = consent::alone(&self.store, &record);
        self.judge(Invariant::Consent, verdict);
        let verdict = self.checks.history.begin_rule(nonce, vm.life, vm.seq, vm.hash);
        self.judge(Invariant::Succession, verdict);
        if self.setup.has_disk && !self.setup.replicated {
            let verdict = succession::knows_disk(&self.disk, &vm);
            self.judge(Invariant::Succession, verdict);
        }
        self.note(|| format!("host {host} runs the VM from {} in term {}", vm.seq, record.term));
        let machine = Primary::new(config, reign, self.now_ms());
        self.hosts[host].tick_us = None;
        self.hosts[host].process = Process::Primary(PrimarySide {
            machine,
            vm,
            gate_open: true,
            paused: false,
            stands_still: false,
            resizes: false,
            failed: Vec::new(),
            draining: false,
            closing: false,
            debt: Debt::default(),
            known_pages: DeltaCache::new(KNOWN_BYTES_MAX),
            known_states: KnownStates::default(),
            capture: None,
            inbox: Vec::new(),
            writes_in_flight: 0,
            dialing: false,
            copy: ImageCopy::of(term),
        });
        if let Some(side) = self.hosts[host].primary() {
            side.vm.reissue();
        }
        self.after_vm(host);
        self.tell_after(1_000, host, ToProcess::Dial);
        self.tell_after(3_000, host, ToProcess::VmTick);
        if self.setup.replicated {
            self.tell_after(SETTLE_US, host, ToProcess::Settle);
        }
        self.look_soon(host);
        self.schedule_tick(host);
    }

    pub(super) fn feed_primary(&mut self, host: usize, event: PrimaryEvent) {
        let now_ms = self.now_ms();
        if self.steps_into(host, "primary", &event) {
            return;
        }
        self.judge_show(host);
        let is_captured = matches!(event, PrimaryEvent::Captured { .. });
        let it = &mut self.hosts[host];
        let mut actions = std::mem::take(&mut it.primary_actions);
        let Some(side) = it.primary() else { return };
        if let PrimaryEvent::PeerClosed { session, .. } = event {
            side.debt.end_session(session);
        }
        let was_switching = side.machine.is_switching();
        side.machine.handle(now_ms, event, &mut actions);
        let gives_away = side.machine.is_switching() && !was_switching;
        self.judge_ready(host, gives_away);
        if actions.len() > ACTIONS_MAX {
            self.violate(
                Invariant::Bounds,
                format!("one event led to {} actions", actions.len()),
            );
        }
        for action in actions.drain(..) {
            self.note(|| format!("host {host}: {action:?}"));
            let name = self.steps.name("primary does", &action);
            self.do_primary(host, action);
            if self.crashes_after(host, name) {
                return;
            }
        }
        self.hosts[host].primary_actions = actions;
        if is_captured && self.hosts[host].primary().is_some_and(|side| side.vm.has_held()) {
            self.tell_after(0, host, ToProcess::Primary(PrimaryEvent::OutputPending));
        }
        self.end_resize(host);
        self.schedule_tick(host);
    }

    fn do_primary(&mut self, host: usize, action: PrimaryAction) {
        match action {
            PrimaryAction::Send { session, message } => {
                self.transmit(session, PRIMARY, Frame::Message(message))
            }
            PrimaryAction::CloseSession { session, .. } => {
                if let Some(side) = self.hosts[host].primary() {
                    side.debt.end_session(session);
                }
                self.close_end(session, PRIMARY);
            }
            PrimaryAction::Ask { ask, request } => self.ask_as_primary(host, ask, request),
            PrimaryAction::MarkSources { session, plans } => self.mark_sources(host, session, &plans),
            PrimaryAction::CopyDisks { session, .. } => self.copy_image(host, session),
            PrimaryAction::PeerFlushed(mark) => self.peer_flushed(host, mark.request),
            PrimaryAction::CopyRound { session, first } => self.copy_round(host, session, first),
            PrimaryAction::SendAhead(opening) => self.send_ahead(host, opening),
            PrimaryAction::Capture {
                epoch, hold, at_once, ..
            } => {
                // A driver makes use of it or does not.
                if let Some(opening) = at_once
                    && self.rng.random_bool(0.5)
                {
                    self.offer_ahead(host, 1);
                    self.send_ahead(host, opening);
                }
                self.capture(host, epoch, hold);
            }
            PrimaryAction::Transmit { session, begin, stop } => {
                if begin.base.is_none() && !self.finish_image_copy(host, session, begin.term) {
                    return;
                }
                if let Some(side) = self.hosts[host].primary() {
                    side.copy.session = Some(session);
                }
                self.transmit_capture(host, session, begin, stop);
            }
            PrimaryAction::GiveBack { epoch } => self.give_back(host, epoch),
            PrimaryAction::Release { epoch } => {
                if !self.rule_image(host, true) {
                    if let Some(side) = self.hosts[host].primary() {
                        side.known_states.forget();
                        side.known_pages.clear();
                    }
                    return self.give_back(host, epoch);
                }
                self.release(host, Basis::Sync(epoch));
                if let Some(side) = self.hosts[host].primary() {
                    side.debt.acked(epoch);
                    side.known_pages.acked(epoch);
                    side.known_states.acked(epoch);
                    side.capture.take_if(|capture| capture.epoch == epoch);
                }
                self.change_waiting(host);
            }
            PrimaryAction::OpenGate => {
                self.judge_fences(host);
                self.end_image_pair(host);
                if !self.rule_image(host, false) {
                    return;
                }
                if let Some(side) = self.hosts[host].primary() {
                    side.gate_open = true;
                    side.debt.forget();
                    side.known_pages.clear();
                    side.capture = None;
                }
                self.release(host, Basis::Alone);
            }
            PrimaryAction::Pause => {
                if let Some(side) = self.hosts[host].primary() {
                    side.paused = true;
                }
            }
            PrimaryAction::Resume => self.resume(host),
            PrimaryAction::Drain => {
                self.end_image_pair(host);
                if let Some(side) = self.hosts[host].primary() {
                    (side.paused, side.draining) = (true, true);
                    if !side.machine.is_switching() {
                        self.retry_failed(host);
                    }
                }
                self.check_drained(host);
            }
            PrimaryAction::CloseDisks => self.close_disk(host),
            PrimaryAction::Halt { .. } | PrimaryAction::Exit { .. } => self.end_process(host),
            PrimaryAction::Progress { .. }
            | PrimaryAction::Assume(_)
            | PrimaryAction::Report(_)
            | PrimaryAction::TrustArbiter
            | PrimaryAction::Adopted(_) => {}
        }
    }

    /// Before a term is asked for the record says that it may begin, and before this side acts alone that it
    /// is its own: after that nobody else could go on.
    fn ask_as_primary(&mut self, host: usize, ask: u64, request: ArbiterRequest) {
        let is_noted = match &request {
            ArbiterRequest::Read => true,
            ArbiterRequest::Swap { new, .. } if new.phase == Phase::Acting && new.peer.is_none() => {
                let is_ruled = self.rule_record(host, new.term);
                if let Some(side) = self.hosts[host].primary().filter(|_| is_ruled) {
                    side.copy.ruled.note(new.term);
                }
                is_ruled
            }
            ArbiterRequest::Swap { new, .. } => {
                let term = announced_term(new, || self.hosts[host].image.may_lack());
                self.announce_reign(host, term)
            }
        };
        match is_noted {
            true => self.send_ask(host, ask, request),
            // Who won it could not write anything under it: the secondary goes on, if it can; or else it is
            // tried again.
            false => {
                let is_pairing = matches!(&request, ArbiterRequest::Swap { new, .. }
                    if new.phase == Phase::Acting && new.peer.is_some());
                let side = self.hosts[host].primary();
                if side.is_some_and(|side| side.machine.goes_on_there()) && !is_pairing {
                    return self.fail_host(host);
                }
                let answer = ArbiterAnswer::Unavailable("its record cannot be written".to_owned());
                self.tell_after(0, host, ToProcess::Primary(PrimaryEvent::Arbiter { ask, answer }));
            }
        }
    }

    /// Announcements do not wait for an event: they may come before whatever comes next.
    fn judge_show(&mut self, host: usize) {
        let (now_ms, now_us) = (self.now_ms(), self.now_us);
        let timing = &self.setup.timing;
        let grace_us = timing.suspicion_ms.min(timing.reconnect_ms) * 1_000;
        let side = self.hosts[host].primary();
        if side.is_some_and(|side| side.machine.may_show(now_ms)) {
            let verdict = show::shows(&self.store, &self.hosts[host].me, now_us, grace_us);
            self.judge(Invariant::Show, verdict);
        }
    }

    /// A driver may find at any time that the guest had better wait for acks, or not.
    fn change_waiting(&mut self, host: usize) {
        if self.setup.mode == Mode::Pipelined && self.rng.random_bool(0.2) {
            let (delay_us, waits) = (self.some_us(5_000), self.rng.random_bool(0.6));
            self.tell_after(
                delay_us,
                host,
                ToProcess::Primary(PrimaryEvent::GuestWaits(waits)),
            );
        }
    }
}
