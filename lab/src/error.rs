//! What can go wrong in the lab.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Result of a lab operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A lab operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lab makes namespaces, bridges and TAP devices, and installs packages.
    #[error("the lab needs root for {0}: run it as root (for example with sudo)")]
    NotRoot(&'static str),
    /// A call to the operating system failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, as the rest of a sentence that begins with "cannot".
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status in words.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A host or a server did not come up, or did not answer, in time.
    #[error("{what} within {waited:?}; the end of its log:\n{log_tail}")]
    Timeout {
        /// What did not happen, as a sentence's beginning.
        what: String,
        /// How long was waited.
        waited: Duration,
        /// The end of its log, empty where there is none.
        log_tail: String,
    },
    /// The agent inside a host refused a request, or talked rubbish.
    #[error("the agent of host {host}: {reason}")]
    Agent {
        /// Name of the host.
        host: String,
        /// The agent's words.
        reason: String,
    },
    /// QEMU refused a command.
    #[error("QEMU of host {host} refused {command}: {reason}")]
    Qmp {
        /// Name of the host.
        host: String,
        /// The QMP command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// A file has not the form that was expected.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Adds to an I/O error what was tried.
pub(crate) trait Context<T> {
    /// Turns the error into [`Error::Io`]; `what` continues "cannot ...".
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source: source.into(),
        })
    }
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
