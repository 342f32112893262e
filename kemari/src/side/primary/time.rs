//! What is due, and when.

use kemari_sync::PrimaryEvent;

use super::PrimarySide;
use super::holds::Hold;

/// Longest wait of the loop, in milliseconds, whatever the deadlines.
const WAIT_MS_MAX: u64 = 1000;

impl PrimarySide {
    pub(super) fn check_time(&mut self) {
        let (now_ms, now_us) = (self.clock.now_ms(), self.clock.now_us());
        let is_due = |due_us: Option<u64>| due_us.is_some_and(|due_us| due_us <= now_us);
        if is_due(self.demand.console_due_us) {
            self.demand.console_due_us = None;
            self.demand.looked();
            self.on_output_held();
        }
        if is_due(self.demand.gather.due_us()) {
            self.demand.gather.end();
            // If a sync is under way it is asked for at its end.
            if self.capture.is_none() {
                self.demand.looked();
                self.on_output_held();
            }
        }
        self.let_go_if_due();
        if self.core.next_deadline().is_some_and(|due_ms| due_ms <= now_ms) {
            self.events.push_back(PrimaryEvent::Tick);
        }
        self.announce_when_due(now_ms);
        if self.dirty_look_is_due() && now_us >= self.owed.look_due_us {
            self.look_at_dirty_pages();
        }
        if self.ahead_due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            self.owed.ask_ahead(now_us);
            self.events.push_back(PrimaryEvent::DirtyAhead);
        }
    }

    /// When more pages can go ahead of the next sync. What was sent must have left before:
    /// a sync would wait behind it.
    pub(super) fn ahead_due_ms(&self) -> Option<u64> {
        let session = self.peer.session()?;
        let is_due = self.dirty_look_is_due() && self.owed.is_ahead_due() && !session.main.wants_to_write();
        is_due.then_some(self.owed.ahead_due_us.div_ceil(1000))
    }

    /// Memory gets dirty without bound as long as the guest runs, also while a sync is under way: what is
    /// found then is the next one's. With the gate open nobody needs to look.
    pub(super) fn dirty_look_is_due(&self) -> bool {
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

    pub(super) fn timeout_ms(&self) -> u64 {
        let now_ms = self.clock.now_ms();
        let look_ms = self
            .dirty_look_is_due()
            .then_some(self.owed.look_due_us.div_ceil(1000));
        let ms = |due_us: Option<u64>| due_us.map(|due_us| due_us.div_ceil(1000));
        let due_ms = [
            self.core.next_deadline(),
            ms(self.demand.console_due_us),
            ms(self.demand.gather.due_us()),
            ms(self.let_go_due_us()),
            self.peer.connector.due_ms(),
            self.announcement_due_ms(now_ms),
            look_ms,
            self.ahead_due_ms(),
            self.shown.due_ms(),
        ];
        due_ms.into_iter().flatten().min().map_or(WAIT_MS_MAX, |due_ms| {
            due_ms.saturating_sub(now_ms).min(WAIT_MS_MAX)
        })
    }
}
