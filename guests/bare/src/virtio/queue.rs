//! A split virtqueue (virtio 1.2, section 2.7), the driver's side.
//!
//! All ring indexes are free-running 16-bit numbers. Descriptors, available ring and used ring share one
//! page, so that a queue in use dirties one page; freed descriptors are taken again first, for the same
//! reason.

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use super::memory::Dma;

/// Descriptors in a queue: the most whose rings fit into one page.
pub const QUEUE_SIZE: u16 = 128;
/// Longest chain of descriptors.
pub const SEGMENTS_MAX: usize = 3;

const PAGE_BYTES: usize = 4096;
const DESCRIPTOR_BYTES: usize = 16;
/// Space for one indirect table.
const TABLE_BYTES: usize = 64;
const AVAIL_OFFSET: usize = DESCRIPTOR_BYTES * QUEUE_SIZE as usize;
const USED_OFFSET: usize = (AVAIL_OFFSET + 6 + 2 * QUEUE_SIZE as usize).next_multiple_of(4);
const AVAIL_FLAGS: usize = AVAIL_OFFSET;
const AVAIL_INDEX: usize = AVAIL_OFFSET + 2;
const AVAIL_RING: usize = AVAIL_OFFSET + 4;
const USED_EVENT: usize = AVAIL_RING + 2 * QUEUE_SIZE as usize;
const USED_FLAGS: usize = USED_OFFSET;
const USED_INDEX: usize = USED_OFFSET + 2;
const USED_RING: usize = USED_OFFSET + 4;
const AVAIL_EVENT: usize = USED_RING + 8 * QUEUE_SIZE as usize;
const _: () = assert!(AVAIL_EVENT + 2 <= PAGE_BYTES && SEGMENTS_MAX * DESCRIPTOR_BYTES <= TABLE_BYTES);

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// In the available ring's flags: send no interrupt. In the used ring's flags: send no notification.
const SUPPRESS: u16 = 1;

/// A piece of memory that belongs to a request.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Physical address.
    pub address: u64,
    /// Length.
    pub bytes: u32,
    /// The device writes it; otherwise it reads it.
    pub device_writes: bool,
}

/// Where a queue lies.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub driver: u64,
    /// The used ring.
    pub device: u64,
}

/// A queue whose requests carry a token of the type `T`, returned when the request is done.
pub struct Queue<T> {
    rings: Dma,
    tables: Option<Dma>,
    event_idx: bool,
    interrupts: bool,
    /// Free descriptors, and for each head in flight its token and the descriptors to free.
    free: Vec<u16>,
    in_flight: Vec<Option<(T, Vec<u16>)>>,
    avail_index: u16,
    used_index: u16,
    /// The available index at the last decision whether to notify.
    notified_index: u16,
}

impl<T> Queue<T> {
    /// An empty queue, with the features that were negotiated.
    pub fn new(event_idx: bool, indirect: bool) -> Queue<T> {
        let size = usize::from(QUEUE_SIZE);
        Queue {
            rings: Dma::new(PAGE_BYTES, PAGE_BYTES),
            tables: indirect.then(|| Dma::new(size * TABLE_BYTES, PAGE_BYTES)),
            event_idx,
            interrupts: true,
            free: (0..QUEUE_SIZE).rev().collect(),
            in_flight: (0..size).map(|_| None).collect(),
            avail_index: 0,
            used_index: 0,
            notified_index: 0,
        }
    }

    /// Where it lies.
    pub fn addresses(&self) -> Addresses {
        let base = self.rings.address();
        Addresses {
            descriptors: base,
            driver: base + AVAIL_OFFSET as u64,
            device: base + USED_OFFSET as u64,
        }
    }

    /// The available index and the used index as far as it was handled.
    pub fn indexes(&self) -> (u16, u16) {
        (self.avail_index, self.used_index)
    }

    /// There is room for `count` more requests of the longest chain.
    pub fn has_room(&self, count: usize) -> bool {
        let each = if self.tables.is_some() { 1 } else { SEGMENTS_MAX };
        self.free.len() >= count * each
    }

    /// Offers a request to the device, which then owns its memory until [`Queue::pop`] returns the token. The
    /// device need not look before it is notified: see [`Queue::must_notify`].
    ///
    /// Panics if there is no room; ask [`Queue::has_room`] before.
    pub fn add(&mut self, segments: &[Segment], token: T) {
        assert!(
            !segments.is_empty() && segments.len() <= SEGMENTS_MAX,
            "a request has 1 to 3 segments"
        );
        let direct = self.tables.is_none() || segments.len() == 1;
        let needed = if direct { segments.len() } else { 1 };
        let chain = self.free.split_off(
            self.free
                .len()
                .checked_sub(needed)
                .expect("the queue has no room"),
        );
        let head = chain[chain.len() - 1];
        if direct {
            for (i, segment) in segments.iter().enumerate() {
                let index = chain[chain.len() - 1 - i];
                let next = (i + 1 < segments.len()).then(|| chain[chain.len() - 2 - i]);
                write_descriptor(self.at(DESCRIPTOR_BYTES * usize::from(index)), segment, next);
            }
        } else if let Some(tables) = &self.tables {
            let offset = TABLE_BYTES * usize::from(head);
            for (i, segment) in segments.iter().enumerate() {
                let next = (i + 1 < segments.len()).then_some(i as u16 + 1);
                // SAFETY: inside the tables: `head` and `i` are below QUEUE_SIZE and SEGMENTS_MAX.
                let at = unsafe { tables.as_ptr().add(offset + DESCRIPTOR_BYTES * i) };
                write_descriptor(at, segment, next);
            }
            let table = Segment {
                address: tables.address() + offset as u64,
                bytes: (segments.len() * DESCRIPTOR_BYTES) as u32,
                device_writes: false,
            };
            let at = self.at(DESCRIPTOR_BYTES * usize::from(head));
            write_descriptor(at, &table, None);
            // SAFETY: the flags of the descriptor just written.
            unsafe { at.add(12).cast::<u16>().write_volatile(INDIRECT) };
        }
        self.in_flight[usize::from(head)] = Some((token, chain));
        self.store(AVAIL_RING + 2 * usize::from(self.avail_index % QUEUE_SIZE), head);
        self.avail_index = self.avail_index.wrapping_add(1);
        // The device sees the descriptors before the index.
        fence(Ordering::Release);
        self.store(AVAIL_INDEX, self.avail_index);
    }

