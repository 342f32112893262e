//! The guest of a primary: when it runs, what it is told, and what of its output may leave.

use rand::Rng;

use crate::primary::PrimaryEvent;

use super::client::Request;
use super::events::{Event, ToProcess};
use super::host::{Input, PrimarySide};
use super::invariants::{Invariant, consent, terms};
use super::vm::{Entry, Output, PAGES, Phase};
use super::world::World;

/// Dirty pages at which the machine says that a sync should start.
const DIRTY_LIMIT: u64 = 10;
/// Dirty pages at which it says that some could go ahead of the next sync.
const AHEAD_MIN: usize = 2;
/// Inputs kept for a paused machine.
const INBOX_MAX: usize = 64;

/// By which right something is released.
#[derive(Clone, Copy, Debug)]
pub(super) enum Basis {
    Alone,
    Sync(u64),
}

impl World {
    pub(super) fn resume(&mut self, host: usize) {
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
    pub(super) fn release(&mut self, host: usize, basis: Basis) {
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
        let (Output::Packet(reply) | Output::Write(reply) | Output::Flush(reply, _)) = entry.output;
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
            Output::Write(_) | Output::Flush(..) => {
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
        match &entry.output {
            Output::Packet(_) => {}
            Output::Flush(_, known) => {
                let delay_us = self.disk_us(host);
                self.flush_image(host, entry.number, known, delay_us);
            }
            &Output::Write(reply) => {
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
    pub(super) fn after_vm(&mut self, host: usize) {
        self.start_free_flushes(host);
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let (gate_open, has_held) = (side.gate_open, side.vm.has_held());
        if gate_open {
            self.release(host, Basis::Alone);
        } else if has_held {
            let delay_us = self.some_us(100);
            self.tell_after(delay_us, host, ToProcess::Primary(PrimaryEvent::OutputPending));
        }
        if !gate_open && self.rng.random_bool(0.5) {
            self.look_at_dirty_pages(host);
        }
    }

    /// What is dirty goes ahead of the next sync, or is so much that it starts one.
    fn look_at_dirty_pages(&mut self, host: usize) {
        let dirty = self.hosts[host].primary().map_or(0, |side| side.look_at_log());
        if dirty > DIRTY_LIMIT {
            self.tell_after(0, host, ToProcess::Primary(PrimaryEvent::DirtyLimit));
        } else if self.rng.random_bool(0.4) {
            self.offer_ahead(host, AHEAD_MIN);
        }
    }

    /// At least so many dirty pages are offered to go ahead of the next sync.
    pub(super) fn offer_ahead(&mut self, host: usize, pages_min: usize) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        side.look_at_log();
        side.debt.offer(pages_min);
        if side.debt.is_offered(PAGES) {
            self.tell_after(0, host, ToProcess::Primary(PrimaryEvent::DirtyAhead));
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
        later.any(|entry| match &entry.output {
            Output::Write(reply) => reply.page == page && (reply.seq, reply.hash) == value,
            _ => false,
        })
    }

    /// What the request with this number is.
    pub(super) fn output(&self, number: u64) -> Option<&Output> {
        let entry = self.vm.list.iter().find(|entry| entry.number == number);
        entry.map(|entry| &entry.output)
    }
}
