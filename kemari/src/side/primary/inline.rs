//! The sync that a vCPU's own thread does: the guest has notified, its thread is out of the guest anyway.

use std::sync::{Mutex, TryLockError};

use super::super::faults;
use super::super::sync_tap::ACK_WAIT_US_MAX;
use super::super::timers::{Timed, until_ms};
use super::super::wait::Poll;
use super::holds::Hold;
use super::{Input, PrimarySide};
use crate::config::Latency;

/// Longest time that a vCPU's thread polls for the ack while its guest waits; then it sleeps,
/// and the loop's thread goes on.
const POLL_US_MAX: u64 = 2000;

/// Longest time that a guest stands still for a sync if the mode does not ask for it, in microseconds.
const STILL_US_MAX: u64 = 10_000;

/// For so long after a sync the loop's thread polls for the ack of the next instead of sleeping: while syncs
/// follow each other, being woken would cost more than the work.
const TRAIN_US: u64 = 1000;

/// Longest time that the loop's thread polls without looking at anything else.
const POLL_ROUND_US: u64 = 500;

/// Whose thread does a primary's work, and whether the loop's thread polls for acks.
pub struct Polling {
    /// Whether a vCPU's thread does it now.
    is_on_vcpu: bool,
    /// Whether the loop's thread may poll.
    loop_may: bool,
    /// Until when it does, in microseconds.
    train_until_us: u64,
    /// Until when it sleeps, if nobody wakes it.
    sleeps_until_us: u64,
}

impl Polling {
    /// Beside the loop's thread and the vCPUs a processor must be left for it to poll. Where there are fewer,
    /// whoever polls is in the way of those that it waits for; being woken is faster then.
    pub fn new(latency: Latency, vcpus: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            is_on_vcpu: false,
            loop_may: latency == Latency::Low && processors > vcpus + 1,
            train_until_us: 0,
            sleeps_until_us: 0,
        }
    }

    /// Whether a vCPU's thread does the work now.
    pub fn is_on_vcpu(&self) -> bool {
        self.is_on_vcpu
    }
}

impl PrimarySide {
    /// Called by a vCPU's thread that has parked, its state whole.
    pub(super) fn drive_parked(&mut self) {
        faults::on_this_thread();
        // When the end is taken out already, the machine must not be resumed for what the tap has seen
        // before.
        if self.holds.has(Hold::Over) {
            return;
        }
        // What the tap saw may have been looked at by another thread before the tap's pause took effect:
        // undo that.
        let Some(since_us) = self.demand.looked() else {
            return self.run_unless_held();
        };
        self.polling.is_on_vcpu = true;
        self.stopwatch.ask(Some(since_us));
        self.wait_for_due_ack();
        self.on_output_held();
        self.settle();
        self.stopwatch.ask(None);
        self.poll_for_ack();
        self.run_unless_held();
        self.polling.is_on_vcpu = false;
        self.note_inline_pause();
        if self.end.is_some() || !self.events.is_empty() || self.is_due_earlier() {
            self.mailbox.post(Input::Wake);
        }
    }

    /// How long the loop's thread sleeps now, in milliseconds.
    pub(super) fn sleep(&mut self) -> Option<u64> {
        let due_us = self.next_us();
        self.polling.sleeps_until_us = due_us.unwrap_or(u64::MAX);
        until_ms(due_us, self.clock.now_us())
    }

    /// Whether something is due, since it sleeps, before it wakes.
    pub(super) fn is_due_earlier(&self) -> bool {
        self.next_us()
            .is_some_and(|due_us| due_us < self.polling.sleeps_until_us)
    }

    /// While the guest ran on, it has made more output. If the ack is about to come, waiting for it is
    /// cheaper than leaving it to another thread, and the next sync then begins here.
    fn wait_for_due_ack(&mut self) {
        if self.capture.is_none() || self.holds.has(Hold::Mechanism) {
            return;
        }
        let until_us = self.clock.now_us() + ACK_WAIT_US_MAX;
        let mut poll = Poll::begin();
        loop {
            self.receive_main();
            self.settle();
            // Asked before the time is: once the ack was here, nobody else looks at what the tap keeps back.
            if self.capture.is_none() || self.peer.session().is_none() || self.end.is_some() {
                return;
            }
            if self.clock.now_us() >= until_us {
                // Once is enough: this ack is left to the loop's thread.
                return self.demand.await_ack(None);
            }
            poll.pause();
        }
    }

    /// A sync is under way while the guest runs: the loop's thread looks for its ack.
    pub(super) fn expect_ack(&mut self) {
        let due_us = self.stopwatch.ack_due_us();
        // Where output gathers no vCPU waits for the ack.
        let runs = !self.holds.has(Hold::Mechanism);
        let parks = self.polls() && runs && self.demand.gather.wait_us() == 0;
        self.demand.await_ack(parks.then_some(due_us));
        self.extend_train();
    }

    /// Syncs follow each other.
    pub(super) fn extend_train(&mut self) {
        if self.polling.loop_may && !self.holds.has(Hold::Mechanism) {
            self.polling.train_until_us = self.clock.now_us() + TRAIN_US;
        }
    }

    fn polls(&self) -> bool {
        self.config.protection.latency == Latency::Low
    }

    /// A guest may wait for the ack, and then so does its thread, here.
    /// The loop's thread is not to wake for it.
    fn poll_for_ack(&mut self) {
        if !self.holds.has(Hold::Mechanism) || self.capture.is_none() || !self.polls() {
            return;
        }
        self.peer.watch(false);
        let until_us = self.clock.now_us() + POLL_US_MAX;
        let mut poll = Poll::begin();
        while self.holds.has(Hold::Mechanism)
            && self.peer.session().is_some()
            && self.end.is_none()
            && self.clock.now_us() < until_us
        {
            self.receive_main();
            self.settle();
            poll.pause();
        }
        self.peer.watch(true);
    }

    /// When a guest that waits for the ack, although the mode does not ask for it, has waited for too long.
    pub(super) fn let_go_due_us(&self) -> Option<u64> {
        let waits = self.holds.is_until_ack() && self.capture.is_some();
        waits.then_some(self.stopwatch.paused_us() + STILL_US_MAX)
    }
}

/// Looks for acks without sleeping, as long as syncs follow each other. Returns whether it has polled; the
/// caller then looks at everything else, and comes again.
pub(super) fn poll_for_acks(side: &Mutex<PrimarySide>) -> bool {
    let mut until_us = None;
    let mut poll = Poll::begin();
    loop {
        match side.try_lock() {
            Ok(mut side) => {
                let now_us = side.clock.now_us();
                let until_us = *until_us.get_or_insert(now_us + POLL_ROUND_US);
                if now_us >= side.polling.train_until_us || now_us >= until_us {
                    return now_us < side.polling.train_until_us;
                }
                side.receive_main();
                if !side.events.is_empty() || side.end.is_some() {
                    return true;
                }
            }
            // A vCPU's thread does a sync.
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Poisoned(_)) => return false,
        }
        poll.pause();
    }
}
