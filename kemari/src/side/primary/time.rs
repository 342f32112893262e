//! What is due, and when.

use kemari_sync::PrimaryEvent;

use super::super::timers::{Timed, from_ms};
use super::PrimarySide;
use super::holds::Hold;

/// The deadlines of a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Console output has gathered.
    Console,
    /// Other output has gathered.
    Gather,
    /// A guest has waited too long for an ack that the mode does not have it wait for.
    LetGo,
    /// The core has something to do.
    Core,
    /// The network is told where the VM is.
    Announce,
    /// The dirty log is looked at.
    Look,
    /// More pages may go ahead of their sync.
    Ahead,
    /// Marks are taken of what is durable on both hosts.
    Settle,
    /// A secondary is looked for.
    Connect,
    /// An order has waited long enough.
    Orders,
    /// The status is renewed.
    Show,
}

impl Timed for PrimarySide {
    type Timer = Timer;
    const TIMERS: &'static [Timer] = {
        use Timer::*;
        &[
            Console, Gather, LetGo, Core, Announce, Look, Ahead, Settle, Connect, Orders, Show,
        ]
    };

    fn due_us(&self, timer: Timer) -> Option<u64> {
        match timer {
            Timer::Console => self.demand.console_due_us,
            Timer::Gather => self.demand.gather.due_us(),
            Timer::LetGo => self.let_go_due_us(),
            Timer::Core => from_ms(self.core.next_deadline()),
            Timer::Announce => from_ms(self.announcement_due_ms(self.clock.now_ms())),
            Timer::Look => self.gets_dirty().then_some(self.owed.look_due_us),
            Timer::Ahead => self.may_go_ahead().then_some(self.owed.ahead_due_us),
            Timer::Settle => from_ms(self.peer.session().and_then(|_| self.disks.settle_due_ms())),
            Timer::Connect => from_ms(self.peer.connector.due_ms()),
            Timer::Orders => from_ms(self.orders_due_ms()),
            Timer::Show => from_ms(Some(self.shown.due_ms())),
        }
    }

    fn fire(&mut self, timer: Timer, now_us: u64) {
        match timer {
            Timer::Console => {
                self.demand.console_due_us = None;
                self.demand.looked();
                self.on_output_held();
            }
            Timer::Gather => {
                self.demand.gather.end();
                // If a sync is under way it is asked for at its end.
                if self.capture.is_none() {
                    self.demand.looked();
                    self.on_output_held();
                }
            }
            // The next sync is another matter.
            Timer::LetGo => self.let_guest_wait(false),
            Timer::Core => self.events.push_back(PrimaryEvent::Tick),
            Timer::Announce => self.announce(now_us / 1000),
            Timer::Look => self.look_at_dirty_pages(),
            Timer::Ahead => {
                self.owed.ask_ahead(now_us);
                self.events.push_back(PrimaryEvent::DirtyAhead);
            }
            Timer::Connect => self.peer.connector.attempt(&self.mailbox),
            // Each turn looks at them, when the core has nothing more to say.
            Timer::Settle | Timer::Orders | Timer::Show => {}
        }
    }
}

impl PrimarySide {
    /// Whether more pages can go ahead of the next sync. What was sent must have left before: a sync would
    /// wait behind it.
    fn may_go_ahead(&self) -> bool {
        let has_left = |session: &super::peer::Session| !session.main.wants_to_write();
        self.gets_dirty() && self.owed.is_ahead_due() && self.peer.session().is_some_and(has_left)
    }

    /// Whether memory gets dirty without bound: as long as the guest runs, also while a sync is under way:
    /// what is found then is the next one's. With the gate open nobody needs to look.
    fn gets_dirty(&self) -> bool {
        self.machine.holds_output() && !self.holds.has(Hold::Mechanism)
    }

    pub(super) fn look_at_dirty_pages(&mut self) {
        match self.owed.look(&self.machine, self.clock.now_us()) {
            Ok(pages) if pages >= self.demand.pace().max_dirty_pages as usize => {
                self.events.push_back(PrimaryEvent::DirtyLimit);
            }
            Ok(_) => {}
            Err(error) => self.fail_protection(format!("the dirty log cannot be read: {error:#}")),
        }
    }
}

#[cfg(test)]
#[path = "time_test.rs"]
mod tests;
