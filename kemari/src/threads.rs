//! Threads. A host may have none left, by a limit of its own or of this process's control group; that passes,
//! and no side ends for it. What a side needs while it runs is done by threads that were made beforehand: by
//! its own, or by [`helpers`]. Only what can be refused or tried again makes new ones.

pub mod helpers;
mod monitor;

use std::io;
use std::thread::{Builder, JoinHandle};

pub use monitor::Monitor;

/// Starts a thread.
///
/// # Errors
/// If the system has none left.
pub fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(work).map_err(|error| {
        let sentence = format!(
            "no thread `{name}` can be made: {error}; raise the limit of tasks (`ulimit -u`, TasksMax, pids.max)"
        );
        io::Error::new(error.kind(), sentence)
    })
}
