//! No arbiter: the operator asserts that a silent peer is dead.

mod keeper;

use std::io;
use std::path::Path;

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Phase, Record};
use tracing::warn;

use super::OpenError;
use super::stored::{STORED_BYTES_MAX, decode};
use crate::files;
use keeper::Keeper;

/// Name of the file in the state directory with what this host knows.
const FILE: &str = "no-arbiter.record";

/// Remembers the record on this host only, and lets every change pass.
///
/// It knows what this host has done, and what its primary has said when it was the secondary: so it can take
/// over, and a VM that was stopped is started again. Two hosts that lose sight of each other *both* go on.
/// Only an operator who watches them, or a network that cannot be cut, makes this right.
#[derive(Default)]
pub(crate) struct NoArbiter {
    record: Option<Record>,
    keeper: Option<Keeper>,
}

impl NoArbiter {
    /// An arbiter without a record, and a warning in the log.
    pub(crate) fn new() -> Self {
        warn!(
            "there is no arbiter: if the two hosts lose sight of each other, both will run the VM and its \
             disks will be destroyed. Configure `[arbiter] kind = \"etcd\"` or `\"file\"` unless somebody \
             makes sure that a silent host is dead"
        );
        Self::default()
    }

    /// Keeps what it knows in this directory from now on, and begins with what lies there.
    pub(crate) fn keep_in(&mut self, state_dir: &Path, vm: &str) -> Result<(), OpenError> {
        let path = state_dir.join(FILE);
        let trouble = |reason: String| OpenError::File {
            path: path.clone(),
            reason: format!(
                "{reason}; if no other host runs the VM or has a newer state of it, or if this one is to \
                 follow another, remove what stands there"
            ),
        };
        self.record = match files::read(&path, STORED_BYTES_MAX as u64 + 1) {
            Ok(bytes) => Some(decode(&bytes, vm).map_err(|error| trouble(error.to_string()))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(trouble(error.to_string())),
        };
        self.keeper = Some(Keeper::start(path).map_err(OpenError::Thread)?);
        Ok(())
    }

    /// Takes over the record that the peer's words mean.
    pub(crate) fn assume(&mut self, record: &Record) {
        self.give(record);
    }

    fn give(&mut self, record: &Record) {
        self.record = Some(record.clone());
        if let Some(keeper) = &self.keeper {
            keeper.give(record);
        }
    }

    /// Changes the record; what a start could rely on is on the disk before anybody acts upon it.
    ///
    /// Not so a takeover: it does not wait for a disk. A term that is won and not yet acted in need not be
    /// known after a restart, and what is there of the pair before starts nothing.
    fn set(&mut self, new: &Record) {
        let was_won = self
            .record
            .as_ref()
            .is_some_and(|record| record.phase == Phase::Won);
        if new.phase == Phase::Won {
            self.record = Some(new.clone());
            return;
        }
        self.give(new);
        if let Some(keeper) = self.keeper.as_ref().filter(|_| !was_won) {
            keeper.wait();
        }
    }

    /// A winner that works says so again and again, in one term.
    fn tell(&self, new: &Record) {
        if self.record.as_ref().map(|record| record.term) != Some(new.term) {
            warn!(
                term = new.term,
                "term {} is taken without an arbiter, on the operator's word", new.term
            );
        }
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
                self.tell(new);
                self.set(new);
                ArbiterAnswer::Swapped
            }
        }
    }
}

#[cfg(test)]
#[path = "none_test.rs"]
mod tests;
