//! The guest resets the machine. That waits until everything captured or released is finished, which a disk
//! that hangs never is: so a helper waits, and heartbeats go on.

use kemari_sync::PrimaryEvent;

use super::super::capture::explain;
use super::holds::Hold;
use super::stillness::Until;
use super::{Input, PrimarySide};
use crate::threads::helpers;

impl PrimarySide {
    /// Whether a capture must wait for the reset under way. Then it is taken after that.
    pub(super) fn must_wait_for_reset(&mut self) -> bool {
        let waits = self.holds.has(Hold::Reset);
        if waits {
            self.stillness.wait(Until::WasReset);
        }
        waits
    }

    pub(super) fn reset_if_possible(&mut self) {
        let is_possible = self.stillness.wants_reset && !self.holds.has(Hold::Reset);
        if !is_possible || self.capture.is_some() || self.end.is_some() {
            return;
        }
        self.stillness.wants_reset = false;
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
        self.go_on_from(Until::WasReset);
    }
}

#[cfg(test)]
#[path = "reset_test.rs"]
mod tests;
