//! The pattern area: memory that is dirtied on request, with contents that do not compress, change each time,
//! and can be verified.
//!
//! Each page holds pseudo-random words from its number and its version, the version, and a checksum. The
//! version is also kept in a table elsewhere: a page that fell back to an older state as a whole is noticed
//! too.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Most pages of the area (1 GiB), whatever the machine has.
pub const PAGES_MAX: usize = 1 << 18;
const WORDS: usize = PAGE_BYTES / 8;
/// Words of a page with random contents; then follow the version and the checksum.
const RANDOM_WORDS: usize = WORDS - 2;

/// A 64-bit mixing function (the finaliser of splitmix64).
pub fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// The area. Pages are written in turn; those never written are not looked at, so that they stay untouched.
/// Where there is memory above 4 GiB, every other page is taken from there.
pub struct PatternArea {
    /// Where the pages with even numbers are, and those with odd ones.
    starts: [*mut [u64; WORDS]; 2],
    /// Pages from one of a start to its next.
    step: usize,
    pages: usize,
    /// Versions of the pages written so far.
    versions: Vec<u32>,
    next: usize,
}

// SAFETY: the memory belongs to the area alone.
unsafe impl Send for PatternArea {}

impl PatternArea {
    /// An area of at most `pages_max` pages ([`PAGES_MAX`] at most) in one or two ranges of memory:
    /// page-aligned starts, and numbers of pages. The second may have none.
    ///
    /// # Safety
    /// The memory must be valid, and belong to the area alone from now on.
    pub unsafe fn new(ranges: [(*mut u8, usize); 2], pages_max: usize) -> PatternArea {
        let [(low, low_pages), (high, high_pages)] = ranges;
        let (starts, step, pages) = match high_pages {
            0 => ([low.cast(), low.wrapping_add(PAGE_BYTES).cast()], 2, low_pages),
            _ => ([low.cast(), high.cast()], 1, 2 * low_pages.min(high_pages)),
        };
        PatternArea {
            starts,
            step,
            pages: pages.min(pages_max).min(PAGES_MAX),
            versions: Vec::new(),
            next: 0,
        }
    }

    /// Where a page is.
    fn page(&self, index: usize) -> *mut [u64; WORDS] {
        self.starts[index % 2].wrapping_add(index / 2 * self.step)
    }

    /// Pages in the area.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Pages written at least once.
    pub fn touched(&self) -> usize {
        self.versions.len()
    }

    /// Writes the next page with contents it never had. Panics if the area has no pages.
    pub fn dirty_page(&mut self) {
        if self.next == self.versions.len() {
            self.versions.push(0);
        }
        let version = self.versions[self.next].wrapping_add(1);
        self.versions[self.next] = version;
        // SAFETY: `next` is below `pages`, and the memory is ours.
        let page = unsafe { &mut *self.page(self.next) };
        let (words, checksum) = contents(self.next, version);
        for (to, from) in page.iter_mut().zip(words) {
            *to = from;
        }
        page[RANDOM_WORDS] = u64::from(version);
        page[RANDOM_WORDS + 1] = checksum;
        self.next = (self.next + 1) % self.pages;
    }

    /// Reads every page written so far; says which one is wrong, and how.
    pub fn verify(&self) -> Result<(), String> {
        for (i, version) in self.versions.iter().enumerate() {
            // SAFETY: `i` is below `pages`, and the memory is ours.
            let page = unsafe { &*self.page(i) };
            let (words, checksum) = contents(i, *version);
            if page[RANDOM_WORDS] != u64::from(*version) {
                return Err(format!(
                    "page {i} has version {} instead of {version}",
                    page[RANDOM_WORDS]
                ));
            }
            let wrong = page
                .iter()
                .zip(words)
                .position(|(found, expected)| *found != expected);
            if wrong.is_some() || page[RANDOM_WORDS + 1] != checksum {
                let word = wrong.unwrap_or(RANDOM_WORDS + 1);
                return Err(format!("page {i} version {version} is wrong in word {word}"));
            }
        }
        Ok(())
    }
}

/// The random words of a page, and the checksum behind them.
fn contents(page: usize, version: u32) -> (impl Iterator<Item = u64>, u64) {
    let seed = mix((page as u64) << 32 | u64::from(version));
    let words = (0..RANDOM_WORDS as u64).map(move |i| mix(seed ^ i));
    (words, mix(seed ^ u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_word_and_a_page_of_an_older_version_are_noticed() {
        let mut memory = vec![[0u64; WORDS]; 8];
        // SAFETY: `memory` outlives the area; it is only touched between its calls.
        let mut area =
            unsafe { PatternArea::new([(memory.as_mut_ptr().cast(), 8), (core::ptr::null_mut(), 0)], 100) };
        (0..5).for_each(|_| area.dirty_page());
        assert_eq!((area.touched(), area.verify()), (5, Ok(())));
        let old = memory[2];
        (0..8).for_each(|_| area.dirty_page());
        assert_eq!((area.touched(), area.verify()), (8, Ok(())));
        let new = memory[2];
        memory[2] = old;
        assert!(
            area.verify()
                .unwrap_err()
                .contains("page 2 has version 1 instead of 2")
        );
        memory[2] = new;
        memory[7][100] ^= 1;
        assert!(
            area.verify()
                .unwrap_err()
                .contains("page 7 version 1 is wrong in word 100")
        );
    }

    #[test]
    fn two_ranges_are_used_in_turn_as_far_as_both_go() {
        let (mut low, mut high) = (vec![[0u64; WORDS]; 3], vec![[0u64; WORDS]; 2]);
        let ranges = [(low.as_mut_ptr().cast(), 3), (high.as_mut_ptr().cast(), 2)];
        // SAFETY: both outlive the area; they are only touched between its calls.
        let mut area = unsafe { PatternArea::new(ranges, 100) };
        assert_eq!(area.pages(), 4);
        (0..3).for_each(|_| area.dirty_page());
        let written = |pages: &[[u64; WORDS]]| {
            pages
                .iter()
                .map(|page| page[RANDOM_WORDS] == 1)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (written(&low), written(&high)),
            (vec![true, true, false], vec![true, false])
        );
        assert_eq!(area.verify(), Ok(()));
        high[0][5] ^= 1;
        assert!(
            area.verify()
                .unwrap_err()
                .contains("page 1 version 1 is wrong in word 5")
        );
        // SAFETY: as above.
        assert_eq!(unsafe { PatternArea::new(ranges, 3) }.pages(), 3);
    }
}
