//! Failures to become or to stay protected: the next attempt waits, longer each time,
//! since each costs the guest something.

use super::{Primary, Standing};

/// When a secondary is wanted again.
#[derive(Default)]
#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Backoff {
    /// The last pause, in milliseconds.
    pause_ms: u64,
    until_ms: u64,
    /// Why the last attempt failed.
    reason: String,
    /// When the last pair was recorded.
    paired_ms: Option<u64>,
}

impl Primary {
    pub(super) fn note_paired(&mut self) {
        self.backoff.paired_ms = Some(self.now_ms);
    }

    /// An attempt, or a pair, came to nothing, and the next may for the same reason.
    pub(super) fn note_futile(&mut self, reason: &str) {
        let (now_ms, timing) = (self.now_ms, &self.config.timing);
        let backoff = &mut self.backoff;
        // A pair that stood for long is proof that it can.
        if let Some(paired_ms) = backoff.paired_ms.take()
            && now_ms >= paired_ms.saturating_add(timing.protect_retry_ms_max)
        {
            backoff.pause_ms = 0;
        }
        let doubled_ms = backoff.pause_ms.saturating_mul(2);
        backoff.pause_ms = doubled_ms
            .max(timing.protect_retry_ms)
            .min(timing.protect_retry_ms_max);
        backoff.until_ms = now_ms.saturating_add(backoff.pause_ms);
        backoff.reason = reason.to_owned();
    }

    /// The operator wants it now.
    pub(super) fn forget_futile(&mut self) {
        self.backoff = Backoff::default();
    }

    /// Until when no secondary is wanted although the VM is to be protected.
    pub(super) fn protects_again_ms(&self) -> Option<u64> {
        let is_waiting = matches!(self.standing, Standing::Alone)
            && self.protection_wanted
            && self.session.is_none()
            && self.now_ms < self.backoff.until_ms;
        is_waiting.then_some(self.backoff.until_ms)
    }

    pub(super) fn waiting_to_protect(&self, now_ms: u64) -> Option<String> {
        let left_ms = self.protects_again_ms()?.saturating_sub(now_ms);
        Some(format!(
            "not protected: {}; it is tried again in {} s",
            self.backoff.reason,
            left_ms.div_ceil(1_000)
        ))
    }
}
