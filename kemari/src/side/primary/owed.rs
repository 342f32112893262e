//! What of the guest's memory the secondary lacks: it is looked for, copied round by round, sent ahead of
//! syncs, and captured.

use std::mem;

use kemari_sync::{Debt, Epoch, SessionId};
use kemari_vmm::machine::Machine;

use super::super::ahead::{self, Ahead};
use super::super::copy::Copy;

/// How often the dirty log is looked at between syncs, in microseconds.
const LOOK_INTERVAL_US: u64 = 100_000;

/// See the module.
#[derive(Default)]
pub struct Owed {
    pub debt: Debt,
    pub copy: Copy,
    /// What of the debt went ahead of its sync.
    ahead: Ahead,
    /// When the dirty log is to be looked at, in microseconds.
    pub look_due_us: u64,
    /// When the core is to be asked whether more may go ahead.
    pub ahead_due_us: u64,
}

impl Owed {
    /// A round of the copy begins; with the first one a standby that has nothing yet.
    pub fn begin_round(&mut self, machine: &Machine, first: bool) -> anyhow::Result<()> {
        self.copy.begin(machine, &mut self.debt, first)
    }

    /// Its frames are all handed over. Returns how many pages are dirty again.
    pub fn end_round(&mut self, machine: &Machine) -> anyhow::Result<u64> {
        self.copy.end_round(machine, &mut self.debt)
    }

    /// Looks at the dirty log. Returns the pages that a sync would have now, each counted once, but for those
    /// that went ahead and are dirty again.
    pub fn look(&mut self, machine: &Machine, now_us: u64) -> anyhow::Result<usize> {
        self.look_due_us = now_us + LOOK_INTERVAL_US;
        self.debt.find(|pages| machine.dirty().collect(pages))?;
        // Before they are counted: what waits already would count twice.
        ahead::offer(&mut self.debt);
        Ok(self.debt.of_next_sync() + machine.dirty().hot_pages())
    }

    /// Whether something waits to go ahead.
    pub fn is_ahead_due(&self) -> bool {
        ahead::is_due(&self.debt)
    }

    /// The core is asked whether more may go ahead. If it has nothing against it, more may follow at once.
    pub fn ask_ahead(&mut self, now_us: u64) {
        self.ahead_due_us = now_us + LOOK_INTERVAL_US;
    }

    /// See [`Ahead::send`].
    pub fn send_ahead(
        &mut self,
        machine: &Machine,
        of: (SessionId, Epoch),
        pages_max: usize,
        now_us: u64,
        opening: impl FnOnce(&mut Vec<u8>),
    ) -> anyhow::Result<Vec<u8>> {
        let frames = self.ahead.send(machine, &mut self.debt, of, pages_max, opening)?;
        self.ahead_due_us = now_us;
        Ok(frames)
    }

    /// A sync takes what is owed, and what went ahead of it: that is returned, and in which session it went.
    pub fn begin_capture(&mut self, epoch: Epoch, now_us: u64) -> (Option<SessionId>, Option<Ahead>) {
        self.copy.end();
        self.look_due_us = now_us + LOOK_INTERVAL_US;
        let ahead_in = self.debt.went_ahead_in(epoch);
        (ahead_in, ahead_in.map(|_| mem::take(&mut self.ahead)))
    }

    /// A session is over: what went ahead in it is owed again.
    pub fn end_session(&mut self, session: SessionId) {
        self.debt.end_session(session);
        self.ahead = Ahead::default();
    }

    /// Nobody is owed pages.
    pub fn forget(&mut self) {
        self.copy.end();
        self.debt.forget();
        self.ahead = Ahead::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_reads_the_dirty_log_itself_and_the_next_look_can_wait() {
        let mut owed = Owed::default();
        owed.begin_capture(1, 50);
        assert_eq!(owed.look_due_us, 50 + LOOK_INTERVAL_US);
    }
}
