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
    /// Name of the event channel, as `net0.tx`; `None`: all of them.
    pub channel: Option<String>,
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
    /// Of direction IN, if both are tapped: times from a kick, the first since the last interrupt, to the
    /// interrupt, shortest first.
    #[serde(default)]
    pub answers: Vec<Bucket>,
}

impl TapStatistics {
    /// Events a second.
    fn rate(&self) -> f64 {
        match self.seconds > 0.0 {
            true => self.events as f64 / self.seconds,
            false => 0.0,
        }
    }
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
        write!(
            f,
            "{} {}: {} events in {:.1} s ({:.1} a second)",
            self.channel,
            self.direction,
            self.events,
            self.seconds,
            self.rate()
        )?;
        bars(f, &self.intervals)?;
        if !self.answers.is_empty() {
            write!(f, "\n  from a kick to its interrupt:")?;
            bars(f, &self.answers)?;
        }
        Ok(())
    }
}

fn bars(f: &mut fmt::Formatter<'_>, buckets: &[Bucket]) -> fmt::Result {
    let longest = buckets
        .iter()
        .map(|bucket| bucket.count)
        .max()
        .unwrap_or(0)
        .max(1);
    for bucket in buckets {
        let chars = (bucket.count as u128 * u128::from(BAR_CHARS)).div_ceil(longest.into());
        write!(
            f,
            "\n  up to {:>10} us {:>10}  {}",
            bucket.up_to_us,
            bucket.count,
            "#".repeat(chars as usize)
        )?;
    }
    Ok(())
}

/// The statistics of several channels, a line each.
pub(crate) struct TapTable<'a>(pub &'a [TapStatistics]);

impl fmt::Display for TapTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<16} {:<4} {:>10} {:>10} {:>24} {:>24}",
            "CHANNEL", "", "EVENTS", "A SECOND", "INTERVAL us, 50/99 %", "KICK TO INTERRUPT us"
        )?;
        for statistics in self.0 {
            write!(
                f,
                "\n{:<16} {:<4} {:>10} {:>10.1} {:>24} {:>24}",
                statistics.channel,
                statistics.direction.to_string(),
                statistics.events,
                statistics.rate(),
                quantiles(&statistics.intervals),
                quantiles(&statistics.answers)
            )?;
        }
        Ok(())
    }
}

/// What a half and 99 % of them did not exceed.
fn quantiles(buckets: &[Bucket]) -> String {
    // What a side says may be anything.
    let count: u128 = buckets.iter().map(|bucket| u128::from(bucket.count)).sum();
    let of = |percent: u128| {
        let wanted = (count * percent).div_ceil(100);
        let mut seen = 0;
        let bucket = buckets.iter().find(|bucket| {
            seen += u128::from(bucket.count);
            seen >= wanted
        });
        bucket.map(|bucket| bucket.up_to_us)
    };
    match (of(50), of(99)) {
        (Some(half_us), Some(most_us)) => format!("{half_us}/{most_us}"),
        _ => "-".to_owned(),
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
            answers: Vec::new(),
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

    #[test]
    fn all_channels_are_a_table() {
        let bucket = |up_to_us, count| Bucket { up_to_us, count };
        let inward = TapStatistics {
            channel: "blk0".into(),
            direction: Direction::In,
            seconds: 10.0,
            events: 101,
            intervals: vec![bucket(64, 98), bucket(1024, 2)],
            answers: vec![bucket(128, 1), bucket(256, 1)],
        };
        let outward = TapStatistics {
            direction: Direction::Out,
            events: 0,
            intervals: Vec::new(),
            answers: Vec::new(),
            ..inward.clone()
        };
        assert!(
            inward
                .to_string()
                .contains("from a kick to its interrupt:\n  up to        128 us")
        );
        let table = TapTable(&[inward, outward]).to_string();
        let words: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words[1], ["blk0", "IN", "101", "10.1", "64/1024", "128/256"]);
        assert_eq!(words[2], ["blk0", "OUT", "0", "0.0", "-", "-"]);
        assert_eq!(words.len(), 3);
    }
}
