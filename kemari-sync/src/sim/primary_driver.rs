//! The driver of a primary: the toy machine, its gate, its captures.

use rand::Rng;

use crate::faults::{Fault, fault};
use crate::primary::{
    CopyLimits, Mode, OnSecondaryLoss, Opening, Primary, PrimaryAction, PrimaryConfig, PrimaryEvent, Reign,
};
use crate::record::ArbiterRequest;
use crate::wire::{Commit, Message};

use super::client::Request;
use super::copies::ImageCopy;
use super::flushes::SETTLE_US;
use super::host::{Ahead, Capture, Input, PrimarySide, Process};
use super::invariants::{Invariant, consent, hold, show, succession, terms};
use super::net::{Frame, PRIMARY};
use super::vm::{Entry, Output, Phase, Vm};
use super::world::{Event, STAGING_PAGES_MAX, ToProcess, World};

/// Dirty pages at which the machine says that a sync should start.
const DIRTY_LIMIT: u64 = 10;
/// Dirty pages at which it says that some could go ahead of the next sync.
const AHEAD_MIN: u64 = 2;
/// Inputs kept for a paused machine.
const INBOX_MAX: usize = 64;
/// Actions that one event may lead to.
const ACTIONS_MAX: usize = 24;

/// By which right something is released.
#[derive(Clone, Copy, Debug)]
pub(super) enum Basis {
    Alone,
    Sync(u64),
}

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
            captures: Vec::new(),
            ahead: None,
            inbox: Vec::new(),
            writes_in_flight: 0,
            dialing: false,
            copy: ImageCopy::default(),
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
            side.forget_ahead(session);
        }
        side.machine.handle(now_ms, event, &mut actions);
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
                    side.forget_ahead(session);
                }
                self.close_end(session, PRIMARY);
            }
            PrimaryAction::Ask { ask, request } => {
                if let ArbiterRequest::Swap { new, .. } = &request
                    && !self.announce_reign(host, self.announced_term(host, new))
                {
                    // Who won it could not write anything under it.
                    return self.fail_host(host);
                }
                self.send_ask(host, ask, request);
            }
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
                    self.send_ahead(host, opening);
                }
                self.capture(host, epoch, hold);
            }
            PrimaryAction::Transmit { session, begin, stop } => {
                if begin.base.is_none() && !self.finish_image_copy(host, session, begin.term) {
                    return;
                }
                let epoch = begin.epoch;
                let side = self.hosts[host].primary();
                let ahead = side.and_then(|side| {
                    side.copy.session = Some(session);
                    side.ahead.take()
                });
                if ahead.is_none() {
                    self.transmit(session, PRIMARY, Frame::Message(Message::Begin(begin)));
                }
                self.transmit_capture(host, session, epoch, stop, ahead.map_or(0, |ahead| ahead.sent));
            }
            PrimaryAction::GiveBack { epoch } => self.give_back(host, epoch),
            PrimaryAction::Release { epoch } => {
                if !self.rule_image(host, true) {
                    return;
                }
                self.release(host, Basis::Sync(epoch));
                if let Some(side) = self.hosts[host].primary() {
                    side.captures.retain(|capture| capture.epoch > epoch);
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
            | PrimaryAction::Report(_)
            | PrimaryAction::TrustArbiter
            | PrimaryAction::Adopted(_) => {}
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

    fn copy_round(&mut self, host: usize, session: u64, first: bool) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let mask = if first { u32::MAX } else { side.vm.dirty };
        side.vm.dirty = 0;
        let pages = pages_of(&side.vm, mask);
        self.transmit(session, PRIMARY, Frame::CopyPages(pages));
        let delay_us = self.some_us(6_000);
        self.tell_after(delay_us, host, ToProcess::CopyRoundSent(session));
    }

    pub(super) fn copy_round_sent(&mut self, host: usize, session: u64) {
        let dirty_pages = self.hosts[host].primary().map_or(0, |side| side.vm.dirty_pages());
        self.feed_primary(host, PrimaryEvent::CopyRoundSent { session, dirty_pages });
    }

    fn send_ahead(
        &mut self,
        host: usize,
        Opening {
            session,
            begin,
            pages_max,
        }: Opening,
    ) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let is_first = side.ahead.is_none();
        let ahead = side.ahead.get_or_insert(Ahead {
            session,
            pages: 0,
            sent: 0,
        });
        let room = pages_max.saturating_sub(ahead.sent) as usize;
        let mut pages = pages_of(&side.vm, side.vm.dirty);
        pages.truncate(room);
        for (page, _) in &pages {
            side.vm.dirty &= !(1 << page);
            ahead.pages |= 1 << page;
        }
        ahead.sent += pages.len() as u64;
        if is_first {
            self.transmit(session, PRIMARY, Frame::Message(Message::Begin(begin)));
        }
        self.transmit(session, PRIMARY, Frame::Pages(pages));
    }

    fn capture(&mut self, host: usize, epoch: u64, hold: bool) {
        let delay_us = self.some_us(1_000);
        let fails = std::mem::take(&mut self.flags.capture_fails);
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        side.paused = true;
        let begins_to_hold = hold && side.gate_open;
        side.gate_open &= !hold;
        let last = std::mem::take(&mut side.vm.dirty);
        let (ahead, sent) = side
            .ahead
            .as_ref()
            .map_or((0, 0), |ahead| (ahead.pages, ahead.sent));
        let dirty = match fault(Fault::ForgetAhead) {
            true => last,
            false => last | ahead,
        };
        side.vm.capture(epoch);
        side.captures.push(Capture {
            epoch,
            dirty,
            last,
            vm: Box::new(side.vm.clone()),
        });
        let stop = side.vm.powered_off;
        let (nonce, memory, seq) = (side.machine.record().owner.nonce, side.vm.pages, side.vm.seq);
        self.checks.memory.captured(nonce, epoch, memory, seq);
        if begins_to_hold {
            let verdict = hold::holds(&self.connections, self.hosts[host].life);
            self.judge(Invariant::Hold, verdict);
        }
        let event = match fails {
            true => PrimaryEvent::CaptureFailed {
                epoch,
                reason: "a deliberate failure".to_owned(),
            },
            false => PrimaryEvent::Captured {
                epoch,
                pages: sent + u64::from(last.count_ones()),
                bytes: 64,
                stop,
            },
        };
        self.tell_after(delay_us, host, ToProcess::Primary(event));
    }

    fn transmit_capture(&mut self, host: usize, session: u64, epoch: u64, stop: bool, ahead: u64) {
        let damaged = std::mem::take(&mut self.flags.damage);
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let Some(capture) = side.captures.iter().find(|capture| capture.epoch == epoch) else {
            return;
        };
        // What went ahead in a session that has ended goes with the rest.
        let mask = match ahead {
            0 => capture.dirty,
            _ => capture.last,
        };
        let (pages, vm) = (pages_of(&capture.vm, mask), capture.vm.clone());
        let count = ahead + pages.len() as u64;
        if count > STAGING_PAGES_MAX {
            self.violate(
                Invariant::Bounds,
                format!("a sync of {count} pages exceeds the staging"),
            );
        }
        let commit = Commit {
            epoch,
            pages: count,
            states: 1,
            digest: 0,
            stop,
        };
        self.transmit(session, PRIMARY, Frame::Pages(pages));
        if damaged {
            self.transmit(session, PRIMARY, Frame::Rubbish);
        }
        self.transmit(session, PRIMARY, Frame::State(vm));
        self.transmit(session, PRIMARY, Frame::Message(Message::Commit(commit)));
    }

    fn give_back(&mut self, host: usize, epoch: u64) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let Some(at) = side.captures.iter().position(|capture| capture.epoch == epoch) else {
            return;
        };
        side.vm.dirty |= side.captures.remove(at).dirty;
        for entry in &mut side.vm.list {
            if entry.phase == Phase::Captured(epoch) {
                entry.phase = Phase::Held;
            }
        }
    }

    fn resume(&mut self, host: usize) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        (side.paused, side.draining) = (false, false);
        self.run_guest(host);
    }

    /// The guest runs, if nothing holds it any more.
    pub(super) fn run_guest(&mut self, host: usize) {
        let Some(side) = self.hosts[host].primary().filter(|side| !side.is_still()) else {
            return;
        };
        for input in std::mem::take(&mut side.inbox) {
            match input {
                Input::Request(request) => side.vm.serve(request),
                Input::WriteDone(number, done) => side.vm.complete(number, done),
            }
        }
        self.after_vm(host);
    }

    /// Lets output go, and asks every time whether it may.
    fn release(&mut self, host: usize, basis: Basis) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let mut released = Vec::new();
        for entry in &mut side.vm.list {
            let is_covered = match (basis, entry.phase) {
                (_, Phase::Released) => false,
                (Basis::Alone, _) => true,
                (Basis::Sync(epoch), phase) => phase == Phase::Captured(epoch),
            };
            if is_covered {
                entry.phase = Phase::Released;
                released.push(entry.clone());
            }
        }
        side.vm
            .list
            .retain(|entry| entry.phase != Phase::Released || entry.output.is_disk());
        for entry in released {
            self.let_go(host, basis, &entry);
        }
    }

    fn let_go(&mut self, host: usize, basis: Basis, entry: &Entry) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let record = side.machine.record().clone();
        let (Output::Packet(reply) | Output::Write(reply) | Output::Flush(reply)) = entry.output;
        let verdict = match basis {
            Basis::Alone => consent::alone(&self.store, &record),
            Basis::Sync(epoch) => {
                consent::synced(&self.store, &self.checks.memory, &record, epoch, reply.seq)
            }
        };
        self.judge(Invariant::Consent, verdict);
        let verdict = terms::releases(&mut self.checks.releasers, &record);
        self.judge(Invariant::Terms, verdict);
        let verdict = self
            .checks
            .history
            .release(record.owner.nonce, self.vm_life, &reply);
        self.judge(Invariant::Succession, verdict);
        match entry.output {
            Output::Packet(reply) if !self.is_cut_off(host) => {
                let delay_us = self.some_us(1_500);
                self.after(delay_us, Event::Reply(reply));
            }
            Output::Packet(_) => {}
            Output::Write(_) | Output::Flush(_) => {
                if let Some(side) = self.hosts[host].primary() {
                    side.writes_in_flight += 1;
                }
                self.issue(host, entry);
            }
        }
    }

    /// Gives a request to the disk.
    pub(super) fn issue(&mut self, host: usize, entry: &Entry) {
        if self.hosts[host].primary().is_some_and(|side| side.closing) {
            return;
        }
        let (boot, life) = (self.hosts[host].boot, self.hosts[host].life);
        match entry.output {
            Output::Packet(_) => {}
            Output::Flush(_) => {
                let delay_us = self.disk_us(host);
                self.flush_image(host, entry.number, delay_us);
            }
            Output::Write(reply) => {
                if !self.mark_write(host, entry.number, reply.page) {
                    return self.tell_failed(host, entry.number);
                }
                let delay_us = self.disk_us(host);
                self.after(
                    delay_us,
                    Event::WriteLands {
                        host,
                        boot,
                        life,
                        number: entry.number,
                        reply,
                    },
                );
            }
        }
    }

    /// How long the disk takes for a request, in microseconds.
    fn disk_us(&mut self, host: usize) -> u64 {
        let slow = self.flags.disk_stalls && self.rng.random_bool(0.3);
        let mut delay_us = if slow { 400_000 } else { self.some_us(1_000) };
        if self.flags.disk_stuck[host] {
            delay_us += self.script.heal_us.saturating_sub(self.now_us);
        }
        delay_us
    }

    /// After the machine did something: output leaves or is held, and the state machine is told.
    fn after_vm(&mut self, host: usize) {
        self.start_free_flushes(host);
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let (gate_open, has_held, dirty) = (side.gate_open, side.vm.has_held(), side.vm.dirty_pages());
        if gate_open {
            self.release(host, Basis::Alone);
        } else if has_held {
            let delay_us = self.some_us(100);
            self.tell_after(delay_us, host, ToProcess::Primary(PrimaryEvent::OutputPending));
        }
        if !gate_open && dirty >= AHEAD_MIN && self.rng.random_bool(0.2) {
            self.tell_after(0, host, ToProcess::Primary(PrimaryEvent::DirtyAhead));
        }
        if !gate_open && dirty > DIRTY_LIMIT {
            self.tell_after(0, host, ToProcess::Primary(PrimaryEvent::DirtyLimit));
        }
    }

    pub(super) fn vm_tick(&mut self, host: usize) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        if !side.is_still() {
            side.vm.tick();
            self.after_vm(host);
        }
        self.tell_after(5_000, host, ToProcess::VmTick);
    }

    pub(super) fn vm_request(&mut self, host: usize, request: Request) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        if side.is_still() {
            if side.inbox.len() < INBOX_MAX {
                side.inbox.push(Input::Request(request));
            }
            return;
        }
        side.vm.serve(request);
        self.after_vm(host);
    }

    pub(super) fn vm_write_done(&mut self, host: usize, number: u64, done: bool) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        side.writes_in_flight = side.writes_in_flight.saturating_sub(1);
        if side.is_still() {
            side.inbox.push(Input::WriteDone(number, done));
        } else {
            side.vm.complete(number, done);
        }
        self.after_vm(host);
        self.check_drained(host);
    }

    pub(super) fn check_drained(&mut self, host: usize) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        if !side.draining || side.writes_in_flight > 0 {
            return;
        }
        if side.closing {
            let result = Ok(());
            return self.tell_after(0, host, ToProcess::Primary(PrimaryEvent::DisksClosed { result }));
        }
        self.stop_image(host);
        self.tell_after(0, host, ToProcess::Primary(PrimaryEvent::Drained));
    }
}

