//! Every time-out of the mechanism. None of them decides who is right: they only decide when to ask.

use serde::{Deserialize, Serialize};

/// Time-outs in milliseconds of a monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// Each side says that it lives this often.
    pub heartbeat_ms: u64,
    /// Silence of the peer for so long means that it may be dead: the arbiter is asked.
    pub suspicion_ms: u64,
    /// After the link broke, a new session may replace it for so long before the arbiter is asked.
    pub reconnect_ms: u64,
    /// Age of the oldest sync without an ack at which the pair parts, although the peer is heard.
    pub progress_ms: u64,
    /// A winner that does not get on for so long may be replaced by the loser, if no fence of it can strike.
    pub won_stall_ms: u64,
    /// Pause between two questions to the arbiter.
    pub ask_retry_ms: u64,
    /// At least so often a sync starts, also without output.
    pub max_interval_ms: u64,
    /// In [`crate::Mode::Interval`], so often.
    pub interval_ms: u64,
    /// Pause before protection is tried again that has failed; it doubles up to
    /// [`Self::protect_retry_ms_max`].
    pub protect_retry_ms: u64,
    /// Longest of these pauses. A pair that stood for so long is proof that it can.
    pub protect_retry_ms_max: u64,
    /// Pause before a failed fence or restore is tried again.
    pub takeover_retry_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 100,
            suspicion_ms: 1_000,
            reconnect_ms: 300,
            progress_ms: 5_000,
            won_stall_ms: 3_000,
            ask_retry_ms: 200,
            max_interval_ms: 1_000,
            interval_ms: 25,
            protect_retry_ms: 1_000,
            protect_retry_ms_max: 60_000,
            takeover_retry_ms: 1_000,
        }
    }
}

/// A [`Timing`] that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value} is too small; set it to at least {least}")]
pub struct TimingError {
    /// The field.
    pub name: &'static str,
    /// What it is, in milliseconds.
    pub value: u64,
    /// What it must be at least, in milliseconds.
    pub least: u64,
}

impl Timing {
    /// How often a winner that gets on says so, in milliseconds: twice it may come late.
    pub(crate) fn beat_ms(&self) -> u64 {
        (self.won_stall_ms / 3).max(1)
    }

    /// Refuses values with which two healthy sides would part.
    pub fn check(&self) -> Result<(), TimingError> {
        let least = |name, value, least| match value < least {
            true => Err(TimingError { name, value, least }),
            false => Ok(()),
        };
        least("heartbeat_ms", self.heartbeat_ms, 1)?;
        least("ask_retry_ms", self.ask_retry_ms, 1)?;
        least("max_interval_ms", self.max_interval_ms, 1)?;
        least("interval_ms", self.interval_ms, 1)?;
        least("takeover_retry_ms", self.takeover_retry_ms, 1)?;
        // Two lost or late heartbeats are not yet a silence.
        least("suspicion_ms", self.suspicion_ms, 3 * self.heartbeat_ms)?;
        least("progress_ms", self.progress_ms, self.suspicion_ms)?;
        least("won_stall_ms", self.won_stall_ms, 3 * self.ask_retry_ms)?;
        least("protect_retry_ms", self.protect_retry_ms, 1)?;
        least(
            "protect_retry_ms_max",
            self.protect_retry_ms_max,
            self.protect_retry_ms,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pause_is_no_shorter_than_the_first() {
        let pauses = |protect_retry_ms, protect_retry_ms_max| Timing {
            protect_retry_ms,
            protect_retry_ms_max,
            ..Timing::default()
        };
        assert_eq!(Timing::default().check(), Ok(()));
        assert_eq!(pauses(5, 5).check(), Ok(()));
        let refused = |timing: Timing| timing.check().map_err(|error| error.name);
        assert_eq!(refused(pauses(0, 5)), Err("protect_retry_ms"));
        assert_eq!(refused(pauses(6, 5)), Err("protect_retry_ms_max"));
    }
}
