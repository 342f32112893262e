//! Guest memory, and which of its pages the VMM itself has written.

mod dumps;
mod lazy;
mod populate;
mod segments;
mod touched;

use std::io;

use vm_memory::mmap::FromRangesError;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use crate::arch::layout;
use crate::pageset::PageSet;

pub use dumps::keep_out_of_dumps;
pub use lazy::{CALLS as COPY_CALLS, LazyCopy, hold_faults};
pub use populate::populate_and_lock;
pub(crate) use segments::{BadBuffer, Segment, Segments, check_range};
pub use touched::{Touched, open_pagemap};

/// Bytes of a page frame, the unit of dirty tracking.
pub const PAGE_BYTES: usize = 4096;

/// Least guest memory, in bytes: less does not boot a Debian kernel.
pub(crate) const MEMORY_BYTES_MIN: u64 = 64 << 20;

/// Most guest memory, in bytes.
pub(crate) const MEMORY_BYTES_MAX: u64 = 1 << 40;

/// Guest memory, each region with the set of its pages that the VMM wrote (KVM does not see those).
pub type Memory = vm_memory::GuestMemoryMmap<PageSet>;

/// Guest memory that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Outside the supported sizes, or not in whole pages.
    #[error("a guest cannot have {0} bytes of memory; give it 64 MiB to 1 TiB, in whole MiB")]
    Size(u64),
    /// The mapping failed.
    #[error("cannot map {bytes} bytes of guest memory; is there enough free memory on this host?")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// Why.
        #[source]
        source: FromRangesError,
    },
    /// Populating or locking failed.
    #[error(
        "cannot lock guest memory into RAM; raise the limit of locked memory (ulimit -l) or free some memory"
    )]
    Lock(#[source] io::Error),
}

/// Something that does not fit into guest memory where it must lie.
#[derive(Debug, thiserror::Error)]
#[error(
    "the {what} ({bytes} bytes at {address:#x}) does not fit into the guest's memory; give the machine more \
     memory"
)]
pub struct DoesNotFit {
    what: &'static str,
    bytes: u64,
    /// Guest physical.
    address: u64,
    source: GuestMemoryError,
}

/// Writes `what` to where it must lie.
pub fn place(memory: &Memory, address: u64, bytes: &[u8], what: &'static str) -> Result<(), DoesNotFit> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|source| DoesNotFit {
            what,
            bytes: bytes.len() as u64,
            address,
            source,
        })
}

/// Maps guest memory of the given size, laid out around the hole below 4 GiB, ready for huge pages and kept
/// out of core dumps.
///
/// It is private and anonymous: what nobody has written has no memory behind it, which [`Touched`] goes by.
pub fn create(bytes: u64) -> Result<Memory, MemoryError> {
    if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes) || !bytes.is_multiple_of(1 << 20) {
        return Err(MemoryError::Size(bytes));
    }
    let ranges = layout::memory_regions(bytes);
    let memory = Memory::from_ranges(&ranges).map_err(|source| MemoryError::Map { bytes, source })?;
    for region in memory.iter() {
        // SAFETY: the range is a live mapping of ours; the advice changes no content.
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) };
    }
    dumps::keep_guest_out(&memory);
    Ok(memory)
}

/// Reads one page frame. The page is read once: what is sent is what is kept,
/// whatever a device does meanwhile.
///
/// # Errors
/// If `gfn` (guest physical address / 4096) lies outside the guest's memory.
pub fn read_page(memory: &Memory, gfn: u64, page: &mut [u8]) -> Result<(), GuestMemoryError> {
    memory.read_slice(page, GuestAddress(gfn * PAGE_BYTES as u64))
}

/// As [`read_page`], and puts the page behind what is there. If that fails, a page of zeros is put there.
///
/// # Errors
/// As [`read_page`].
pub fn append_page(memory: &Memory, gfn: u64, out: &mut Vec<u8>) -> Result<(), GuestMemoryError> {
    let end = out.len() + PAGE_BYTES;
    let result = memory.write_all_volatile_to(GuestAddress(gfn * PAGE_BYTES as u64), out, PAGE_BYTES);
    // Part of it may have been read.
    out.resize(end, 0);
    result
}

/// Writes one page frame, as a secondary does with a committed sync.
///
/// # Errors
/// If `gfn` lies outside the guest's memory.
pub fn write_page(memory: &Memory, gfn: u64, page: &[u8]) -> Result<(), GuestMemoryError> {
    memory.write_slice(page, GuestAddress(gfn * PAGE_BYTES as u64))
}

/// Writes a part of one page frame, from `offset` in it on.
///
/// # Errors
/// If it lies outside the guest's memory.
pub fn write_in_page(memory: &Memory, gfn: u64, offset: usize, bytes: &[u8]) -> Result<(), GuestMemoryError> {
    memory.write_slice(bytes, GuestAddress(gfn * PAGE_BYTES as u64 + offset as u64))
}

/// Whether the guest has a page frame of this number.
pub fn has_page(memory: &Memory, gfn: u64) -> bool {
    gfn.checked_mul(PAGE_BYTES as u64)
        .is_some_and(|address| memory.address_in_range(GuestAddress(address)))
}

/// How many page frames the guest has.
pub fn page_count(memory: &Memory) -> u64 {
    memory.iter().map(|region| region.len() / PAGE_BYTES as u64).sum()
}

/// All page frame numbers of the guest, in order.
pub fn all_pages(memory: &Memory) -> impl Iterator<Item = u64> + '_ {
    memory.iter().flat_map(|region| {
        let first = region.start_addr().0 / PAGE_BYTES as u64;
        first..first + region.len() / PAGE_BYTES as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = MEMORY_BYTES_MIN / PAGE_BYTES as u64;

    #[test]
    fn a_page_is_the_guests_or_not_whatever_its_number() {
        let memory = create(MEMORY_BYTES_MIN).expect("memory");
        assert!(has_page(&memory, 0) && has_page(&memory, PAGES - 1));
        // The last ones are at addresses that wrap.
        for beyond in [PAGES, u64::MAX, 1 << 52, u64::MAX / PAGE_BYTES as u64 + 1] {
            assert!(!has_page(&memory, beyond), "{beyond:#x}");
        }
        assert_eq!(
            (page_count(&memory), all_pages(&memory).count() as u64),
            (PAGES, PAGES)
        );
    }

    #[test]
    fn a_page_that_cannot_be_read_takes_its_place_all_the_same() {
        let memory = create(MEMORY_BYTES_MIN).expect("memory");
        let mut out = vec![1];
        write_in_page(&memory, 2, 5, b"x").expect("a page");
        append_page(&memory, 2, &mut out).expect("a page");
        assert_eq!((out.len(), out[1 + 5]), (1 + PAGE_BYTES, b'x'));
        assert!(append_page(&memory, PAGES, &mut out).is_err());
        assert_eq!(out.len(), 1 + 2 * PAGE_BYTES);
    }

    #[test]
    fn a_guest_has_whole_mebibytes_within_bounds() {
        for bytes in [
            0,
            MEMORY_BYTES_MIN - (1 << 20),
            MEMORY_BYTES_MIN + 4096,
            MEMORY_BYTES_MAX + (1 << 20),
        ] {
            assert!(matches!(create(bytes), Err(MemoryError::Size(_))), "{bytes}");
        }
    }
}
