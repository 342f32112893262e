//! A test that hangs is a failed test, and says which one it was.

use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// While it lives, the process ends after the time given to it.
pub(crate) struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    pub(crate) fn new(test: &'static str, seconds: u64) -> Self {
        let (alive, end) = channel::<()>();
        thread::spawn(move || {
            if end.recv_timeout(Duration::from_secs(seconds)) == Err(RecvTimeoutError::Timeout) {
                // Not eprintln!, which the harness holds back until the test has ended.
                let _ = writeln!(
                    std::io::stderr(),
                    "{test} hangs: it did not end within {seconds} s"
                );
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}
