//! Arbiters: where the one record per VM is kept, that decides when two hosts cannot hear each other.
//!
//! Each implements [`kemari_sync::Arbiter`]: a linearizable read and a compare-and-set, in bounded time. What
//! cannot be understood is never taken for "there is no record", and what may have happened is never reported
//! as failed.

mod access;
mod deadline;
mod etcd;
mod file;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod http;
mod none;
mod prober;
mod stored;
#[cfg(test)]
pub(crate) mod testing;
mod watch;

use std::path::{Path, PathBuf};

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};
use kemari_vmm::confine::{COMMON, Calls, OPEN_FILES, STREAMS};

use crate::config::{ArbiterKind, Config};
use crate::sandbox::{FILES, SOCKETS};

pub use access::Access;
pub(crate) use deadline::Deadline;
pub use etcd::Etcd;
pub use file::{FileArbiter, MARKER};
pub(crate) use none::NoArbiter;
pub(crate) use prober::Prober;
pub use prober::Unproved;
pub use watch::Report;
pub(crate) use watch::{ArbiterWatch, Known, PROBE_INTERVAL_MS_MAX};

/// What the threads ask of the kernel that speak with an arbiter, or look after it.
pub(crate) const CALLS: Calls = Calls {
    of: "arbiter",
    parts: &[COMMON, OPEN_FILES, STREAMS, FILES, SOCKETS],
};

/// What an operator does about a store that went back in time.
const WENT_BACK_ADVICE: &str = "If the VM runs, and nobody else has it, `kemari adopt-record` gives it its \
                                record back; else stop both sides and find out which state of the VM is the \
                                last";

/// Why an arbiter cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An endpoint has a wrong form.
    #[error("cannot use the etcd endpoint `{endpoint}`: {reason}")]
    Endpoint {
        /// The endpoint as configured.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// A file with a certificate, a key or a password.
    #[error("cannot use {} for the arbiter: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The configuration names no place for the record.
    #[error("a file arbiter needs `path` in [arbiter]: a directory on storage that both hosts see")]
    NoPath,
    /// This process may have no further thread.
    #[error("no thread can be started for the arbiter: raise this process's limit of tasks")]
    Thread(#[source] std::io::Error),
}

/// The configured arbiter. Blocks for at most the configured time a request.
pub(crate) enum ConfiguredArbiter {
    /// In etcd.
    Etcd(Etcd),
    /// In a directory on shared storage.
    File {
        /// Asks, and waits no longer than it may.
        asked: Deadline,
        /// Asks the same at the same time, to see whether it could.
        prober: Prober,
    },
    /// Asserted by the operator.
    None(NoArbiter),
}

impl ConfiguredArbiter {
    /// Opens the arbiter of `config`'s VM. Asks it nothing yet: an arbiter that is down is seen at the first
    /// request.
    pub(crate) fn open(config: &Config) -> Result<Self, OpenError> {
        let arbiter = &config.arbiter;
        Ok(match arbiter.kind {
            ArbiterKind::Etcd => Self::Etcd(Etcd::new(
                &arbiter.endpoints,
                Access::of(arbiter)?,
                &arbiter.prefix,
                &config.vm,
                arbiter.timeout(),
            )?),
            ArbiterKind::File => {
                let path = arbiter.path.as_deref().ok_or(OpenError::NoPath)?;
                let file = FileArbiter::new(path, &config.vm);
                let prober = Prober::of_file(&file, path, arbiter.timeout()).map_err(OpenError::Thread)?;
                Self::File {
                    asked: Deadline::new(Box::new(file), arbiter.timeout()).map_err(OpenError::Thread)?,
                    prober,
                }
            }
            ArbiterKind::None => Self::None(NoArbiter::new()),
        })
    }

    /// What finds out whether this arbiter would answer, without being in the way of what is asked. `None`
    /// for the kind `none`: there is nobody to ask.
    pub(crate) fn prober(&self) -> Option<Prober> {
        match self {
            Self::Etcd(etcd) => Some(Prober::Etcd(etcd.clone())),
            Self::File { prober, .. } => Some(prober.clone()),
            Self::None(_) => None,
        }
    }

    /// Where an arbiter that has no store (`none`) keeps what this host knows.
    pub(crate) fn keep_in(&mut self, state_dir: &Path, vm: &str) -> Result<(), OpenError> {
        match self {
            Self::None(none) => none.keep_in(state_dir, vm),
            Self::Etcd(_) | Self::File { .. } => Ok(()),
        }
    }
}

impl Arbiter for ConfiguredArbiter {
    fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        match self {
            Self::Etcd(etcd) => etcd.execute(request),
            Self::File { asked, .. } => asked.execute(request),
            Self::None(none) => none.execute(request),
        }
    }

    fn assume(&mut self, record: &Record) {
        if let Self::None(none) = self {
            none.assume(record);
        }
    }
}
