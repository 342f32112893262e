//! Tells the network, several times, that the VM is here now. Also after a cold boot: it may have run elsewhere before,
//! and switches would send there what is meant for it until the guest says something.

use super::PrimarySide;
use crate::announce::rarp;
use crate::config::Mac;

/// How often, and how long after this side began to run the VM, it announces that.
const ANNOUNCE_AFTER_MS: [u64; 5] = [0, 50, 200, 1000, 3000];

/// The announcements that are left, in milliseconds of the side's clock, the last one first.
pub struct Announcements(Vec<u64>);

impl Announcements {
    /// All of them, for a side that begins to run the VM at `now_ms`.
    pub fn from(now_ms: u64) -> Self {
        Self(
            ANNOUNCE_AFTER_MS
                .iter()
                .rev()
                .map(|after_ms| now_ms + after_ms)
                .collect(),
        )
    }

    /// When the next one is due.
    pub fn due_ms(&self) -> Option<u64> {
        self.0.last().copied()
    }

    /// Takes those that are due off. The last of them is to be made, unless it is late by more than `late_ms_max`:
    /// this process stood still then, and may not know yet that the VM runs elsewhere.
    fn take_due(&mut self, now_ms: u64, late_ms_max: u64) -> bool {
        let mut is_due = false;
        while let Some(due_ms) = self.0.pop_if(|due_ms| *due_ms <= now_ms) {
            is_due = now_ms - due_ms <= late_ms_max;
        }
        is_due
    }
}

impl PrimarySide {
    /// Announces, if it is time for it and the VM is not about to run elsewhere.
    pub(super) fn announce_when_due(&mut self, now_ms: u64) {
        let late_ms_max = self.config.protection.suspicion_timeout_ms.into();
        if self.announcements.take_due(now_ms, late_ms_max) && !self.core.is_leaving() {
            self.machine.announce(|mac| vec![rarp(Mac(mac)).to_vec()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_made_once_and_late_ones_are_not() {
        let mut left = Announcements::from(1_000);
        assert_eq!(left.due_ms(), Some(1_000));
        assert!(left.take_due(1_001, 500));
        assert!(!left.take_due(1_002, 500));
        assert_eq!(left.due_ms(), Some(1_050));
        // Two at once are one.
        assert!(left.take_due(1_200, 500));
        // The process stood still.
        assert!(!left.take_due(2_600, 500));
        assert_eq!(left.due_ms(), Some(4_000));
        assert!(left.take_due(4_000, 500));
        assert_eq!(left.due_ms(), None);
    }
}
