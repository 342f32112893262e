//! What a device holds at a time of what its guest asks: known before any of a request's data is copied. What
//! is over it stays in the ring until there is room again, so that a guest that asks for much makes only
//! itself wait.
//!
//! The limits of a device fit those of a saved state by construction: whatever a guest does, its state can be
//! saved, sent and loaded.

use super::GuestFault;
use crate::state::STATE_BYTES_MAX;

/// Most entries of a virtqueue that any device offers. No chain of descriptors is longer than its queue
/// (virtio 1.2, section 2.7.5.3.1).
pub(crate) const QUEUE_ENTRIES_MAX: u16 = 256;

/// Most queues of a device: a disk's, one for each vCPU that a machine may have.
pub(crate) const QUEUES_MAX: u16 = 8;

/// Most ranges of guest memory that a device's unfinished requests name together: 64 MiB of single pages.
pub const SEGMENTS_HELD_MAX: usize = 16 << 10;

/// Most data of a device's unfinished requests, in bytes: the most that is copied aside for them.
pub const BYTES_HELD_MAX: u64 = 16 << 20;

/// Bytes that a range takes in a saved state: address and length, each at its longest (postcard's varints).
const SEGMENT_STATE_BYTES: usize = 10 + 5;
/// Bytes that a request takes in a saved state beside its ranges: number (10), queue (3), head (3), kind with
/// place, length and flag on the disk (18), number of ranges (10), address of the status (10).
const REQUEST_STATE_BYTES: usize = 54;
/// Bytes of a device's saved state beside its requests: transport, queues, and what its back end keeps.
const OTHER_STATE_BYTES: usize = 4 << 10;

/// Longest saved state of a device, in bytes.
pub const DEVICE_STATE_BYTES_MAX: usize = OTHER_STATE_BYTES
    + SEGMENTS_HELD_MAX * SEGMENT_STATE_BYTES
    + QUEUES_MAX as usize * QUEUE_ENTRIES_MAX as usize * REQUEST_STATE_BYTES;

const _: () = assert!(DEVICE_STATE_BYTES_MAX <= STATE_BYTES_MAX);
// A request that no budget has room for would wait for ever.
const _: () = assert!(QUEUE_ENTRIES_MAX as usize <= SEGMENTS_HELD_MAX);

/// What one request takes of its device's budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Ranges of guest memory that it names.
    pub segments: usize,
    /// Bytes of data that may be copied for it.
    pub bytes: u64,
}

/// What is taken of a device's budget.
#[derive(Debug, Default)]
pub struct Budget {
    taken: Cost,
}

impl Budget {
    /// Whether there is room for one more request.
    pub fn has_room_for(&self, cost: Cost) -> bool {
        self.taken.segments + cost.segments <= SEGMENTS_HELD_MAX
            && self.taken.bytes.saturating_add(cost.bytes) <= BYTES_HELD_MAX
    }

    /// Takes what a request costs.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn take(&mut self, cost: Cost) -> Result<(), GuestFault> {
        if !self.has_room_for(cost) {
            return Err(GuestFault(format!(
                "more than {SEGMENTS_HELD_MAX} buffers or {BYTES_HELD_MAX} bytes are asked for at a time"
            )));
        }
        self.taken.segments += cost.segments;
        self.taken.bytes += cost.bytes;
        Ok(())
    }

    /// Gives back what a request took that is finished or dropped.
    pub fn give_back(&mut self, cost: Cost) {
        self.taken.segments -= cost.segments;
        self.taken.bytes -= cost.bytes;
    }
}
