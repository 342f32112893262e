//! The guest resets the machine. That waits until everything captured or released is finished, which a disk
//! that hangs never is: so a helper waits, and heartbeats go on.

use kemari_sync::{Epoch, PrimaryEvent};

use super::super::capture::explain;
use super::holds::Hold;
use super::{Input, PrimarySide};
use crate::threads::helpers;

/// How far a reset of the machine is.
#[derive(Default)]
pub struct Reset {
    wanted: bool,
    /// A capture that waits for its end: half of a reset is nothing that could be gone on from. Its epoch,
    /// and whether output is held from it on.
    capture: Option<(Epoch, bool)>,
}

impl Reset {
    /// The guest wants one. It waits until no capture waits for its ack.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// A capture that is given back need not be taken any more.
    pub fn forget_capture(&mut self, epoch: Epoch) {
        self.capture.take_if(|(waiting, _)| *waiting == epoch);
    }
}

impl PrimarySide {
    /// Whether a capture must wait for the reset under way. Then it is taken after that.
    pub(super) fn must_wait_for_reset(&mut self, epoch: Epoch, hold: bool) -> bool {
        let waits = self.holds.has(Hold::Reset);
        if waits {
            self.reset.capture = Some((epoch, hold));
        }
        waits
    }

    pub(super) fn reset_if_possible(&mut self) {
        let is_possible = self.reset.wanted && !self.holds.has(Hold::Reset);
        if !is_possible || self.capture.is_some() || self.end.is_some() {
            return;
        }
        self.reset.wanted = false;
        self.holds.add(Hold::Reset);
        tracing::info!("the guest resets the machine");
        self.machine.begin_pause();
        let (machine, mailbox) = (self.machine.clone(), self.mailbox.clone());
        helpers::run("reset", move || {
            machine.pause();
            mailbox.post(Input::WasReset(machine.reset().map_err(|error| explain(&error))));
        });
    }

    pub(super) fn on_reset_done(&mut self, result: Result<(), String>) {
        if let Err(reason) = result {
            // What is half reset does not run, whatever else asks for it before the side is over.
            let reason = format!("the machine cannot be reset: {reason}");
            return self.events.push_back(PrimaryEvent::HostFailing { reason });
        }
        self.holds.remove(Hold::Reset);
        match self.reset.capture.take() {
            Some((epoch, hold)) => self.capture(epoch, hold, None),
            None => self.run_unless_held(),
        }
    }
}

#[cfg(test)]
#[path = "reset_test.rs"]
mod tests;
