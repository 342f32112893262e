//! How often a line may be logged. Whoever can make something happen - a guest, a stranger, a peer, a disk -
//! could otherwise fill the log's disk.
//!
//! Each place of the program that logs has a budget of its own, so none is forgotten and none silences
//! another: some lines at once, then one now and then, the seldomer the longer it goes on. Only lines for
//! every day count, not those that an operator has asked for (debug, trace).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::own_line;
use super::queue::Queue;

/// Lines that one place may log at once.
const BURST_MAX: u32 = 100;
/// Time in which it may log one more, at first.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// That time if it goes on and on.
const INTERVAL_MAX: Duration = Duration::from_secs(64);

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is logged; so many before it were not.
    Log(u64),
    /// It is not, and it is the first one.
    Begin,
    /// Nor is this one.
    LeaveOut,
}

/// What one place may log.
struct Budget {
    lines: u32,
    /// The time of one more line, and since when it runs.
    interval: Duration,
    since: Instant,
    left_out: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            lines: BURST_MAX,
            interval: INTERVAL_MIN,
            since: now,
            left_out: 0,
        }
    }

    fn take(&mut self, now: Instant) -> Verdict {
        self.refill(now);
        if self.lines == 0 {
            self.left_out += 1;
            return match self.left_out {
                1 => Verdict::Begin,
                _ => Verdict::LeaveOut,
            };
        }
        self.lines -= 1;
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            self.interval = (2 * self.interval).min(INTERVAL_MAX);
        }
        Verdict::Log(left_out)
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        let gained = (passed.as_millis() / self.interval.as_millis()) as u32;
        self.since += self.interval * gained;
        self.lines = self.lines.saturating_add(gained).min(BURST_MAX);
        if self.lines == BURST_MAX {
            (self.interval, self.since) = (INTERVAL_MIN, now);
        }
    }
}

/// The budgets of all places.
pub(crate) struct Limits {
    budgets: Mutex<HashMap<Identifier, Budget>>,
    queue: Queue,
}

impl Limits {
    /// Full budgets. What is left out is told to `queue`.
    pub(super) fn new(queue: Queue) -> Self {
        Self {
            budgets: Mutex::default(),
            queue,
        }
    }

    fn take(&self, place: Identifier) -> Verdict {
        let now = Instant::now();
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.entry(place).or_insert_with(|| Budget::new(now)).take(now)
    }
}

impl<S: Subscriber> Layer<S> for Limits {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return true;
        }
        match self.take(metadata.callsite()) {
            Verdict::Log(0) => true,
            Verdict::Log(left_out) => {
                self.queue.push(&own_line(
                    "INFO",
                    format_args!("{left_out} lines as the next one were left out"),
                ));
                true
            }
            Verdict::Begin => {
                let target = metadata.target();
                self.queue.push(&own_line(
                    "WARN",
                    format_args!(
                        "a line of {target} comes too often: from here on few of its kind are logged"
                    ),
                ));
                false
            }
            Verdict::LeaveOut => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_a_flood_becomes_ever_scarcer() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        for _ in 0..BURST_MAX {
            assert_eq!(budget.take(begin), Verdict::Log(0));
        }
        assert_eq!(budget.take(begin), Verdict::Begin);
        assert_eq!(budget.take(begin), Verdict::LeaveOut);
        assert_eq!(budget.take(begin + INTERVAL_MIN), Verdict::Log(2));
        // A day of ten a second.
        let (mut logged, mut left_out) = (0, 0);
        for tenth in 10..864_000 {
            match budget.take(begin + Duration::from_millis(100 * tenth)) {
                Verdict::Log(before) => (logged, left_out) = (logged + 1, left_out + before),
                Verdict::Begin | Verdict::LeaveOut => {}
            }
        }
        assert!((1_300..1_500).contains(&logged), "{logged} lines");
        assert_eq!(logged + left_out + budget.left_out, 864_000 - 10);
    }

    #[test]
    fn what_has_been_quiet_may_speak_again() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        for _ in 0..=BURST_MAX {
            budget.take(begin);
        }
        let later = begin + INTERVAL_MAX * BURST_MAX;
        assert_eq!(budget.take(later), Verdict::Log(1));
        assert_eq!(budget.interval, 2 * INTERVAL_MIN);
        for _ in 1..BURST_MAX {
            assert_eq!(budget.take(later), Verdict::Log(0));
        }
        assert_eq!(budget.take(later), Verdict::Begin);
    }

    #[test]
    fn what_comes_less_often_than_once_a_second_is_all_logged() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        for second in 0..10_000 {
            assert_eq!(budget.take(begin + Duration::from_secs(second)), Verdict::Log(0));
        }
    }
}