impl PrimarySide {
    /// Whether the guest does not run.
    pub(super) fn is_still(&self) -> bool {
        self.paused || self.stands_still
    }

    /// Whether the request with this number is a write to this block.
    pub(super) fn writes(&self, number: u64, page: usize) -> bool {
        matches!(self.output(number), Some(Output::Write(reply)) if reply.page == page)
    }

    /// Whether that is what an unfinished write after the request with this number makes of this block.
    pub(super) fn is_of_later(&self, number: u64, page: usize, value: (u64, u64)) -> bool {
        let mut later = self.vm.list.iter().filter(|entry| entry.number > number);
        later.any(|entry| {
            matches!(&entry.output, Output::Write(reply) if reply.page == page && (reply.seq, reply.hash) == value)
        })
    }

    /// What the request with this number is.
    pub(super) fn output(&self, number: u64) -> Option<&Output> {
        let entry = self.vm.list.iter().find(|entry| entry.number == number);
        entry.map(|entry| &entry.output)
    }

    /// The session has ended: what went ahead in it never arrived.
    fn forget_ahead(&mut self, session: u64) {
        if let Some(ahead) = self.ahead.take_if(|ahead| ahead.session == session)
            && !fault(Fault::ForgetAhead)
        {
            self.vm.dirty |= ahead.pages;
        }
    }
}

fn pages_of(vm: &Vm, mask: u32) -> Vec<(usize, u64)> {
    let pages = vm.pages.iter().copied().enumerate();
    pages.filter(|(page, _)| mask & (1 << page) != 0).collect()
}
