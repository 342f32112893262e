//! The clockwork of a sync: when it was asked for, when the guest was paused for it, when it was sent. Reads
//! no clock, and counts itself what took how long.

use std::time::Duration;

use super::super::capture::Took;
use crate::control::{Counters, Timings};

/// An ack is not expected later than this, however late the last ones came:
/// a vCPU with more output looks for it then.
const ACK_US_MAX: u64 = 200;

/// The sync under way, or the last one; all in microseconds of the side's clock.
#[derive(Default)]
pub struct Stopwatch {
    /// When the guest asked for the sync that is to begin now.
    asked_us: Option<u64>,
    /// When the guest asked for the sync under way, or was paused for it.
    since_us: u64,
    paused_us: u64,
    /// Whether a pause has ended that is still to be noted.
    pause_to_note: bool,
    /// When it began to be handed to the link, and when it was.
    sending_us: u64,
    sent_us: u64,
    /// How long an ack takes, as far as the last ones tell.
    ack_us_expected: u64,
    timings: Timings,
    pub counters: Counters,
}

impl Stopwatch {
    /// The guest has asked for a sync then, if one begins now; `None`: it is too late for that.
    pub fn ask(&mut self, asked_us: Option<u64>) {
        self.asked_us = asked_us;
    }

    /// A sync begins, for which the guest stands still since then.
    pub fn pause(&mut self, since_us: u64) {
        self.paused_us = since_us;
        self.since_us = self.asked_us.take().unwrap_or(since_us);
    }

    /// Since when the guest stands still for the sync.
    pub fn paused_us(&self) -> u64 {
        self.paused_us
    }

    /// The guest may run, but the thread that lets it has more to do: the pause is noted when that is done.
    pub fn leave_pause(&mut self) {
        self.pause_to_note = true;
    }

    /// Whether a pause was left to be noted, which is to be done now.
    pub fn takes_left_pause(&mut self) -> bool {
        std::mem::take(&mut self.pause_to_note)
    }

    /// The guest runs on.
    pub fn note_pause(&mut self, now_us: u64) {
        self.counters.last_pause_us = now_us.saturating_sub(self.paused_us);
        self.timings.pause_us.note(self.counters.last_pause_us);
    }

    /// All of the sync is captured.
    pub fn captured(&mut self, took: &Took, now_us: u64) {
        self.timings.state_us.note(micros(took.states));
        self.timings.dirty_us.note(micros(took.dirty));
        self.timings.encode_us.note(micros(took.encode));
        self.timings
            .capture_us
            .note(now_us.saturating_sub(self.paused_us));
    }

    /// It begins to be handed to the link.
    pub fn sending(&mut self, now_us: u64) {
        self.sending_us = now_us;
    }

    /// It was handed to the link; what was sent while the rest was captured took `at_once`.
    pub fn sent(&mut self, now_us: u64, at_once: Duration) {
        self.sent_us = now_us;
        let send_us = now_us.saturating_sub(self.sending_us);
        self.timings.send_us.note(send_us + micros(at_once));
    }

    /// When its ack is expected.
    pub fn ack_due_us(&self) -> u64 {
        self.sent_us + self.ack_us_expected
    }

    /// How long it has been on its way.
    pub fn wire_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.sending_us)
    }

    /// Its ack was here, and its output is released.
    pub fn acked(&mut self, now_us: u64) {
        self.counters.syncs += 1;
        self.counters.last_sync_us = now_us.saturating_sub(self.since_us);
        self.timings.sync_us.note(self.counters.last_sync_us);
        let ack_us = now_us.saturating_sub(self.sent_us);
        self.timings.ack_us.note(ack_us);
        self.ack_us_expected = ((3 * self.ack_us_expected + ack_us) / 4).min(ACK_US_MAX);
    }

    /// What took how long.
    pub fn timings(&self) -> &Timings {
        &self.timings
    }
}

/// As much as can be said.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "stopwatch_test.rs"]
mod tests;
