//! Taps over the control socket: what is asked, and what is told.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Longest time of one tap, in seconds.
pub(crate) const TAP_SECONDS_MAX: u32 = 86_400;

/// Which way events pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the back end to the guest: interrupts.
    In,
    /// From the guest to the back end: kicks, console bytes.
    Out,
    /// Both ways.
    Both,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "IN",
            Self::Out => "OUT",
            Self::Both => "IN and OUT",
        })
    }
}

/// What to tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapRequest {
    /// Name of the event channel, as `net0.tx`.
    pub channel: String,
    /// Which events.
    pub direction: Direction,
    /// How long, in seconds: 1 to [`TAP_SECONDS_MAX`].
    pub seconds: u32,
    /// Whether each event is reported, and not the statistics alone.
    pub events: bool,
}

/// What a tap tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TapLine {
    /// An event passed.
    Event {
        /// Since the tap was attached, in us.
        at_us: u64,
        /// Which way: in or out.
        direction: Direction,
    },
    /// Events that were not reported one by one, since they came faster than the client took them.
    Skipped {
        /// How many.
        events: u64,
    },
    /// All that passed so far in one direction.
    Statistics(TapStatistics),
}

/// Counts of one channel in one direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapStatistics {
    /// The channel.
    pub channel: String,
    /// Which way: in or out.
    pub direction: Direction,
    /// Time since the tap was attached, in s.
    pub seconds: f64,
    /// Events since then.
    pub events: u64,
    /// Intervals between one event and the next, shortest first; empty ones may be left out.
    pub intervals: Vec<Bucket>,
}

/// Intervals of about one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Longest interval in this bucket, in us.
    pub(crate) up_to_us: u64,
    /// How many there were.
    pub count: u64,
}

/// Width of the longest bar of a histogram, in characters.
const BAR_CHARS: u64 = 40;

impl fmt::Display for TapStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = if self.seconds > 0.0 {
            self.events as f64 / self.seconds
        } else {
            0.0
        };
        write!(
            f,
            "{} {}: {} events in {:.1} s ({rate:.1} a second)",
            self.channel, self.direction, self.events, self.seconds
        )?;
        let longest = self
            .intervals
            .iter()
            .map(|bucket| bucket.count)
            .max()
            .unwrap_or(0)
            .max(1);
        for bucket in &self.intervals {
            let bar =
                "#".repeat((bucket.count as u128 * u128::from(BAR_CHARS)).div_ceil(longest.into()) as usize);
            write!(
                f,
                "\n  up to {:>10} us {:>10}  {bar}",
                bucket.up_to_us, bucket.count
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_drawn() {
        let statistics = TapStatistics {
            channel: "net0.tx".into(),
            direction: Direction::Out,
            seconds: 2.0,
            events: 101,
            intervals: vec![
                Bucket {
                    up_to_us: 64,
                    count: 99,
                },
                Bucket {
                    up_to_us: 128,
                    count: 1,
                },
            ],
        };
        let text = statistics.to_string();
        assert!(
            text.starts_with("net0.tx OUT: 101 events in 2.0 s (50.5 a second)\n"),
            "{text}"
        );
        assert!(text.contains(&"#".repeat(40)) && text.ends_with("1  #"), "{text}");
        let empty = TapStatistics {
            seconds: 0.0,
            events: 0,
            intervals: vec![],
            ..statistics
        };
        assert_eq!(empty.to_string().lines().count(), 1);
    }
}
