//! The restore of a takeover, part by part: each may fail, before it is done or after,
//! and what it has taken by then stays.

use rand::Rng;

use crate::record::{Phase, Record};
use crate::secondary::{Restoration, RestorePart, SecondaryEvent};

use super::events::ToProcess;
use super::host::Process;
use super::invariants::{Invariant, acting};
use super::secondary_driver::outcome;
use super::world::World;

/// Longest part, in microseconds.
const PART_US: u64 = 800;
/// How likely a part fails as long as some are to.
const FAILS: f64 = 0.4;

/// What a standby VM has of what it needs to run.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    is_loaded: bool,
    has_disks: bool,
    has_cards: bool,
}

/// The restores of a standby VM.
#[derive(Default)]
pub(super) struct Restores {
    done: Restoration,
    taken: Taken,
    /// Counts attempts: the parts of an older one are void.
    attempts: u64,
}

impl World {
    /// A winner restores what it holds: once more, maybe.
    pub(super) fn begin_restore(&mut self, host: usize) {
        if !self.finish_replica(host) {
            return self.end_restore(host, false);
        }
        let Some(side) = self.hosts[host].secondary() else {
            return;
        };
        side.restores.attempts += 1;
        let attempt = side.restores.attempts;
        let delay_us = self.some_us(PART_US);
        self.tell_after(delay_us, host, ToProcess::Restore(attempt));
    }

    /// The next part of it.
    pub(super) fn restore_part(&mut self, host: usize, attempt: u64) {
        let side = self.hosts[host].secondary();
        let Some(side) = side.filter(|side| side.restores.attempts == attempt) else {
            return;
        };
        let Some(term) = side.machine.won_term() else {
            return self.end_restore(host, false);
        };
        let next = side.restores.done.next(term);
        let fails = self.flags.restore_failures > 0 && self.rng.random_bool(FAILS);
        self.flags.restore_failures -= u32::from(fails);
        // Also when the last part is done.
        let Some(part) = next else {
            return self.end_restore(host, !fails);
        };
        let is_tried = !fails || self.rng.random_bool(0.5);
        let is_done = is_tried && self.take_part(host, part, term) && !fails;
        self.note(|| format!("host {host}: {part:?} for term {term}: {is_done}"));
        let delay_us = self.some_us(PART_US);
        match self.hosts[host].secondary() {
            Some(side) if is_done => {
                side.restores.done.note_done(part, term);
                self.tell_after(delay_us, host, ToProcess::Restore(attempt));
            }
            _ => self.end_restore(host, false),
        }
    }

    fn take_part(&mut self, host: usize, part: RestorePart, term: u64) -> bool {
        if part == RestorePart::Rule {
            return self.close_replica(host) && self.rule_record(host, term);
        }
        let is_unplugged = self.flags.unplugged_us[host].is_some();
        let Some(side) = self.hosts[host].secondary() else {
            return false;
        };
        let taken = &mut side.restores.taken;
        match part {
            RestorePart::Load => taken.is_loaded = side.state.is_some(),
            RestorePart::Disks => taken.has_disks = true,
            RestorePart::Cards => taken.has_cards = !is_unplugged,
            RestorePart::Rule => {}
        }
        part != RestorePart::Cards || !is_unplugged
    }

    fn end_restore(&mut self, host: usize, is_done: bool) {
        if let Some(side) = self.hosts[host].secondary().filter(|_| !is_done) {
            side.restores.taken.has_cards = false;
            side.restores.done.note_failed();
        }
        let result = outcome(!is_done);
        self.tell_after(0, host, ToProcess::Secondary(SecondaryEvent::Restored { result }));
    }

    /// A takeover begins to run the VM.
    pub(super) fn judge_takeover(&mut self, host: usize, record: &Record) {
        let lacks = self.lacks(host, record.term);
        self.judge(Invariant::Acting, acting::acts(&record.owner, lacks));
    }

    /// A winner's record says that it acts: the other side gives up what it holds when it sees that.
    pub(super) fn judge_declared(&mut self, won: &Record, record: &Record) {
        let is_declared =
            won.phase == Phase::Won && won.owner == record.owner && record.phase == Phase::Acting;
        let owner = self.hosts.iter().position(|host| host.me == record.owner);
        let Some(host) = owner.filter(|_| is_declared) else {
            return;
        };
        let lacks = self.lacks(host, record.term);
        self.judge(Invariant::Acting, acting::acts(&record.owner, lacks));
    }

    /// What a host still needs to run the VM in this term.
    fn lacks(&self, host: usize, term: u64) -> Option<&'static str> {
        let taken = match &self.hosts[host].process {
            Process::Secondary(side) => side.restores.taken,
            // It has run.
            _ => Taken {
                is_loaded: true,
                has_disks: true,
                has_cards: true,
            },
        };
        let needs = [
            (taken.is_loaded, "the state"),
            (self.is_ruled(host, term), "the term in its image's record"),
            (taken.has_disks, "its disks"),
            (taken.has_cards, "its cards"),
        ];
        let lacking = needs.into_iter().find(|(is_there, _)| !is_there);
        lacking.map(|(_, what)| what)
    }
}
