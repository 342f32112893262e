//! No arbiter: the operator asserts that a silent peer is dead.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};
use tracing::warn;

use super::OpenError;
use super::stored::{decode, encode};
use crate::files;

/// Name of the file in the state directory with what this host knows.
const FILE: &str = "no-arbiter.record";

/// Remembers the record on this host only, and lets every change pass.
///
/// It knows what this host has done, and what its primary has said when it was the secondary: so it can take over, and a
/// VM that was stopped is started again. Two hosts that lose sight of each other *both* go on. Only an operator who
/// watches them, or a network that cannot be cut, makes this right.
#[derive(Default)]
pub struct NoArbiter {
    record: Option<Record>,
    path: Option<PathBuf>,
}

impl NoArbiter {
    /// An arbiter without a record, and a warning in the log.
    pub fn new() -> Self {
        warn!(
            "there is no arbiter: if the two hosts lose sight of each other, both will run the VM and its disks will \
             be destroyed. Configure `[arbiter] kind = \"etcd\"` or `\"file\"` unless somebody makes sure that a \
             silent host is dead"
        );
        Self::default()
    }

    /// Keeps what it knows in this directory from now on, and begins with what lies there.
    pub fn keep_in(&mut self, state_dir: &Path, vm: &str) -> Result<(), OpenError> {
        let path = state_dir.join(FILE);
        let trouble = |reason: String| OpenError::File {
            path: path.clone(),
            reason,
        };
        self.record = match fs::read(&path) {
            Ok(bytes) => Some(decode(&bytes, vm).map_err(|error| trouble(error.to_string()))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(trouble(error.to_string())),
        };
        self.path = Some(path);
        Ok(())
    }

    /// Takes over the record that the peer's words mean.
    pub fn assume(&mut self, record: &Record) {
        self.set(record);
    }

    fn set(&mut self, record: &Record) {
        self.record = Some(record.clone());
        let Some(path) = &self.path else { return };
        if let Err(error) = write(path, record) {
            warn!(
                "what this host knows of the VM cannot be kept in {} ({error}); after a restart the operator must say \
                 who is dead",
                path.display()
            );
        }
    }
}

/// Replaces the file, durably: it is the old one or the new one, whatever fails.
fn write(path: &Path, record: &Record) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = files::own()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&beside)?;
    file.write_all(&encode(record))?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

impl Arbiter for NoArbiter {
    fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        match request {
            ArbiterRequest::Read => ArbiterAnswer::Record(self.record.clone()),
            ArbiterRequest::Swap { expected, .. } if *expected != self.record => {
                ArbiterAnswer::Conflict(self.record.clone())
            }
            ArbiterRequest::Swap { new, .. } => {
                warn!(
                    term = new.term,
                    "term {} is taken without an arbiter, on the operator's word", new.term
                );
                self.set(new);
                ArbiterAnswer::Swapped
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kemari_sync::{Incarnation, Phase};

    #[test]
    fn what_is_known_here_can_be_changed_and_the_peers_record_is_assumed() {
        let owner = Incarnation {
            host: "a".into(),
            nonce: 1,
        };
        let record = |term| Record {
            vm: "demo".into(),
            store: 1,
            term,
            base: term,
            owner: owner.clone(),
            peer: None,
            phase: Phase::Acting,
            work: Default::default(),
        };
        let mut arbiter = NoArbiter::new();
        assert_eq!(
            arbiter.execute(&ArbiterRequest::Read),
            ArbiterAnswer::Record(None)
        );
        arbiter.assume(&record(4));
        assert_eq!(
            arbiter.execute(&ArbiterRequest::Read),
            ArbiterAnswer::Record(Some(record(4)))
        );
        let swap = ArbiterRequest::Swap {
            expected: Some(record(4)),
            new: record(5),
        };
        assert_eq!(arbiter.execute(&swap), ArbiterAnswer::Swapped);
        assert_eq!(
            arbiter.execute(&ArbiterRequest::Read),
            ArbiterAnswer::Record(Some(record(5)))
        );
    }
    #[test]
    fn what_this_host_knows_outlives_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let owner = Incarnation {
            host: "a".into(),
            nonce: 1,
        };
        let record = Record {
            vm: "demo".into(),
            store: 1,
            term: 7,
            base: 7,
            owner,
            peer: None,
            phase: Phase::Stopped,
            work: Default::default(),
        };
        let opened = || {
            let mut arbiter = NoArbiter::new();
            arbiter.keep_in(directory.path(), "demo").map(|()| arbiter)
        };
        let mut arbiter = opened().unwrap();
        let swap = ArbiterRequest::Swap {
            expected: None,
            new: record.clone(),
        };
        assert_eq!(arbiter.execute(&swap), ArbiterAnswer::Swapped);
        let mut again = opened().unwrap();
        let known = ArbiterAnswer::Record(Some(record.clone()));
        assert_eq!(again.execute(&ArbiterRequest::Read), known);
        assert_eq!(again.execute(&swap), ArbiterAnswer::Conflict(Some(record)));
        fs::write(directory.path().join(FILE), "rubbish").unwrap();
        assert!(opened().is_err(), "what cannot be read is not taken for nothing");
    }
}
