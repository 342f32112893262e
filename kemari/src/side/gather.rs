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
            may_stand_still: protection.latency == Latency::Low,
            governor: GatherGovernor::default(),
            due_us: None,
        }
    }

    /// Whether it is for the governor to say what waits.
    fn is_governed(&self, mode: Mode) -> bool {
        (self.wish, mode) == (Wish::Auto, Mode::Pipelined)
    }

    /// Whether the guest is to stand still from the next capture to its ack,
    /// although the mode does not ask for it.
    pub fn stands_still(&self, mode: Mode) -> bool {
        let is_measured = faults::gather_us().is_none() && self.governor.stands_still();
        self.is_governed(mode) && self.may_stand_still && (is_measured || faults::guest_waits())
    }

    /// How long after a release the next sync waits, in microseconds.
    pub fn wait_us(&self, mode: Mode) -> u64 {
        match self.is_governed(mode) {
            true => faults::gather_us().unwrap_or_else(|| self.governor.wait_us()),
            false => 0,
        }
    }

    /// A sync is released that took so long, in microseconds, and had so many outputs.
    pub fn note(&mut self, mode: Mode, now_us: u64, sync_us: u64, outputs: u64) {
        if self.is_governed(mode) {
            self.governor.note(now_us, sync_us, outputs);
        }
    }

    /// In which way syncs are made. `None` while the governor compares one with another.
    pub fn way(&self, mode: Mode) -> Option<Way> {
        let level = match self.is_governed(mode) {
            true => self.governor.way()?,
            false => 0,
        };
        Some(Way { mode, level })
    }

    /// Output is held that gathers until then, in microseconds.
    pub fn await_until(&mut self, due_us: u64) {
        self.due_us.get_or_insert(due_us);
    }

    /// When the loop is to look, in milliseconds.
    pub fn due_ms(&self) -> Option<u64> {
        self.due_us.map(|due_us| due_us.div_ceil(1000))
    }

    /// Whether it is time to look; then it is looked.
    pub fn take_due(&mut self, now_us: u64) -> bool {
        self.due_us.take_if(|due_us| *due_us <= now_us).is_some()
    }

    /// A sync takes what has gathered.
    pub fn end(&mut self) {
        self.due_us = None;
    }
}
