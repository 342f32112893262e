//! What is asked of a disk.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::buffer::AlignedBuffer;
use super::order::Access;
use super::store::Store;
use crate::memory::{Memory, Segments};

/// One piece of work for a disk.
pub struct DiskJob {
    /// The request it belongs to.
    pub id: u64,
    /// What is to be done.
    pub operation: Operation,
}

/// What a disk can do.
pub enum Operation {
    /// Read so many bytes.
    Read {
        /// From this byte on.
        offset: u64,
        /// So many.
        bytes: usize,
    },
    /// Read into the guest's memory. Whoever asks for it marks the pages dirty when it has ended,
    /// well or not.
    ReadInto {
        /// From this byte on.
        offset: u64,
        /// Where the bytes go.
        target: GuestBuffers,
    },
    /// Write these bytes.
    Write {
        /// From this byte on.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Write straight from the guest's memory, which may change meanwhile: only where nobody else must write
    /// the same bytes.
    WriteFrom {
        /// From this byte on.
        offset: u64,
        /// Where the bytes are.
        source: GuestBuffers,
    },
    /// Make a range read as zeros.
    Zero {
        /// From this byte on.
        offset: u64,
        /// So many.
        bytes: u64,
        /// Whether its storage may be given back.
        unmap: bool,
    },
    /// Make all that was written durable.
    Flush,
    /// The same, after a flush that has failed: these changes, all since the last good flush, are made again
    /// first. Only while no other change is under way. None: they are not known any more, and it fails.
    FlushAgain(Option<Vec<Arc<Operation>>>),
}

/// Buffers in the guest's memory, which lives at least as long.
#[derive(Clone)]
pub struct GuestBuffers {
    /// The memory.
    pub memory: Memory,
    /// Where in it.
    pub segments: Segments,
}

impl Operation {
    /// The bytes of the image that it changes; none for a read or a flush.
    pub fn changes(&self) -> Option<Range<u64>> {
        match self.access() {
            Some((range, Access::Changes)) => Some(range),
            _ => None,
        }
    }

    /// How many bytes of data it takes to make this change again.
    pub(super) fn data_bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            Self::WriteFrom { source, .. } => source.segments.len() as usize,
            _ => 0,
        }
    }

    /// The same change, with data of its own: the guest's memory is the guest's again once it is told.
    pub(super) fn into_kept(self) -> Option<Self> {
        match self {
            Self::WriteFrom { offset, source } => {
                let data = source.segments.read(&source.memory).ok()?;
                Some(Self::Write { offset, data })
            }
            other => Some(other),
        }
    }

    /// The bytes of the image that it touches, and how; none for a flush.
    pub(super) fn access(&self) -> Option<(Range<u64>, Access)> {
        let (offset, bytes, access) = match self {
            Self::Read { offset, bytes } => (*offset, *bytes as u64, Access::Reads),
            Self::ReadInto { offset, target } => (*offset, target.segments.len(), Access::Reads),
            Self::Write { offset, data } => (*offset, data.len() as u64, Access::Changes),
            Self::WriteFrom { offset, source } => (*offset, source.segments.len(), Access::Changes),
            Self::Zero { offset, bytes, .. } => (*offset, *bytes, Access::Changes),
            Self::Flush | Self::FlushAgain(_) => return None,
        };
        Some((offset..offset + bytes, access))
    }

    /// Carries it out, and waits for its end; returns the bytes of a [`Operation::Read`], none for others.
    pub(super) fn carry_out(&self, store: &dyn Store) -> io::Result<Vec<u8>> {
        match self {
            Self::Read { offset, bytes } => {
                let mut data = vec![0; *bytes];
                store.read(*offset, &mut data)?;
                return Ok(data);
            }
            Self::ReadInto { offset, target } => {
                let mut buffer = AlignedBuffer::new(target.segments.len() as usize);
                store.read(*offset, &mut buffer)?;
                target
                    .segments
                    .write(&buffer, &target.memory)
                    .map_err(io::Error::other)?;
            }
            Self::Write { offset, data } => store.write(*offset, data)?,
            Self::WriteFrom { offset, source } => {
                let data = source.segments.read(&source.memory).map_err(io::Error::other)?;
                store.write(*offset, &data)?;
            }
            Self::Zero { offset, bytes, unmap } => store.zero(*offset, *bytes, *unmap)?,
            Self::Flush => store.flush()?,
            Self::FlushAgain(None) => {
                return Err(io::Error::other(
                    "a flush has failed, and more was written since the last good one than can be written \
                     again: what the guest was told to be written may be lost",
                ));
            }
            Self::FlushAgain(Some(changes)) => {
                for change in changes {
                    change.carry_out(store)?;
                }
                store.flush_rewritten()?;
            }
        }
        Ok(Vec::new())
    }
}
