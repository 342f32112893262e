//! Captures: copies of memory, what goes ahead of a sync, what a sync takes with it, and what it gives back.

use crate::faults::{Fault, fault};
use crate::primary::{Opening, PrimaryEvent};
use crate::wire::{Commit, Message};

use super::events::ToProcess;
use super::host::{Ahead, Capture, PrimarySide};
use super::invariants::{Invariant, hold};
use super::net::{Frame, PRIMARY};
use super::setup::STAGING_PAGES_MAX;
use super::vm::{Phase, Vm};
use super::world::World;

impl World {
    pub(super) fn copy_round(&mut self, host: usize, session: u64, first: bool) {
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

    pub(super) fn send_ahead(
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

    pub(super) fn capture(&mut self, host: usize, epoch: u64, hold: bool) {
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

    pub(super) fn transmit_capture(&mut self, host: usize, session: u64, epoch: u64, stop: bool, ahead: u64) {
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

    pub(super) fn give_back(&mut self, host: usize, epoch: u64) {
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
}

impl PrimarySide {
    /// The session has ended: what went ahead in it never arrived.
    pub(super) fn forget_ahead(&mut self, session: u64) {
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
