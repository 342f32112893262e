//! What the guest does during a sync, and when held output is taken by the next: at once,
//! or after more of it has gathered.

mod governor;

use super::faults;
use crate::config::{Gather as Wish, Latency, Mode, Protection};
use governor::GatherGovernor;

/// A way of making syncs. What one costs says nothing of one that was made in another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    mode: Mode,
    /// See [`GatherGovernor::way`].
    level: usize,
}

/// Whether the guest stands still at present, and how long output gathers, and until when.
pub struct Gather {
    wish: Wish,
    mode: Mode,
    /// Whether anyone looks for the ack of a guest that stands still: being woken for it takes too long.
    may_stand_still: bool,
    governor: GatherGovernor,
    /// When the loop is to look at what has gathered, in microseconds.
    due_us: Option<u64>,
}

impl Gather {
    /// Nothing gathers yet.
    pub fn new(protection: &Protection) -> Self {
        Self {
            wish: protection.gather,
            mode: protection.mode,
            may_stand_still: protection.latency == Latency::Low,
            governor: GatherGovernor::default(),
            due_us: None,
        }
    }

    /// From now on syncs are made in this mode.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Whether it is for the governor to say what waits.
    fn is_governed(&self) -> bool {
        (self.wish, self.mode) == (Wish::Auto, Mode::Pipelined)
    }

    /// Whether the guest is to stand still from the next capture to its ack,
    /// although the mode does not ask for it.
    pub fn stands_still(&self) -> bool {
        let is_measured = faults::gather_us().is_none() && self.governor.stands_still();
        self.is_governed() && self.may_stand_still && (is_measured || faults::guest_waits())
    }

    /// How long after a release the next sync waits, in microseconds.
    pub fn wait_us(&self) -> u64 {
        match self.is_governed() {
            true => faults::gather_us().unwrap_or_else(|| self.governor.wait_us()),
            false => 0,
        }
    }

    /// A sync is released that took so long, in microseconds, and had so many outputs.
    pub fn note(&mut self, now_us: u64, sync_us: u64, outputs: u64) {
        if self.is_governed() {
            self.governor.note(now_us, sync_us, outputs);
        }
    }

    /// In which way syncs are made. `None` while the governor compares one with another.
    pub fn way(&self) -> Option<Way> {
        let level = match self.is_governed() {
            true => self.governor.way()?,
            false => 0,
        };
        Some(Way {
            mode: self.mode,
            level,
        })
    }

    /// Output is held that gathers until then, in microseconds.
    pub fn await_until(&mut self, due_us: u64) {
        self.due_us.get_or_insert(due_us);
    }

    /// When the loop is to look, in microseconds.
    pub fn due_us(&self) -> Option<u64> {
        self.due_us
    }

    /// A sync takes what has gathered, or it is looked at.
    pub fn end(&mut self) {
        self.due_us = None;
    }
}
