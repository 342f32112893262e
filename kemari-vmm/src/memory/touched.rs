//! Which pages of guest memory were never written, as far as the kernel tells.
//!
//! Guest memory is private and anonymous ([`super::create`]). Such a page gets memory when it is first
//! written, whoever does it: the guest, the VMM, or the kernel with what a disk read. Until then it reads as
//! zeros. `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst) has 64 bits for each page: bit 63
//! says that it is present, bit 62 that it is swapped out or under way to another place. With neither there
//! is nothing behind the page: it was never written. A page that was only read may be present, as the
//! kernel's page of zeros; it is taken for a touched one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{Memory, PAGE_BYTES};

/// Pages of a piece: 16 MiB of memory, about 0.1 ms.
const PIECE_PAGES: u64 = 4096;
const ENTRY_BYTES: usize = size_of::<u64>();
const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;

/// What the kernel tells of this process's pages.
static PAGEMAP: LazyLock<Option<Arc<File>>> =
    LazyLock::new(|| File::open("/proc/self/pagemap").ok().map(Arc::new));

/// Opens what [`Touched`] reads, for the life of the process: one that makes no core dumps may not open it
/// any more, unless it is root.
pub fn open_pagemap() {
    LazyLock::force(&PAGEMAP);
}

/// A walk over all of a guest's memory, piece by piece, that finds the pages which may hold something.
///
/// Writers may go on meanwhile. A page that is first written after its piece was looked at is not found:
/// whoever needs it has the dirty log started before.
#[derive(Debug)]
pub struct Touched {
    /// Nothing if the kernel does not tell: all pages are found then.
    pagemap: Option<Arc<File>>,
    /// Entries of a piece.
    entries: Vec<u8>,
    /// Pages that are behind the walk, counted over all regions.
    passed: u64,
}

impl Touched {
    /// Begins a walk.
    pub fn new() -> Self {
        Self::with(PAGEMAP.clone())
    }

    /// Begins a walk that finds all pages, as where the kernel does not tell.
    pub fn blind() -> Self {
        Self::with(None)
    }

    fn with(pagemap: Option<Arc<File>>) -> Self {
        // What was just written is there, or was swapped out. If the file denies that, it is none to believe.
        let probe = Box::new(std::hint::black_box([1u8; PAGE_BYTES]));
        let mut entry = [0; ENTRY_BYTES];
        let tells = |pagemap: &Arc<File>| read(pagemap, probe.as_ptr(), &mut entry) && is_touched(entry);
        Self {
            pagemap: pagemap.filter(tells),
            entries: Vec::new(),
            passed: 0,
        }
    }

    /// Looks at the next piece, appends the page frames in it that may hold something, in order, and returns
    /// how many pages the piece has. Zero: all of the memory is behind the walk.
    pub fn next_piece(&mut self, memory: &Memory, found: &mut Vec<u64>) -> u64 {
        let mut before = 0;
        for region in memory.iter() {
            let in_region = region.len() / PAGE_BYTES as u64;
            if self.passed < before + in_region {
                let at = self.passed - before;
                let pages = PIECE_PAGES.min(in_region - at);
                let first = region.start_addr().0 / PAGE_BYTES as u64 + at;
                let start = region.as_ptr().wrapping_add(at as usize * PAGE_BYTES);
                self.look(start, pages as usize);
                let entries = self.entries.as_chunks().0;
                let touched = (first..).zip(entries).filter(|(_, entry)| is_touched(**entry));
                found.extend(touched.map(|(gfn, _)| gfn));
                self.passed += pages;
                return pages;
            }
            before += in_region;
        }
        0
    }

    /// Reads the entries of these pages; of all as touched, if that fails.
    fn look(&mut self, start: *const u8, pages: usize) {
        self.entries.resize(pages * ENTRY_BYTES, 0);
        if !self
            .pagemap
            .as_ref()
            .is_some_and(|pagemap| read(pagemap, start, &mut self.entries))
        {
            self.pagemap = None;
            self.entries.fill(0xff);
        }
    }
}

impl Default for Touched {
    fn default() -> Self {
        Self::new()
    }
}

fn read(pagemap: &File, start: *const u8, entries: &mut [u8]) -> bool {
    let offset = start as usize / PAGE_BYTES * ENTRY_BYTES;
    pagemap.read_exact_at(entries, offset as u64).is_ok()
}

fn is_touched(entry: [u8; ENTRY_BYTES]) -> bool {
    u64::from_ne_bytes(entry) & PRESENT_OR_SWAPPED != 0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::arch::layout::HIGH_MEMORY_START;
    use crate::memory::{self, create};

    /// Goes on to the end; returns how many pages were passed, and those that were found.
    fn walk(mut touched: Touched, memory: &Memory) -> (u64, Vec<u64>) {
        let (mut passed, mut found) = (0, Vec::new());
        loop {
            match touched.next_piece(memory, &mut found) {
                0 => return (passed, found),
                pages => passed += pages,
            }
        }
    }

    /// A small memory on both sides of the hole, without huge pages:
    /// a page that is written brings no neighbours.
    fn memory() -> Memory {
        let memory = create((3 << 30) + (65 << 20)).expect("memory that nobody touches costs nothing");
        for region in memory.iter() {
            // SAFETY: the range is a live mapping of ours; the advice changes no content.
            unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_NOHUGEPAGE) };
        }
        memory
    }

    #[test]
    fn what_was_written_is_found_and_nothing_else() {
        let memory = memory();
        let high = HIGH_MEMORY_START / PAGE_BYTES as u64;
        let last = memory::all_pages(&memory).last().expect("it has memory");
        let written = [
            0,
            1,
            PIECE_PAGES - 1,
            PIECE_PAGES,
            0xb_ffff,
            high,
            high + 77,
            last,
        ];
        for gfn in written {
            // Zeros, too: it is not the content that counts.
            memory::write_in_page(&memory, gfn, 4095, &[(gfn % 2) as u8]).expect("a page of the guest");
        }
        let (passed, found) = walk(Touched::new(), &memory);
        assert_eq!(found, written);
        assert_eq!(passed, memory::page_count(&memory));
    }

    #[test]
    fn with_huge_pages_nothing_that_was_written_is_missed() {
        let memory = create(128 << 20).expect("memory");
        let written: BTreeSet<u64> = (0..40).map(|n| n * n * 19).collect();
        for &gfn in &written {
            memory::write_in_page(&memory, gfn, 0, &[1]).expect("a page of the guest");
        }
        let (_, found) = walk(Touched::new(), &memory);
        let found = BTreeSet::from_iter(found);
        assert!(found.is_superset(&written));
        assert!(found.len() <= written.len() * 512, "whole huge pages at most");
    }

    #[test]
    fn a_swapped_page_is_a_touched_one() {
        assert!(is_touched((1u64 << 62 | 77).to_ne_bytes()));
        assert!(is_touched((1u64 << 63 | 1 << 56).to_ne_bytes()));
        assert!(!is_touched((0b11u64 << 55).to_ne_bytes()));
    }

    #[test]
    fn all_pages_are_found_if_the_kernel_does_not_tell() {
        let memory = memory();
        let lies = File::open("/dev/zero").expect("a file of zeros");
        let ends = File::open("/dev/null").expect("an empty file");
        for touched in [
            Touched::blind(),
            Touched::with(Some(lies.into())),
            Touched::with(Some(ends.into())),
        ] {
            let (passed, found) = walk(touched, &memory);
            assert!(found.into_iter().eq(memory::all_pages(&memory)));
            assert_eq!(passed, memory::page_count(&memory));
        }
    }
}
