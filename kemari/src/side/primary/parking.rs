//! A capture begins when every vCPU has stopped. One that resets a device stops only when what was asked of
//! that is finished, which takes as long as the disk: so a helper waits if it takes long.

use std::time::Duration;

use super::stillness::Until;
use super::{Input, PrimarySide};
use crate::threads::helpers;

/// Longest time that the loop itself waits for the vCPUs: they come at once, unless they wait for something.
const PARK_TIME_MAX: Duration = Duration::from_millis(50);

impl PrimarySide {
    /// Whether a capture must wait. Then it is taken when every vCPU has stopped.
    pub(super) fn must_wait_for_vcpus(&mut self) -> bool {
        if !self.stillness.parks {
            if self.machine.pause_within(PARK_TIME_MAX) {
                return false;
            }
            self.stillness.parks = true;
            let (machine, mailbox) = (self.machine.clone(), self.mailbox.clone());
            helpers::run("pause", move || {
                machine.pause();
                mailbox.post(Input::Parked);
            });
        }
        self.stillness.wait(Until::Parked);
        true
    }

    /// They have stopped, or are to run on.
    pub(super) fn on_parked(&mut self) {
        self.stillness.parks = false;
        self.go_on_from(Until::Parked);
    }

    /// This has happened: takes the capture that has waited for it. One that was given up meanwhile does not
    /// hold the guest any more.
    pub(super) fn go_on_from(&mut self, until: Until) {
        match self.stillness.reached(until) {
            Some((epoch, hold)) => self.capture(epoch, hold, None),
            None => self.run_unless_held(),
        }
    }
}

#[cfg(test)]
#[path = "parking_test.rs"]
mod tests;
