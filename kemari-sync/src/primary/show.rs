//! What shows the outside where the VM is: announcements, which no sync contains.
//! They need consent like any packet.

use super::{Primary, Standing};
use crate::faults::{Fault, fault};

impl Primary {
    /// An ack has come: the peer was there when the last capture was sent to it, and has not begun to take
    /// over since, for as long as it needs to suspect this side.
    pub(super) fn note_consent(&mut self) {
        let timing = &self.config.timing;
        self.shows_until_ms = self.last_capture_ms + timing.suspicion_ms.min(timing.reconnect_ms);
    }

    /// Whether this side may tell the outside at `now_ms` that the VM is here. What was deposed, and what
    /// stood still and has not heard of its peer since, may not: the VM may run elsewhere.
    pub fn may_show(&self, now_ms: u64) -> bool {
        if self.is_leaving() {
            return false;
        }
        match &self.standing {
            Standing::Alone => true,
            // Whether the pair is recorded is not known.
            Standing::Pairing(pairing) => pairing.asker.is_none(),
            Standing::Paired => (self.is_live() && now_ms < self.shows_until_ms) || fault(Fault::ShowUnasked),
            Standing::Over(_) => false,
        }
    }
}
