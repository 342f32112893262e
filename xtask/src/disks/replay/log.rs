//! What has reached a file, and what was asked of the disk meanwhile, in one order.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::own_file::{Change, Storage, part_of};

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Entry {
    /// The file was changed. Until the next [`Entry::Synced`] the change may be lost with the power.
    Changed(Change),
    /// All before it is durable.
    Synced,
    /// This request was about to be given to the disk.
    Asked(u64),
    /// The disk has said that this request is done.
    Ended(u64),
}

/// The file as it is, and how it came to that.
#[derive(Debug)]
pub(crate) struct Log {
    state: Mutex<State>,
    makes_holes: bool,
}

#[derive(Debug)]
struct State {
    content: Vec<u8>,
    entries: Vec<Entry>,
}

impl Log {
    /// Begins with a file of these bytes, all durable. `makes_holes`: it can make zeros without writing them.
    pub(crate) fn new(content: Vec<u8>, makes_holes: bool) -> Self {
        let entries = Vec::new();
        Self {
            state: Mutex::new(State { content, entries }),
            makes_holes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something else has happened.
    pub(crate) fn note(&self, entry: Entry) {
        self.lock().entries.push(entry);
    }

    /// All that has happened so far, which is forgotten here.
    pub(crate) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.lock().entries)
    }
}

impl Storage for Log {
    fn bytes(&self) -> u64 {
        self.lock().content.len() as u64
    }

    fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        part_of(&self.lock().content, offset, bytes)
    }

    fn change(&self, change: Change) {
        let mut state = self.lock();
        change.apply(&mut state.content);
        state.entries.push(Entry::Changed(change));
    }

    fn sync(&self) {
        self.note(Entry::Synced);
    }

    fn makes_holes(&self) -> bool {
        self.makes_holes
    }
}
