//! A capture begins when every vCPU has stopped. One that resets a device stops only when what was asked of
//! that is finished, which takes as long as the disk: so a helper waits if it takes long, and heartbeats go
//! on.

use std::time::Duration;

use kemari_sync::Epoch;

use super::{Input, PrimarySide};
use crate::threads::helpers;

/// Longest time that the loop itself waits for the vCPUs: they come at once, unless they wait for something.
const PARK_TIME_MAX: Duration = Duration::from_millis(50);

/// What waits for vCPUs.
#[derive(Default)]
pub struct Parking {
    /// Whether a helper waits for them.
    under_way: bool,
    /// The capture that waits for them: its epoch, and whether output is held from it on.
    capture: Option<(Epoch, bool)>,
    /// The capture that the guest is to stand still for: its epoch, and since when, in microseconds.
    since_us: Option<(Epoch, u64)>,
}

impl Parking {
    /// The guest is to stand still for this capture from now on, or has been since an earlier call. Returns
    /// since when: a pause is as long as the guest does not run, whatever it waits for.
    pub fn begin(&mut self, epoch: Epoch, now_us: u64) -> u64 {
        let begun = self.since_us.filter(|(wanted, _)| *wanted == epoch);
        let (_, since_us) = *self.since_us.insert(begun.unwrap_or((epoch, now_us)));
        since_us
    }

    /// A capture that is given back need not be taken any more.
    pub fn forget_capture(&mut self, epoch: Epoch) {
        self.capture.take_if(|(waiting, _)| *waiting == epoch);
        self.since_us.take_if(|(wanted, _)| *wanted == epoch);
    }
}

impl PrimarySide {
    /// Whether a capture must wait. Then it is taken when every vCPU has stopped.
    pub(super) fn must_wait_for_vcpus(&mut self, epoch: Epoch, hold: bool) -> bool {
        if !self.parking.under_way {
            if self.machine.pause_within(PARK_TIME_MAX) {
                return false;
            }
            self.parking.under_way = true;
            let (machine, mailbox) = (self.machine.clone(), self.mailbox.clone());
            helpers::run("pause", move || {
                machine.pause();
                mailbox.post(Input::Parked);
            });
        }
        self.parking.capture = Some((epoch, hold));
        true
    }

    /// They have stopped, or are to run on.
    pub(super) fn on_parked(&mut self) {
        self.parking.under_way = false;
        match self.parking.capture.take() {
            Some((epoch, hold)) => self.capture(epoch, hold, None),
            None => self.run_unless_held(),
        }
    }
}

#[cfg(test)]
#[path = "parking_test.rs"]
mod tests;
