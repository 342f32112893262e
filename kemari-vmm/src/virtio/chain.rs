//! The chain of descriptors by which a driver asks for something, and the buffers that it names.

use virtio_queue::DescriptorChain;

use super::GuestFault;
use crate::memory::{Memory, Segment, Segments, check_range};

/// The chain of descriptors of one request, with the length that it may have.
pub struct Chain<'a> {
    descriptors: DescriptorChain<&'a Memory>,
    descriptors_max: u16,
}

impl<'a> Chain<'a> {
    /// A chain of a queue of so many entries: no chain is longer than its queue, also where it lies in an
    /// indirect table (virtio 1.2, section 2.7.5.3.1).
    pub fn new(descriptors: DescriptorChain<&'a Memory>, queue_entries: u16) -> Self {
        Self {
            descriptors,
            descriptors_max: queue_entries,
        }
    }

    /// The head, which names the chain in the used ring.
    pub(crate) fn head_index(&self) -> u16 {
        self.descriptors.head_index()
    }

    /// The buffers that the device reads and those that it writes, all inside the guest's memory.
    /// Empty ones are dropped.
    ///
    /// # Errors
    /// Also for a chain that is longer than its queue, or does not end: the iterator stops at a loop, and at
    /// a descriptor that cannot be read, as it does at a proper end.
    pub fn buffers(self, memory: &Memory) -> Result<(Segments, Segments), GuestFault> {
        let (mut readable, mut writable) = (Segments::default(), Segments::default());
        let (mut ended, mut has_writable) = (false, false);
        let mut left = self.descriptors_max;
        for descriptor in self.descriptors {
            left = left.checked_sub(1).ok_or_else(|| {
                let max = self.descriptors_max;
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
            part.push(Segment {
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
}
