//! The pattern area: memory that is dirtied on request, with contents that do not compress, change each time, and can
//! be verified.
//!
//! Each page holds pseudo-random words from its number and its version, the version, and a checksum. The version is
//! also kept in a table elsewhere: a page that fell back to an older state as a whole is noticed too.

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
pub struct PatternArea {
    start: *mut [u64; WORDS],
    pages: usize,
    /// Versions of the pages written so far.
    versions: Vec<u32>,
    next: usize,
}

// SAFETY: the memory belongs to the area alone.
unsafe impl Send for PatternArea {}

impl PatternArea {
    /// An area of `pages` pages ([`PAGES_MAX`] at most) at the page-aligned address `start`.
    ///
    /// # Safety
    /// The memory must be valid, and belong to the area alone from now on.
    pub unsafe fn new(start: *mut u8, pages: usize) -> PatternArea {
        PatternArea {
            start: start.cast(),
            pages: pages.min(PAGES_MAX),
            versions: Vec::new(),
            next: 0,
        }
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
        let page = unsafe { &mut *self.start.add(self.next) };
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
            let page = unsafe { &*self.start.add(i) };
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
        let mut area = unsafe { PatternArea::new(memory.as_mut_ptr().cast(), 8) };
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
}
