//! When the guest's output asks for a sync: at once, after more of it has gathered, or never, since the clock
//! alone starts syncs.

use std::sync::Arc;

use kemari_vmm::event::TapsFull;
use kemari_vmm::machine::Machine;

use super::super::clock::Clock;
use super::super::gather::Gather;
use super::super::mailbox::Mailbox;
use super::super::sync_tap::{Attached, SyncTap};
use super::Input;
use crate::config::{Mode, Pace, Protection};

/// See the module. The tap and what gathers always follow the pace.
pub struct Demand {
    /// How often syncs are made at present.
    pace: Pace,
    pub gather: Gather,
    tap: Arc<SyncTap>,
    /// The tap is attached while output is held.
    attached: Option<Attached>,
    console_delay_us: u64,
    /// When held console output is to be synchronised, in microseconds.
    pub console_due_us: Option<u64>,
}

impl Demand {
    /// The pace of the configuration, and a tap that is attached to nothing yet.
    pub fn new(
        protection: &Protection,
        clock: Clock,
        machine: &Machine,
        mailbox: &Arc<Mailbox<Input>>,
    ) -> Self {
        let sink = mailbox.clone();
        let tap = SyncTap::new(clock, machine.pause_requester(), move |waits| {
            sink.post(Input::Waits(waits))
        });
        let pace = protection.pace();
        tap.set_clocked(pace.mode == Mode::Interval);
        Self {
            pace,
            gather: Gather::new(protection),
            tap,
            attached: None,
            console_delay_us: 1000 * u64::from(protection.console_delay_ms),
            console_due_us: None,
        }
    }

    /// How often syncs are made.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// From now on it is this. What the tap has let pass under the old one nobody has been told of.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
        self.gather.set_mode(pace.mode);
        self.tap.set_clocked(pace.mode == Mode::Interval);
        self.tap.gather_until(0);
    }

    /// Output is held from now on, and asks.
    pub fn attach(&mut self, machine: &Machine) -> Result<(), TapsFull> {
        if self.attached.is_none() {
            self.attached = Some(Attached::to(machine.channels(), &self.tap)?);
        }
        Ok(())
    }

    /// It asks no more.
    pub fn detach(&mut self) {
        self.attached = None;
    }

    /// Whether it asks.
    #[cfg(test)]
    pub fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// Somebody is about to look at what is held. See [`SyncTap::looked`].
    pub fn looked(&self) -> Option<u64> {
        self.tap.looked()
    }

    /// A sync is being captured, with all that is held.
    pub fn begin_sync(&mut self) {
        self.console_due_us = None;
        self.gather.end();
        self.await_ack(None);
    }

    /// Whoever takes the ack of the sync under way looks at what is held. `due_us`: vCPUs that have more
    /// wait for it, about then.
    pub fn await_ack(&self, due_us: Option<u64>) {
        self.tap.set_in_flight(due_us.unwrap_or(u64::MAX));
    }

    /// No sync is under way.
    pub fn end_sync(&self) {
        self.tap.set_idle();
    }

    /// A sync is released that took so long, and had so many outputs: what comes now may gather.
    pub fn note(&mut self, now_us: u64, sync_us: u64, outputs: u64) {
        self.gather.note(now_us, sync_us, outputs);
        self.tap.gather_until(now_us + self.gather.wait_us());
    }

    /// Whether output that came since the last capture gathers from now on; it asks at once if not.
    pub fn gathers(&mut self, now_us: u64) -> bool {
        let wait_us = self.gather.wait_us();
        if wait_us > 0 {
            self.gather.await_until(now_us + wait_us);
        }
        wait_us > 0
    }

    /// Console output is held. It is gathered for a while before it asks for a sync.
    pub fn await_console(&mut self, now_us: u64) {
        self.console_due_us.get_or_insert(now_us + self.console_delay_us);
    }
}
