//! The secondary's own watch: it looks about once a second, on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use super::Findings;

/// How often it looks.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);

/// A watch; it ends when this is dropped.
pub struct ReadinessWatch {
    _alive: Sender<()>,
}

impl ReadinessWatch {
    /// Tells in each round what stands on the list, changed or not.
    pub fn start(
        findings: Arc<Findings>,
        tell: impl Fn(Vec<String>) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (alive, ended) = channel();
        thread::Builder::new().name("readiness".into()).spawn(move || {
            loop {
                tell(findings.reasons());
                if ended.recv_timeout(ROUND_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self { _alive: alive })
    }
}
