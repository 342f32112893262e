//! Whose turn it is to change a part of a block.
//!
//! A disk that takes only whole blocks has a part of one changed by reading, changing and writing it. Two who
//! did so at a time, each with a part of its own, would undo each other's change.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The blocks that somebody has the turn at, by their offsets.
#[derive(Default)]
pub(crate) struct Turns {
    taken: Mutex<BTreeSet<u64>>,
    given_back: Condvar,
}

/// A turn, until it is dropped.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    blocks: [u64; 2],
}

impl Turns {
    fn taken(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn at these blocks, which may be one. Both are taken at once, so that nobody has one
    /// and waits for the other.
    pub(crate) fn take(&self, blocks: [u64; 2]) -> Turn<'_> {
        let is_taken = |taken: &mut BTreeSet<u64>| blocks.iter().any(|block| taken.contains(block));
        let mut taken = self
            .given_back
            .wait_while(self.taken(), is_taken)
            .unwrap_or_else(PoisonError::into_inner);
        taken.extend(blocks);
        Turn { turns: self, blocks }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut taken = self.turns.taken();
        taken.retain(|block| !self.blocks.contains(block));
        self.turns.given_back.notify_all();
    }
}
