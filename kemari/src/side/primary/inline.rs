//! The sync that a vCPU's own thread does: the guest has notified, its thread is out of the guest anyway.

use std::thread::yield_now;

use super::super::faults;
use super::{Input, PrimarySide};

/// Longest time that a vCPU's thread polls for the ack; then it sleeps, and the loop's thread goes on.
const POLL_US_MAX: u64 = 2000;

impl PrimarySide {
    /// Called by a vCPU's thread that has parked, its state whole.
    pub(super) fn drive_parked(&mut self) {
        faults::on_this_thread();
        // When the end is taken out already, the machine must not be resumed for what the tap has seen before.
        if self.core.is_over() {
            return;
        }
        let Some(since_us) = self.tap.looked() else { return };
        self.asked_us = Some(since_us);
        self.on_output_held();
        self.settle();
        self.asked_us = None;
        self.poll_for_ack();
        self.run_unless_paused();
        if self.end.is_some() || !self.events.is_empty() {
            self.mailbox.post(Input::Wake);
        }
    }

    /// In lockstep the guest waits for the ack, and so does its thread, here. The loop's thread is not to wake for it.
    fn poll_for_ack(&mut self) {
        if !self.paused || self.capture.is_none() {
            return;
        }
        self.watch_session(false);
        let until_us = self.clock.now_us() + POLL_US_MAX;
        while self.paused && self.session.is_some() && self.end.is_none() && self.clock.now_us() < until_us {
            self.receive_main();
            self.settle();
            // Whoever has work may have this processor: the secondary's answer may depend on it.
            yield_now();
        }
        self.watch_session(true);
    }

    /// Whether the loop's thread wakes when something comes from the secondary.
    pub(super) fn watch_session(&self, watch: bool) {
        if let Some(session) = &self.session {
            self.waiter
                .set(session.main.fd(), watch, session.main.wants_to_write());
            self.waiter
                .set(session.heartbeat.fd(), true, session.heartbeat.wants_to_write());
        }
    }
}
