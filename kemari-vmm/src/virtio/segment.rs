//! The buffers that a descriptor chain names, as guest physical ranges.

use serde::{Deserialize, Serialize};
use virtio_queue::DescriptorChain;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::GuestFault;
use super::device::check_range;
use crate::memory::Memory;

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
}

/// Ranges of guest memory, in the order of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segments(Vec<Segment>);

/// The chain of descriptors of one request, with the length that it may have.
pub struct Chain<'a> {
    descriptors: DescriptorChain<&'a Memory>,
    descriptors_max: u16,
}

impl<'a> Chain<'a> {
    /// A chain of a queue of so many entries: no chain is longer than its queue, also where it lies in an indirect table
    /// (virtio 1.2, section 2.7.5.3.1).
    pub fn new(descriptors: DescriptorChain<&'a Memory>, queue_entries: u16) -> Self {
        Self {
            descriptors,
            descriptors_max: queue_entries,
        }
    }

    /// The head, which names the chain in the used ring.
    pub fn head_index(&self) -> u16 {
        self.descriptors.head_index()
    }
}

impl Segments {
    /// The buffers that the device reads and those that it writes, all inside the guest's memory. Empty ones are dropped.
    ///
    /// # Errors
    /// Also for a chain that is longer than its queue, or does not end: the iterator stops at a loop, and at a descriptor
    /// that cannot be read, as it does at a proper end.
    pub fn of_chain(chain: Chain<'_>, memory: &Memory) -> Result<(Self, Self), GuestFault> {
        let (mut readable, mut writable) = (Self::default(), Self::default());
        let (mut ended, mut has_writable) = (false, false);
        let mut left = chain.descriptors_max;
        for descriptor in chain.descriptors {
            left = left.checked_sub(1).ok_or_else(|| {
                let max = chain.descriptors_max;
                GuestFault(format!(
                    "a descriptor chain longer than the {max} entries of its queue"
                ))
            })?;
            ended = !descriptor.has_next();
            check_range(memory, descriptor.addr().0, u64::from(descriptor.len()))?;
            if has_writable && !descriptor.is_write_only() {
                return Err(GuestFault(
                    "a readable buffer follows a writable one in a chain".into(),
                ));
            }
            has_writable = descriptor.is_write_only();
            if descriptor.len() == 0 {
                continue;
            }
            let part = if has_writable {
                &mut writable
            } else {
                &mut readable
            };
            part.0.push(Segment {
                address: descriptor.addr().0,
                length: descriptor.len(),
            });
        }
        if !ended {
            return Err(GuestFault(
                "a descriptor chain without an end, or with a descriptor that does not exist".into(),
            ));
        }
        Ok((readable, writable))
    }

    /// Whether all of it lies inside the guest's memory, as it does after [`Segments::of_chain`].
    pub fn check(&self, memory: &Memory) -> Result<(), GuestFault> {
        self.0
            .iter()
            .try_for_each(|segment| check_range(memory, segment.address, segment.length.into()))
    }

    /// One range.
    pub fn at(address: u64, length: u32) -> Self {
        Self(vec![Segment { address, length }])
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
    pub fn split_front(&mut self, length: u64) -> Option<Self> {
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
    pub fn up_to(mut self, length: u64) -> Self {
        let length = length.min(self.len());
        self.split_front(length).unwrap_or_default()
    }

    /// Takes the last byte off and returns its address. A range of which nothing is left counts no more.
    pub fn split_last_byte(&mut self) -> Option<u64> {
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

    /// Where it lies in this process, piece by piece, without empty pieces. Whoever has something written there marks it
    /// with [`Segments::mark_dirty`].
    pub fn iovecs(&self, memory: &Memory) -> Result<Vec<libc::iovec>, GuestFault> {
        let mut parts = Vec::with_capacity(self.0.len());
        for segment in &self.0 {
            for slice in memory.get_slices(GuestAddress(segment.address), segment.length as usize) {
                let slice = slice.map_err(outside)?;
                parts.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        Ok(parts)
    }

    /// Marks its pages dirty, as after something else than this process has written them.
    pub fn mark_dirty(&self, memory: &Memory) -> Result<(), GuestFault> {
        for segment in &self.0 {
            for slice in memory.get_slices(GuestAddress(segment.address), segment.length as usize) {
                let slice = slice.map_err(outside)?;
                slice.bitmap().mark_dirty(0, slice.len());
            }
        }
        Ok(())
    }

    /// Copies all the bytes out of guest memory.
    pub fn read(&self, memory: &Memory) -> Result<Vec<u8>, GuestFault> {
        let mut bytes = vec![0; self.len() as usize];
        let mut done = 0;
        for segment in &self.0 {
            let part = &mut bytes[done..done + segment.length as usize];
            memory
                .read_slice(part, GuestAddress(segment.address))
                .map_err(outside)?;
            done += part.len();
        }
        Ok(bytes)
    }

    /// Copies bytes into guest memory, marking the pages dirty; returns how many fitted.
    pub fn write(&self, mut bytes: &[u8], memory: &Memory) -> Result<u32, GuestFault> {
        let mut done = 0;
        for segment in &self.0 {
            let (part, rest) = bytes.split_at(bytes.len().min(segment.length as usize));
            memory
                .write_slice(part, GuestAddress(segment.address))
                .map_err(outside)?;
            done += part.len() as u32;
            bytes = rest;
        }
        Ok(done)
    }
}

fn outside(error: vm_memory::GuestMemoryError) -> GuestFault {
    GuestFault(format!("a buffer is not usable: {error}"))
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
