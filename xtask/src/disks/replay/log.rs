//! What has reached a file, and what was asked of the disk meanwhile, in one order.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A change of the file.
#[derive(Clone, Debug)]
pub enum Change {
    /// These bytes were written.
    Write {
        /// From this byte on.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// A range was made zeros.
    Zero {
        /// From this byte on.
        offset: u64,
        /// So many.
        bytes: u64,
    },
    /// It has another length.
    Resize {
        /// In bytes.
        bytes: u64,
    },
}

impl Change {
    /// Makes it in a copy of the file.
    pub fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(data);
            }
            Self::Zero { offset, bytes } => {
                let end = content.len().min((offset + bytes) as usize);
                content[end.min(*offset as usize)..end].fill(0);
            }
            Self::Resize { bytes } => content.resize(*bytes as usize, 0),
        }
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Entry {
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
#[derive(Debug, Default)]
pub struct Log(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    content: Vec<u8>,
    entries: Vec<Entry>,
}

impl Log {
    /// Begins with a file of these bytes, all durable.
    pub fn new(content: Vec<u8>) -> Self {
        Self(Mutex::new(State {
            content,
            entries: Vec::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Length of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.lock().content.len() as u64
    }

    /// Bytes of the file, fewer at its end.
    pub fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let state = self.lock();
        let start = state.content.len().min(offset as usize);
        let end = state.content.len().min(start + bytes);
        state.content[start..end].to_vec()
    }

    /// The file is changed.
    pub fn change(&self, change: Change) {
        let mut state = self.lock();
        change.apply(&mut state.content);
        state.entries.push(Entry::Changed(change));
    }

    /// Something else has happened.
    pub fn note(&self, entry: Entry) {
        self.lock().entries.push(entry);
    }

    /// All that has happened so far, which is forgotten here.
    pub fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.lock().entries)
    }
}
