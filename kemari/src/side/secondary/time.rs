//! What is due, and when.

use kemari_sync::SecondaryEvent;

use super::super::timers::{Timed, from_ms};
use super::{End, SecondarySide};

/// The deadlines of a secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The core has something to do.
    Core,
    /// A drill begins by itself.
    Drill,
    /// The committed state is tried on KVM.
    Trial,
    /// There was no primary for too long.
    Idle,
    /// Whoever has come says nothing, or there is more of what was read.
    Sessions,
    /// It is asked whether a look at the arbiter is over that an order to end waits for.
    Leaves,
    /// The status is renewed.
    Show,
}

impl Timed for SecondarySide {
    type Timer = Timer;
    const TIMERS: &'static [Timer] = {
        use Timer::*;
        &[Core, Drill, Trial, Idle, Sessions, Leaves, Show]
    };

    fn due_us(&self, timer: Timer) -> Option<u64> {
        let now_ms = self.clock.now_ms();
        from_ms(match timer {
            Timer::Core => self.core.next_deadline(),
            Timer::Drill => self.drills.due_ms(),
            Timer::Trial => self.trial_due_ms(),
            Timer::Idle => self.idle.due_ms(),
            Timer::Sessions => self.sessions.due_ms(now_ms, self.may_read()),
            Timer::Leaves => self.orders.leaves.due_ms(now_ms),
            Timer::Show => Some(self.told.shown.due_ms()),
        })
    }

    fn fire(&mut self, timer: Timer, now_us: u64) {
        match timer {
            Timer::Core => self.events.push_back(SecondaryEvent::Tick),
            Timer::Drill => self.begin_due_drill(now_us / 1000),
            Timer::Trial => self.try_state(),
            Timer::Idle => self.end = self.end.take().or(Some(End::Idle)),
            // Each turn looks at them.
            Timer::Sessions | Timer::Leaves | Timer::Show => {}
        }
    }
}

impl SecondarySide {
    /// Whether this side has something to do, or waits for a primary.
    pub(super) fn note_idle(&mut self) {
        // A build has the images until it ends.
        let is_idle = self.sessions.is_empty() && self.core.holds().is_none() && self.berth.build().is_none();
        self.idle.note(is_idle, self.clock.now_ms());
    }

    /// What comes waits as long as a replica's queue is full.
    pub(super) fn may_read(&self) -> bool {
        !self.disks_are_full()
    }
}

#[cfg(test)]
#[path = "time_test.rs"]
mod tests;
