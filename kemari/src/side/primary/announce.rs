//! Tells the network, several times, that the VM is here now. Also after a cold boot: it may have run
//! elsewhere before, and switches would send there what is meant for it until the guest says something.

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

    /// Takes those that are due off; several are one.
    fn take_due(&mut self, now_ms: u64) {
        while self.0.pop_if(|due_ms| *due_ms <= now_ms).is_some() {}
    }
}

impl PrimarySide {
    pub(super) fn announce(&mut self, now_ms: u64) {
        self.announcements.take_due(now_ms);
        self.machine.announce(|mac| vec![rarp(Mac(mac)).to_vec()]);
    }

    /// When the next announcement is due. Without consent it waits for the next ack, and is made in the turn
    /// of the loop in which that comes: this process may have stood still, and the VM run elsewhere.
    pub(super) fn announcement_due_ms(&self, now_ms: u64) -> Option<u64> {
        let due_ms = self.announcements.due_ms();
        due_ms.filter(|due_ms| *due_ms > now_ms || self.core.may_show(now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_made_once_and_late_ones_together() {
        let mut left = Announcements::from(1_000);
        let mut made = Vec::new();
        for now_ms in [999, 1_001, 1_002, 1_200, 2_600, 4_000, 9_000] {
            if left.due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
                left.take_due(now_ms);
                made.push(now_ms);
            }
        }
        assert_eq!(made, [1_001, 1_200, 2_600, 4_000]);
        assert_eq!(left.due_ms(), None);
    }

    #[test]
    fn one_that_waits_for_consent_keeps_nobody_awake() {
        let mut rig = super::super::rig::Rig::new();
        let begun_ms = rig.side.clock.now_ms() + 3_600_000;
        rig.side.announcements = Announcements::from(begun_ms);
        assert_eq!(
            rig.side.announcement_due_ms(begun_ms),
            Some(begun_ms),
            "it is alone"
        );
        rig.protect();
        assert_eq!(rig.side.announcement_due_ms(begun_ms), None, "it has stood still");
        rig.side.announcements.take_due(begun_ms);
        assert_eq!(
            rig.side.announcement_due_ms(begun_ms),
            Some(begun_ms + ANNOUNCE_AFTER_MS[1])
        );
    }
}