    /// Whether the device wants to be told of what was added since the last call.
    pub fn must_notify(&mut self) -> bool {
        let added = self.avail_index.wrapping_sub(self.notified_index);
        if added == 0 {
            return false;
        }
        // The index is visible before the device's wish is read, or both sides might sleep.
        fence(Ordering::SeqCst);
        let before = self.notified_index;
        self.notified_index = self.avail_index;
        if self.event_idx {
            // Did the index pass the one at which the device wants to be notified?
            let event = self.load(AVAIL_EVENT);
            self.avail_index.wrapping_sub(event).wrapping_sub(1) < self.avail_index.wrapping_sub(before)
        } else {
            self.load(USED_FLAGS) & SUPPRESS == 0
        }
    }

    /// Whether a finished request is waiting. If none is, asks for an interrupt at the next one (unless they
    /// are off).
    pub fn is_ready(&mut self) -> bool {
        if self.load(USED_INDEX) != self.used_index {
            return true;
        }
        if !self.interrupts || !self.event_idx || self.load(USED_EVENT) == self.used_index {
            return false;
        }
        self.store(USED_EVENT, self.used_index);
        // The wish is visible before the index is read again,
        // or a completion between might send no interrupt.
        fence(Ordering::SeqCst);
        self.load(USED_INDEX) != self.used_index
    }

    /// Takes the next finished request, in the order of the device: its token,
    /// and how many bytes the device wrote.
    pub fn pop(&mut self) -> Option<(T, u32)> {
        if !self.is_ready() {
            return None;
        }
        // The index before the element.
        fence(Ordering::Acquire);
        let slot = USED_RING + 8 * usize::from(self.used_index % QUEUE_SIZE);
        // SAFETY: an element of the used ring.
        let (id, bytes) = unsafe {
            let element = self.at(slot).cast::<u32>();
            (element.read_volatile(), element.add(1).read_volatile())
        };
        self.used_index = self.used_index.wrapping_add(1);
        let entry = self.in_flight.get_mut(id as usize).and_then(Option::take);
        let (token, chain) =
            entry.unwrap_or_else(|| panic!("the device returned {id}, which it did not have"));
        self.free.extend(chain);
        Some((token, bytes))
    }

    /// Takes back every request in flight, in no order. Only for a device that was reset: the queue is then
    /// useless, and is to be replaced by a new one.
    pub fn take_in_flight(&mut self) -> Vec<T> {
        self.in_flight
            .iter_mut()
            .filter_map(Option::take)
            .map(|(token, _)| token)
            .collect()
    }

    /// Switches interrupts on or off (a hint for the device). Returns whether something finished is waiting,
    /// for which no interrupt may come.
    pub fn set_interrupts(&mut self, on: bool) -> bool {
        if self.interrupts != on {
            self.interrupts = on;
            if self.event_idx {
                // Off: an index that is not reached for 65,535 requests.
                self.store(
                    USED_EVENT,
                    if on {
                        self.used_index
                    } else {
                        self.used_index.wrapping_sub(1)
                    },
                );
            } else {
                self.store(AVAIL_FLAGS, if on { 0 } else { SUPPRESS });
            }
            fence(Ordering::SeqCst);
        }
        self.load(USED_INDEX) != self.used_index
    }

    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < PAGE_BYTES);
        // SAFETY: every offset used here is inside the page of the rings (asserted at compile time).
        unsafe { self.rings.as_ptr().add(offset) }
    }

    fn load(&self, offset: usize) -> u16 {
        // SAFETY: a 16-bit field of the rings, aligned.
        unsafe { self.at(offset).cast::<u16>().read_volatile() }
    }

    fn store(&self, offset: usize, value: u16) {
        // SAFETY: as above.
        unsafe { self.at(offset).cast::<u16>().write_volatile(value) }
    }
}

fn write_descriptor(at: *mut u8, segment: &Segment, next: Option<u16>) {
    let flags = if segment.device_writes { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
    // SAFETY: `at` is a descriptor of a table in our memory,
    // which the device does not read before it is offered.
    unsafe {
        at.cast::<u64>().write_volatile(segment.address);
        at.add(8).cast::<u32>().write_volatile(segment.bytes);
        at.add(12).cast::<u16>().write_volatile(flags);
        at.add(14).cast::<u16>().write_volatile(next.unwrap_or(0));
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
