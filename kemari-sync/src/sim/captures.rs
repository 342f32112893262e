//! Captures: copies of memory, what goes ahead of a sync, what a sync takes with it, and what it gives back.

use crate::known::changed_states;
use crate::primary::{Opening, PrimaryEvent};
use crate::wire::{Begin, Commit, Message};

use super::events::ToProcess;
use super::host::{Capture, PrimarySide};
use super::invariants::{Invariant, hold};
use super::net::{Frame, PRIMARY};
use super::parts::{Content, parts_of};
use super::setup::STAGING_PAGES_MAX;
use super::vm::{PAGES, Phase, Vm};
use super::world::World;

/// Most pages that go ahead of a sync in one go.
const AHEAD_AT_ONCE: usize = 4;
/// Of so many syncs, so many are sent as differences.
const DELTA_TURN: u64 = 32;
const DELTAS_IN_TURN: u64 = 24;

impl World {
    pub(super) fn copy_round(&mut self, host: usize, session: u64, first: bool) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        side.look_at_log();
        let mut pages = side.debt.take_round();
        if first {
            side.debt.forget();
            // A new standby: it has neither pages nor states yet.
            side.known_states.forget();
            side.known_pages.clear();
            pages = (0..PAGES as u64).collect();
        }
        let pages = pages_of(&side.vm, pages);
        self.transmit(session, PRIMARY, Frame::CopyPages(pages));
        let delay_us = self.some_us(6_000);
        self.tell_after(delay_us, host, ToProcess::CopyRoundSent(session));
    }

    pub(super) fn copy_round_sent(&mut self, host: usize, session: u64) {
        let dirty_pages = self.hosts[host].primary().map_or(0, |side| side.look_at_log());
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
        let is_first = side.debt.went_ahead_in(begin.epoch) != Some(session);
        let pages = side
            .debt
            .go_ahead((session, begin.epoch), AHEAD_AT_ONCE, pages_max as usize);
        if pages.is_empty() {
            return;
        }
        let pages = whole(pages_of(&side.vm, pages));
        // What is known of the secondary's pages gets old.
        side.known_pages.clear();
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
        side.debt.capture(epoch);
        let vm = &mut side.vm;
        let Ok(_) = side.debt.find_captured(|pages| vm.tell_dirty(pages));
        side.vm.capture(epoch);
        side.encode(epoch, fails);
        let sent = side.capture.as_ref().map_or(0, |capture| capture.pages.len());
        let pages = (sent + side.debt.pages_ahead()) as u64;
        let stop = side.vm.powered_off;
        let (nonce, vm) = (side.machine.record().owner.nonce, &side.vm);
        self.checks.memory.captured(nonce, epoch, vm);
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
                pages,
                bytes: 64,
                stop,
            },
        };
        self.tell_after(delay_us, host, ToProcess::Primary(event));
    }

    pub(super) fn transmit_capture(&mut self, host: usize, session: u64, begin: Begin, stop: bool) {
        let epoch = begin.epoch;
        let damaged = std::mem::take(&mut self.flags.damage);
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let Some(capture) = side.capture.as_ref().filter(|capture| capture.epoch == epoch) else {
            return;
        };
        let vm = capture.vm.clone();
        let (rest, parts) = (capture.pages.clone(), capture.parts.clone());
        let ahead = whole(pages_of(&vm, side.debt.captured_ahead()));
        // What went ahead in a session that has ended goes with the rest.
        let has_gone = side.debt.went_ahead_in(epoch) == Some(session);
        let count = (ahead.len() + rest.len()) as u64;
        if count > STAGING_PAGES_MAX {
            self.violate(
                Invariant::Bounds,
                format!("a sync of {count} pages exceeds the staging"),
            );
        }
        let commit = Commit {
            epoch,
            pages: count,
            states: parts.len() as u32,
            digest: 0,
            stop,
        };
        if !has_gone {
            self.transmit(session, PRIMARY, Frame::Message(Message::Begin(begin)));
            self.transmit(session, PRIMARY, Frame::Pages(ahead));
        }
        self.transmit(session, PRIMARY, Frame::Pages(rest));
        if damaged {
            self.transmit(session, PRIMARY, Frame::Rubbish);
        }
        self.transmit(session, PRIMARY, Frame::States(parts));
        self.transmit(session, PRIMARY, Frame::Message(Message::Commit(commit)));
    }

    pub(super) fn give_back(&mut self, host: usize, epoch: u64) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        side.debt.give_back(epoch);
        side.known_pages.failed();
        side.known_states.failed();
        side.capture.take_if(|capture| capture.epoch == epoch);
        for entry in &mut side.vm.list {
            if entry.phase == Phase::Captured(epoch) {
                entry.phase = Phase::Held;
            }
        }
    }
}

impl PrimarySide {
    /// Makes of a capture what is to be sent: differences from what the secondary has, where it is known.
    fn encode(&mut self, epoch: u64, fails: bool) {
        // A driver that finds that they do not pay sends whole pages for a while. And a difference must be
        // the first word of its sync on a page.
        let is_ahead = self.debt.went_ahead_in(epoch).is_some();
        let is_wanted = epoch % DELTA_TURN < DELTAS_IN_TURN;
        match is_wanted && !is_ahead {
            true => self.known_pages.begin(epoch),
            false if !is_wanted => self.known_pages.clear(),
            false => {}
        }
        let mut pages = Vec::new();
        for &page in self.debt.captured() {
            let value = self.vm.pages[page as usize];
            let content = match is_wanted && !is_ahead {
                true => Content::encode(&mut self.known_pages, page, value),
                false => Some(Content::Whole(value)),
            };
            pages.extend(content.map(|content| (page as usize, content)));
        }
        let vm = Box::new(self.vm.clone());
        let all = parts_of(&self.vm);
        let parts = changed_states(self.known_states.acked_states(), &all)
            .cloned()
            .collect();
        self.known_states.captured(epoch, all);
        if fails {
            self.known_pages.failed();
            self.known_states.failed();
        }
        self.capture = Some(Capture {
            epoch,
            vm,
            pages,
            parts,
        });
    }

    /// Returns how many pages the next sync would have now.
    pub(super) fn look_at_log(&mut self) -> u64 {
        let Ok(()) = self.debt.find(|pages| self.vm.tell_dirty(pages));
        self.debt.of_next_sync() as u64
    }
}

fn whole(pages: Vec<(usize, u64)>) -> Vec<(usize, Content)> {
    let pages = pages.into_iter();
    pages.map(|(page, value)| (page, Content::Whole(value))).collect()
}

fn pages_of(vm: &Vm, pages: impl IntoIterator<Item = u64>) -> Vec<(usize, u64)> {
    let pages = pages.into_iter().map(|page| page as usize);
    pages.map(|page| (page, vm.pages[page])).collect()
}
