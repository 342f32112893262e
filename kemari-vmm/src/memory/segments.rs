//! Buffers of a guest, as ranges of its memory.

use serde::{Deserialize, Serialize};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::Memory;

/// A buffer that does not lie in the guest's memory.
#[derive(Debug, thiserror::Error)]
pub enum BadBuffer {
    /// A part of it does not exist.
    #[error("a buffer of {bytes} bytes at {address:#x} lies outside the guest's memory")]
    Outside {
        /// Where it begins (guest physical).
        address: u64,
        /// Its length.
        bytes: u64,
    },
    /// It cannot be used.
    #[error("a buffer is not usable: {0}")]
    Unusable(GuestMemoryError),
}

/// Checks that a range of guest memory exists.
pub(crate) fn check_range(memory: &Memory, address: u64, bytes: u64) -> Result<(), BadBuffer> {
    match bytes == 0 || memory.check_range(GuestAddress(address), bytes as usize) {
        true => Ok(()),
        false => Err(BadBuffer::Outside { address, bytes }),
    }
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
}

/// Ranges of guest memory, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segments(Vec<Segment>);

impl Segments {
    /// Whether all of it lies inside the guest's memory, as do those that a guest's request was taken from.
    pub fn check(&self, memory: &Memory) -> Result<(), BadBuffer> {
        self.0
            .iter()
            .try_for_each(|segment| check_range(memory, segment.address, segment.length.into()))
    }

    /// One range.
    pub fn at(address: u64, length: u32) -> Self {
        Self(vec![Segment { address, length }])
    }

    /// Adds a range behind them.
    pub fn push(&mut self, segment: Segment) {
        self.0.push(segment);
    }

    /// Total length in bytes.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|segment| u64::from(segment.length)).sum()
    }

    /// Number of ranges.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes `length` bytes off the front. None if there are not so many.
    pub(crate) fn split_front(&mut self, length: u64) -> Option<Self> {
        if self.len() < length {
            return None;
        }
        // So many ranges belong to the front as a whole, and so many bytes of the next one.
        let (mut whole, mut rest) = (0, length);
        while let Some(segment) = self.0.get(whole)
            && u64::from(segment.length) <= rest
        {
            rest -= u64::from(segment.length);
            whole += 1;
        }
        let mut front: Vec<Segment> = self.0.drain(..whole).collect();
        if let Some(first) = self.0.first_mut().filter(|_| rest > 0) {
            front.push(Segment {
                address: first.address,
                length: rest as u32,
            });
            first.address += rest;
            first.length -= rest as u32;
        }
        Some(Self(front))
    }

    /// The front of it, if it is longer than so many bytes.
    pub(crate) fn up_to(mut self, length: u64) -> Self {
        let length = length.min(self.len());
        self.split_front(length).unwrap_or_default()
    }

    /// Takes the last byte off and returns its address. A range of which nothing is left counts no more.
    pub(crate) fn split_last_byte(&mut self) -> Option<u64> {
        let mut last = self.0.pop()?;
        while last.length == 0 {
            last = self.0.pop()?;
        }
        last.length -= 1;
        if last.length > 0 {
            self.0.push(last);
        }
        Some(last.address + u64::from(last.length))
    }

    /// Where it lies in this process, piece by piece, without empty pieces. Whoever has something written
    /// there marks it with [`Segments::mark_dirty`].
    pub(crate) fn iovecs(&self, memory: &Memory) -> Result<Vec<libc::iovec>, BadBuffer> {
        let mut parts = Vec::with_capacity(self.0.len());
        for segment in &self.0 {
            for slice in memory.get_slices(GuestAddress(segment.address), segment.length as usize) {
                let slice = slice.map_err(BadBuffer::Unusable)?;
                parts.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        Ok(parts)
    }

    /// Marks its pages dirty, as after something else than this process has written them.
    pub(crate) fn mark_dirty(&self, memory: &Memory) -> Result<(), BadBuffer> {
        for segment in &self.0 {
            for slice in memory.get_slices(GuestAddress(segment.address), segment.length as usize) {
                let slice = slice.map_err(BadBuffer::Unusable)?;
                slice.bitmap().mark_dirty(0, slice.len());
            }
        }
        Ok(())
    }

    /// Copies all the bytes out of guest memory.
    pub fn read(&self, memory: &Memory) -> Result<Vec<u8>, BadBuffer> {
        let mut bytes = vec![0; self.len() as usize];
        let mut done = 0;
        for segment in &self.0 {
            let part = &mut bytes[done..done + segment.length as usize];
            memory
                .read_slice(part, GuestAddress(segment.address))
                .map_err(BadBuffer::Unusable)?;
            done += part.len();
        }
        Ok(bytes)
    }

    /// Copies bytes into guest memory, marking the pages dirty; returns how many fitted.
    pub fn write(&self, mut bytes: &[u8], memory: &Memory) -> Result<u32, BadBuffer> {
        let mut done = 0;
        for segment in &self.0 {
            let (part, rest) = bytes.split_at(bytes.len().min(segment.length as usize));
            memory
                .write_slice(part, GuestAddress(segment.address))
                .map_err(BadBuffer::Unusable)?;
            done += part.len() as u32;
            bytes = rest;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(parts: &[(u64, u32)]) -> Segments {
        Segments(
            parts
                .iter()
                .map(|&(address, length)| Segment { address, length })
                .collect(),
        )
    }

    #[test]
    fn a_header_may_be_spread_over_buffers() {
        let mut all = segments(&[(0x1000, 10), (0x2000, 0), (0x3000, 20)]);
        assert_eq!(
            all.split_front(16).unwrap(),
            segments(&[(0x1000, 10), (0x2000, 0), (0x3000, 6)])
        );
        assert_eq!(all, segments(&[(0x3006, 14)]));
        assert!(all.split_front(15).is_none());
    }

    #[test]
    fn the_status_byte_is_the_last_one() {
        let mut all = segments(&[(0x1000, 512), (0x2000, 1), (0x3000, 0)]);
        assert_eq!(all.split_last_byte(), Some(0x2000));
        assert_eq!(all, segments(&[(0x1000, 512)]));
        assert_eq!(all.split_last_byte(), Some(0x11ff));
        assert_eq!(all, segments(&[(0x1000, 511)]));
        assert_eq!(Segments::default().split_last_byte(), None);
    }
}
