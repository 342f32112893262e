//! An image that one thread writes by itself, and that can make good a flush which has failed.

use std::io;
use std::sync::Arc;

use super::Disk;
use super::operation::Operation;
use super::unflushed::Unflushed;

/// An image, and what has changed on it since its last good flush.
pub struct KeptDisk {
    disk: Arc<Disk>,
    unflushed: Unflushed,
}

impl KeptDisk {
    /// An image that was just opened.
    pub fn new(disk: Disk) -> Self {
        Self {
            disk: Arc::new(disk),
            unflushed: Unflushed::default(),
        }
    }

    /// The image. Whoever changes or flushes it past this value takes from it what it is for.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Carries out a change, and keeps it until a flush was good.
    /// There is one before more would have changed than is kept.
    pub fn change(&mut self, change: &Arc<Operation>) -> io::Result<()> {
        if !self.unflushed.has_room_for(change.data_bytes()) {
            self.flush()?;
        }
        self.disk.carry_out(change)?;
        self.unflushed.note(change.data_bytes(), || Some(change.clone()));
        Ok(())
    }

    /// Carries out a change that somebody else has: a flush that fails before the next good one cannot be
    /// made good.
    pub fn copy(&mut self, change: &Operation) -> io::Result<()> {
        self.disk.carry_out(change)?;
        self.unflushed.note(change.data_bytes(), || None);
        Ok(())
    }

    /// Makes all changes durable; after a flush that has failed, by making them again first.
    ///
    /// # Errors
    /// The same again may succeed, unless more has changed than is kept.
    pub fn flush(&mut self) -> io::Result<()> {
        self.unflushed.flush_begins();
        let flush = match self.disk.store().has_failed() {
            true => Operation::FlushAgain(self.unflushed.changes()),
            false => Operation::Flush,
        };
        self.disk.carry_out(&flush)?;
        self.unflushed.flushed();
        Ok(())
    }
}

#[cfg(test)]
#[path = "kept_test.rs"]
mod tests;
