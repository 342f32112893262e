//! Arbiters: where the one record per VM is kept, that decides when two hosts cannot hear each other.
//!
//! Each implements [`kemari_sync::Arbiter`]: a linearizable read and a compare-and-set, in bounded time. What cannot
//! be understood is never taken for "there is no record", and what may have happened is never reported as failed.

mod access;
mod deadline;
mod etcd;
mod file;
mod http;
mod none;
mod stored;

use std::path::PathBuf;

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};

use crate::config::{ArbiterKind, Config};

pub use access::Access;
pub use deadline::Deadline;
pub use etcd::Etcd;
pub use file::{FileArbiter, MARKER};
pub use http::Endpoint;
pub use none::NoArbiter;
pub use stored::{FORMAT, StoredError};

/// Why an arbiter cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An endpoint's name cannot be resolved, or has a wrong form.
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
}

/// The configured arbiter. Blocks for at most the configured time a request.
pub enum ConfiguredArbiter {
    /// In etcd.
    Etcd(Etcd),
    /// In a directory on shared storage.
    File(Deadline),
    /// Asserted by the operator.
    None(NoArbiter),
}

impl ConfiguredArbiter {
    /// Opens the arbiter of `config`'s VM. Asks it nothing yet: an arbiter that is down is seen at the first request.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
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
                Self::File(Deadline::new(
                    Box::new(FileArbiter::new(path, &config.vm)),
                    arbiter.timeout(),
                ))
            }
            ArbiterKind::None => Self::None(NoArbiter::new()),
        })
    }

    /// Tells an arbiter that has no memory of its own (`none`) what its peer says the record is; others look
    /// themselves.
    pub fn assume(&mut self, record: &Record) {
        if let Self::None(none) = self {
            none.assume(record);
        }
    }
}

impl Arbiter for ConfiguredArbiter {
    fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        match self {
            Self::Etcd(etcd) => etcd.execute(request),
            Self::File(file) => file.execute(request),
            Self::None(none) => none.execute(request),
        }
    }
}
