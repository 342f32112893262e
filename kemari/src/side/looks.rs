//! Fresh looks at the arbiter, which an order that ends a pair waits for: what was found last is seconds old,
//! and the arbiter is needed now.

use std::time::Duration;

use super::board::{Board, COMMAND_TIMEOUT};
use crate::arbiter::PROBE_INTERVAL_MS_MAX;

/// What was found is known to both sides so much later, in milliseconds.
const TOLD_MS_MAX: u64 = 1_000;
/// No order waits longer than this for looks, in milliseconds, however long the arbiter may take for its
/// answers: whoever gave it waits for the outcome.
const LOOKS_MS_MAX: u64 = 45_000;

const _: () = assert!(LOOKS_MS_MAX < COMMAND_TIMEOUT.as_millis() as u64);

/// A look of this side.
#[derive(Clone, Copy)]
pub struct Look {
    /// Its number. `None`: nobody watches the arbiter.
    number: Option<u64>,
    since_ms: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// It may yet end.
    NotYet,
    /// What was found is fresh.
    Fresh,
    /// It is waited for no more.
    TooLate,
}

impl Look {
    /// Begins one.
    pub fn begin(board: &Board, now_ms: u64) -> Self {
        Self {
            number: board.look_at_arbiter(),
            since_ms: now_ms,
        }
    }

    /// How far it is at `now_ms`, with an arbiter that has so long for each answer.
    pub fn state(&self, board: &Board, timeout: Duration, now_ms: u64) -> Looked {
        match self.number.is_none_or(|look| board.has_looked_at_arbiter(look)) {
            true => Looked::Fresh,
            false if self.is_due(timeout, now_ms) => Looked::TooLate,
            false => Looked::NotYet,
        }
    }

    /// Whether neither this look is waited for any more, nor one of the other side.
    pub fn is_due(&self, timeout: Duration, now_ms: u64) -> bool {
        now_ms >= self.due_ms(timeout)
    }

    /// From when on they are not.
    pub fn due_ms(&self, timeout: Duration) -> u64 {
        self.since_ms + looks_ms_max(timeout)
    }
}

/// An order waits for so long, in milliseconds, until either side has looked at the arbiter anew: a look may
/// be under way, and the one that counts comes after it.
pub fn looks_ms_max(timeout: Duration) -> u64 {
    let looks_ms = PROBE_INTERVAL_MS_MAX + 2 * timeout.as_millis() as u64 + TOLD_MS_MAX;
    looks_ms.min(LOOKS_MS_MAX)
}

/// That a look has come to nothing, as the end of a sentence.
pub fn no_answer(timeout: Duration) -> String {
    format!("it has given no answer for {} ms", looks_ms_max(timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_waits_longer_than_two_answers_of_the_arbiter_may_take() {
        assert_eq!(looks_ms_max(Duration::from_secs(2)), 10_000);
        for timeout_ms in [10, 2_000, 15_000] {
            let looks_ms = looks_ms_max(Duration::from_millis(timeout_ms));
            assert!(looks_ms > PROBE_INTERVAL_MS_MAX + 2 * timeout_ms, "{timeout_ms}");
        }
        assert_eq!(
            looks_ms_max(Duration::from_secs(600)),
            LOOKS_MS_MAX,
            "nobody waits for ever"
        );
    }
}
