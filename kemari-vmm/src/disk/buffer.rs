//! Buffers at addresses that direct I/O takes.

use std::ops::{Deref, DerefMut};

/// Alignment of buffers for direct I/O, in bytes: enough for every disk in use.
pub(crate) const DIRECT_ALIGNMENT: usize = 4096;

/// Bytes at such an address.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// So many zeros.
    pub(crate) fn new(length: usize) -> Self {
        let storage = vec![0; length + DIRECT_ALIGNMENT];
        let start = storage.as_ptr().align_offset(DIRECT_ALIGNMENT);
        Self {
            storage,
            start,
            length,
        }
    }

    /// A copy.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut buffer = Self::new(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.length]
    }
}
