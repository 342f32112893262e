//! How far an import is, for somebody at a terminal.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// How often it is shown.
const INTERVAL: Duration = Duration::from_millis(250);

/// A line on the terminal, which goes when this does.
pub(crate) struct Progress {
    total_bytes: u64,
    done_bytes: u64,
    is_shown: bool,
    shown_at: Option<Instant>,
}

impl Progress {
    /// Of so much work.
    pub(super) fn of(total_bytes: u64) -> Self {
        Self {
            total_bytes,
            done_bytes: 0,
            is_shown: stderr().is_terminal(),
            shown_at: None,
        }
    }

    /// So much more is done.
    pub(super) fn add(&mut self, bytes: u64) {
        self.done_bytes += bytes;
        self.show();
    }

    /// So many hundredths are done.
    pub(crate) fn percent(&mut self, percent: f64) {
        self.done_bytes = (self.total_bytes as f64 * percent / 100.0) as u64;
        self.show();
    }

    fn show(&mut self) {
        if !self.is_shown || self.shown_at.is_some_and(|at| at.elapsed() < INTERVAL) {
            return;
        }
        self.shown_at = Some(Instant::now());
        // Nobody is told if the terminal has gone.
        let _ = write!(
            stderr(),
            "\r{} of {} MiB ",
            self.done_bytes >> 20,
            self.total_bytes.div_ceil(1 << 20)
        );
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown_at.is_some() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
