//! Whether an arbiter would answer, and could be written, found out while nothing needs it: on ways of its
//! own, so that a real question never waits for a probe, and by what the real one will use (addresses,
//! certificates, tokens, rights).

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};

use super::file::Seen;
use super::{Deadline, Etcd, FileArbiter};

/// What a probe found instead of a record. Each is a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unproved {
    /// No answer came: what would be answered is not known.
    Silent(String),
    /// The answer is that it cannot be used as it is.
    Refused(String),
}

impl Unproved {
    /// Why.
    pub fn sentence(&self) -> &str {
        match self {
            Self::Silent(why) | Self::Refused(why) => why,
        }
    }
}

/// See the module.
#[derive(Clone)]
pub(crate) enum Prober {
    /// Shares everything with the client that asks.
    Etcd(Etcd),
    /// Shares the directory.
    File {
        /// Probes on a thread of its own, since storage may hang.
        way: Arc<Mutex<Deadline>>,
        /// What the one that asks has seen there.
        seen: Seen,
    },
}

impl Prober {
    pub(super) fn of_file(file: &FileArbiter, directory: &Path, limit: Duration) -> io::Result<Self> {
        let way = Deadline::new(Box::new(Probing(file.beside(directory))), limit)?;
        Ok(Self::File {
            way: Arc::new(Mutex::new(way)),
            seen: file.seen(),
        })
    }

    /// Reads the record and proves that it could be written, in at most the configured time. Changes nothing.
    pub(crate) fn probe(&self) -> Result<Option<Record>, Unproved> {
        match self {
            Self::Etcd(etcd) => etcd.probe(),
            Self::File { way, .. } => {
                let mut way = way.lock().unwrap_or_else(PoisonError::into_inner);
                match way.execute(&ArbiterRequest::Read) {
                    ArbiterAnswer::Record(record) => Ok(record),
                    ArbiterAnswer::Unknown(why) | ArbiterAnswer::Unavailable(why) => match way.hangs() {
                        true => Err(Unproved::Silent(why)),
                        false => Err(Unproved::Refused(why)),
                    },
                    ArbiterAnswer::Swapped | ArbiterAnswer::Conflict(_) => Err(Unproved::Refused(
                        "the arbiter answers a read as if it were a swap: report this as a fault of Kemari"
                            .into(),
                    )),
                }
            }
        }
    }

    /// What is wrong although the arbiter may answer: a renewed certificate that cannot be used, an unknown
    /// name.
    pub(crate) fn trouble(&self) -> Option<String> {
        match self {
            Self::Etcd(etcd) => etcd.trouble(),
            Self::File { .. } => None,
        }
    }

    /// The same, once every name was tried; for at most `limit`.
    pub(crate) fn trouble_within(&self, limit: Duration) -> Option<String> {
        match self {
            Self::Etcd(etcd) => etcd.trouble_within(limit),
            Self::File { .. } => None,
        }
    }

    /// Forgets how far the store had come, for those that ask as well: the operator says that it is the right
    /// one although it went back in time.
    pub(crate) fn forget(&self) {
        match self {
            Self::Etcd(etcd) => etcd.forget(),
            Self::File { seen, .. } => seen.store(0, Ordering::Release),
        }
    }
}

/// A file arbiter whose reads prove that it could be written.
struct Probing(FileArbiter);

impl Arbiter for Probing {
    fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        match request {
            ArbiterRequest::Read => match self.0.probe() {
                Ok(record) => ArbiterAnswer::Record(record),
                Err(sentence) => ArbiterAnswer::Unavailable(sentence),
            },
            ArbiterRequest::Swap { .. } => ArbiterAnswer::Unavailable("a probe changes nothing".into()),
        }
    }
}
