//! A set of pages that is filled by any thread and emptied at a cost that follows what is in it, and not RAM.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use crate::memory::PAGE_BYTES;

const BITS: usize = u64::BITS as usize;

/// A set of pages of one region of memory: a bit a page, and above them a bit for each word with a bit. One
/// word above stands for 16 MiB, so looking for what is in the set costs next to nothing, whatever the
/// region's size.
#[derive(Debug, Default)]
pub struct PageSet {
    words: Box<[AtomicU64]>,
    /// Bit *n* of word *m*: `words[64 * m + n]` may hold something. Set after the word, cleared before it.
    summary: Box<[AtomicU64]>,
}

fn zeros(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl PageSet {
    /// Adds pages: bit *n* of `bits` is page `64 * word + n`. Bits behind the region's end are none of it.
    pub fn add(&self, word: usize, bits: u64) {
        let Some(pages) = self.words.get(word).filter(|_| bits != 0) else {
            return;
        };
        if pages.load(Ordering::Relaxed) & bits != bits {
            pages.fetch_or(bits, Ordering::Release);
            self.summary[word / BITS].fetch_or(1 << (word % BITS), Ordering::Release);
        }
    }

    /// Adds one page.
    pub(crate) fn add_page(&self, page: usize) {
        self.add(page / BITS, 1 << (page % BITS));
    }

    /// Takes all pages out, in order, each once.
    pub fn take(&self, mut page: impl FnMut(usize)) {
        for (index, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for word in bits_of(summary.swap(0, Ordering::Acquire)) {
                let word = index * BITS + word;
                for bit in bits_of(self.words[word].swap(0, Ordering::Acquire)) {
                    page(word * BITS + bit);
                }
            }
        }
    }
}

fn bits_of(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        word &= word.wrapping_sub(1);
        (bit < BITS).then_some(bit)
    })
}

impl<'a> WithBitmapSlice<'a> for PageSet {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for PageSet {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(last) = len.checked_sub(1) else { return };
        let end = (offset.saturating_add(last) / PAGE_BYTES + 1).min(self.words.len() * BITS);
        (offset / PAGE_BYTES..end).for_each(|page| self.add_page(page));
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_BYTES;
        let word = self.words.get(page / BITS);
        word.is_some_and(|word| word.load(Ordering::Acquire) & 1 << (page % BITS) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for PageSet {
    fn with_len(bytes: usize) -> Self {
        let words = bytes.div_ceil(PAGE_BYTES).div_ceil(BITS);
        Self {
            words: zeros(words),
            summary: zeros(words.div_ceil(BITS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(set: &PageSet) -> Vec<usize> {
        let mut pages = Vec::new();
        set.take(|page| pages.push(page));
        pages
    }

    #[test]
    fn what_was_added_is_taken_once_and_in_order() {
        let set = PageSet::with_len(10_000 * PAGE_BYTES);
        for page in [9_999, 64, 63, 0, 4_096, 64] {
            set.add_page(page);
        }
        set.add(2, 0b101);
        assert_eq!(taken(&set), [0, 63, 64, 128, 130, 4_096, 9_999]);
        assert_eq!(taken(&set), [] as [usize; 0]);
        set.add_page(64);
        assert_eq!(taken(&set), [64]);
    }

    #[test]
    fn a_range_marks_each_page_that_it_touches_and_nothing_outside() {
        let set = PageSet::with_len(100 * PAGE_BYTES);
        set.mark_dirty(PAGE_BYTES - 1, 2);
        set.mark_dirty(5 * PAGE_BYTES, PAGE_BYTES);
        set.mark_dirty(7 * PAGE_BYTES, 0);
        set.slice_at(9 * PAGE_BYTES).mark_dirty(1, 1);
        set.mark_dirty(1000 * PAGE_BYTES, usize::MAX);
        assert!(set.dirty_at(0) && set.dirty_at(2 * PAGE_BYTES - 1) && !set.dirty_at(2 * PAGE_BYTES));
        assert!(!set.dirty_at(usize::MAX));
        assert_eq!(taken(&set), [0, 1, 5, 9]);
    }

    #[test]
    fn what_is_added_while_the_set_is_emptied_is_in_it_afterwards() {
        let set = PageSet::with_len(1000 * PAGE_BYTES);
        [0, 64, 128].iter().for_each(|page| set.add_page(*page));
        let mut pages = Vec::new();
        set.take(|page| {
            // Behind what is being emptied, and in the middle of it.
            [0, 320].iter().for_each(|added| set.add_page(*added));
            pages.push(page);
        });
        assert_eq!(pages, [0, 64, 128]);
        assert_eq!(taken(&set), [0, 320]);
    }

    #[test]
    fn nothing_is_lost_while_others_add() {
        let set = PageSet::with_len(1 << 30);
        let mut seen = std::collections::HashSet::new();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let set = &set;
                scope.spawn(move || (0..20_000).for_each(|n| set.add_page((n * 7919 + thread) % 262_144)));
            }
            for _ in 0..500 {
                set.take(|page| {
                    seen.insert(page);
                });
            }
        });
        set.take(|page| {
            seen.insert(page);
        });
        let added = (0..2).flat_map(|thread| (0..20_000).map(move |n| (n * 7919 + thread) % 262_144));
        assert_eq!(seen, added.collect());
    }
}
