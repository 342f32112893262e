//! Pages that the guest writes in every epoch. To see that again, KVM would have to protect them at each
//! capture, and the guest would pay a fault for each: the largest cost of a sync that it notices. They are
//! left writable instead, and count as dirty without being asked.
//!
//! Whether such a page is still written is found out by looking at its content now and then, at two captures
//! in a row; and by those who look at all content anyway, to send only what has changed of it. KVM protects
//! the pages that are named in entries of its rings which are given back. An entry of a page that stays
//! writable names none, or in its place one that is not written any more. That never makes fewer of them: if
//! many are not written any more, all are protected at once, which takes KVM longer.

use std::time::{Duration, Instant};

/// A page that was written in so many epochs in a row is left writable. With 3 fewer are sent in vain, but
/// the faults of the others cost the guest more than that.
const EPOCHS: u32 = 2;
/// Pages whose content is remembered at each capture, and looked at again at the next: at least so many,
const LOOKS_MIN: usize = 4;
/// and this share of those that are left writable. A page costs less to look at than to be sent in vain.
const LOOKS_SHARE: usize = 16;
/// Most pages that are left writable.
const PAGES_MAX: usize = 4096;
/// If those who look at all content find a page unchanged so often in a row, it is not written any more.
/// Being looked at so often in vain costs about as much as the fault by which the guest would tell of its
/// next write.
const UNCHANGED_MAX: u8 = 6;
/// So many pages that are not written any more are put up with.
const IDLE_PAGES: usize = 8;
/// All pages are protected no more often.
const CLEAR_INTERVAL: Duration = Duration::from_secs(1);

/// A page: KVM's slot, and its number within it.
pub(crate) type Page = (u32, u64);

/// What becomes of the entry of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its page is protected.
    Protect,
    /// Its page stays writable, and no other is protected.
    Leave,
    /// Its page stays writable, and this one is protected.
    Instead(Page),
}

/// Which pages stay writable.
#[derive(Debug, Default)]
pub(crate) struct Hot {
    /// Of each page of each slot: the number of the last capture that it was in as an entry, its lower bits;
    /// above them, in how many captures in a row it was, or whether it is left writable.
    known: Vec<Vec<u32>>,
    /// Number of the capture.
    capture: u32,
    /// Pages left writable that are written, as far as is known.
    kept: Vec<Kept>,
    /// Behind the last one that is remembered.
    next: usize,
    /// How many are.
    looks: usize,
    /// Pages left writable that an epoch has not changed.
    idle: Vec<Page>,
    cleared: Option<Instant>,
}

/// A page that is left writable.
#[derive(Debug)]
struct Kept {
    page: Page,
    /// A hash of what was in it at the capture of that number.
    seen: Option<(u32, u64)>,
    /// So often in a row it was told to be unchanged.
    unchanged: u8,
}

impl Kept {
    fn new(page: Page) -> Self {
        Self {
            page,
            seen: None,
            unchanged: 0,
        }
    }
}

/// The lower bits of a capture's number.
const CAPTURE: u32 = (1 << 28) - 1;
const KEPT: u32 = 1 << 31;
const _: () = assert!(EPOCHS << 28 < KEPT);

impl Hot {
    /// For slots of so many pages. None is left writable yet.
    pub(crate) fn new(slots: impl IntoIterator<Item = usize>) -> Self {
        Self {
            known: slots.into_iter().map(|pages| vec![0; pages]).collect(),
            // No page was seen in the one before the first.
            capture: 1,
            ..Self::default()
        }
    }

    /// Pages that are left writable.
    pub(crate) fn len(&self) -> usize {
        self.kept.len() + self.idle.len()
    }

    /// A capture begins, the guest paused. `hash` is that of a page's content.
    pub(crate) fn begin(&mut self, hash: impl Fn(Page) -> u64) {
        let before = self.capture;
        self.capture = before.wrapping_add(1) & CAPTURE;
        let end = self.next.min(self.kept.len());
        for index in (end.saturating_sub(self.looks)..end).rev() {
            // Another may be here by now, which was not looked at.
            let Kept { page, seen, .. } = self.kept[index];
            if seen.is_some_and(|(capture, then)| capture == before && then == hash(page)) {
                self.kept.swap_remove(index);
                self.idle.push(page);
            }
        }
        let from = if end < self.kept.len() { end } else { 0 };
        self.looks = LOOKS_MIN.max(self.kept.len() / LOOKS_SHARE);
        self.next = (from + self.looks).min(self.kept.len());
        for Kept { page, seen, .. } in &mut self.kept[from..self.next] {
            *seen = Some((self.capture, hash(*page)));
        }
    }

    /// Since the capture before, the content of each page has stayed the same or not.
    pub(crate) fn note(&mut self, is_unchanged: impl Fn(Page) -> bool) {
        let written = self.idle.extract_if(.., |page| !is_unchanged(*page));
        let written: Vec<Page> = written.collect();
        for kept in &mut self.kept {
            kept.unchanged = if is_unchanged(kept.page) {
                kept.unchanged + 1
            } else {
                0
            };
        }
        let idle = self.kept.extract_if(.., |kept| kept.unchanged >= UNCHANGED_MAX);
        self.idle.extend(idle.map(|kept| kept.page));
        self.kept.extend(written.into_iter().map(Kept::new));
    }

    /// What becomes of an entry that names this page, at a capture.
    pub(crate) fn on_entry(&mut self, page: Page) -> Fate {
        let (capture, is_full) = (self.capture, self.len() >= PAGES_MAX);
        let Some(known) = self.known(page) else {
            return Fate::Protect;
        };
        // Two vCPUs may have written it.
        let is_kept = *known & KEPT != 0;
        if !is_kept {
            let again = *known & CAPTURE == capture.wrapping_sub(1) & CAPTURE;
            let in_a_row = if again { (*known >> 28) + 1 } else { 1 };
            if in_a_row < EPOCHS || is_full {
                *known = capture | in_a_row.min(EPOCHS - 1) << 28;
                return Fate::Protect;
            }
            *known = KEPT;
            self.kept.push(Kept::new(page));
        }
        match self.idle.pop() {
            Some(other) if other != page => {
                self.known(other).into_iter().for_each(|known| *known = 0);
                Fate::Instead(other)
            }
            other => {
                self.idle.extend(other);
                Fate::Leave
            }
        }
    }

    /// All pages that are left writable: they count as dirty.
    pub(crate) fn pages(&self) -> impl Iterator<Item = Page> + '_ {
        let kept = self.kept.iter().map(|kept| kept.page);
        self.idle.iter().copied().chain(kept)
    }

    /// Whether so many pages are not written any more that all should be protected.
    pub(crate) fn is_stale(&self) -> bool {
        self.idle.len() > IDLE_PAGES.max(self.kept.len() / 2)
            && self
                .cleared
                .is_none_or(|cleared| cleared.elapsed() >= CLEAR_INTERVAL)
    }

    /// All pages are protected.
    pub(crate) fn clear(&mut self) {
        let pages: Vec<Page> = self.pages().collect();
        for page in pages {
            self.known(page).into_iter().for_each(|known| *known = 0);
        }
        self.kept.clear();
        self.idle.clear();
        self.cleared = Some(Instant::now());
    }

    fn known(&mut self, (slot, page): Page) -> Option<&mut u32> {
        self.known.get_mut(slot as usize)?.get_mut(page as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const PAGES: u64 = 1000;

    /// A KVM that protects what it is told to, and a guest.
    struct Play {
        hot: Hot,
        protected: HashSet<u64>,
        content: Vec<u64>,
        faults: usize,
    }

    impl Play {
        fn new() -> Self {
            Self {
                hot: Hot::new([PAGES as usize]),
                protected: (0..PAGES).collect(),
                content: vec![0; PAGES as usize],
                faults: 0,
            }
        }

        /// The guest writes these pages; then there is a capture. Returns what counts as dirty.
        fn epoch(&mut self, written: &[u64]) -> HashSet<u64> {
            let written: HashSet<u64> = written.iter().copied().collect();
            written.iter().for_each(|page| self.content[*page as usize] += 1);
            let entries: Vec<u64> = written
                .iter()
                .copied()
                .filter(|page| self.protected.remove(page))
                .collect();
            self.faults += entries.len();
            let mut dirty: HashSet<u64> = entries.iter().copied().collect();
            self.hot.begin(|(_, page)| self.content[page as usize]);
            for page in entries {
                match self.hot.on_entry((0, page)) {
                    Fate::Protect => assert!(self.protected.insert(page)),
                    Fate::Leave => {}
                    Fate::Instead((_, other)) => {
                        dirty.insert(other);
                        assert!(self.protected.insert(other));
                    }
                }
            }
            dirty.extend(self.hot.pages().map(|(_, page)| page));
            if self.hot.is_stale() {
                self.hot.clear();
                self.protected.extend(0..PAGES);
            }
            assert!(dirty.is_superset(&written), "nothing is lost");
            let kept: HashSet<u64> = self.hot.pages().map(|(_, page)| page).collect();
            assert_eq!(kept.len(), self.hot.len(), "each once");
            assert!(kept.is_disjoint(&self.protected), "a page is one or the other");
            assert_eq!(kept.len() as u64 + self.protected.len() as u64, PAGES);
            dirty
        }
    }

    #[test]
    fn what_is_written_in_every_epoch_costs_a_few_faults() {
        let mut play = Play::new();
        let pages: Vec<u64> = (0..50).collect();
        for epoch in 0..1000 {
            // Something else is written, too, and seldom again.
            play.epoch(&[&pages[..], &[100 + epoch % 900]].concat());
        }
        assert_eq!(play.faults, 1000 + EPOCHS as usize * 50);
    }

    #[test]
    fn one_that_is_not_written_any_more_makes_room_for_one_that_is() {
        let mut play = Play::new();
        for _ in 0..20 {
            play.epoch(&[1, 2, 3]);
        }
        for _ in 0..20 {
            play.epoch(&[1, 2]);
        }
        assert_eq!(play.epoch(&[1, 2]), [1, 2, 3].into());
        play.epoch(&[1, 2, 4]);
        assert_eq!(play.epoch(&[1, 2, 4]), [1, 2, 3, 4].into(), "protected just now");
        assert_eq!(play.epoch(&[1, 2, 4]), [1, 2, 4].into());
        assert!(play.protected.contains(&3));
    }

    #[test]
    fn when_many_are_not_written_any_more_all_are_protected() {
        let mut play = Play::new();
        let pages: Vec<u64> = (0..100).collect();
        for _ in 0..50 {
            play.epoch(&pages);
        }
        assert_eq!(play.hot.len(), 100);
        let looks = 100 / LOOKS_MIN + 3;
        for _ in 0..looks {
            play.epoch(&pages[..10]);
        }
        // But for those that are written.
        assert!(play.hot.len() <= 10, "{}", play.hot.len());
        for _ in 0..looks {
            play.epoch(&[]);
        }
        assert!(play.hot.len() <= 10, "not again so soon");
    }

    #[test]
    fn what_was_told_to_be_unchanged_for_long_enough_is_not_written_any_more() {
        let mut play = Play::new();
        let pages: Vec<u64> = (0..100).collect();
        for _ in 0..3 {
            play.epoch(&pages);
        }
        for _ in 1..UNCHANGED_MAX {
            play.hot.note(|(_, page)| page >= 40);
        }
        assert_eq!((play.hot.len(), play.hot.idle.len()), (100, 0));
        // Some are written after all, one of them too late.
        play.hot.note(|(_, page)| page >= 50);
        assert_eq!(play.hot.idle.len(), 50);
        play.hot.note(|(_, page)| page >= 51);
        assert_eq!(play.hot.idle.len(), 49);
        assert_eq!(
            play.epoch(&pages[..51]),
            pages.iter().copied().collect(),
            "dirty all the same"
        );
        assert!(
            play.hot.len() <= 4,
            "most are protected with that, so all: {}",
            play.hot.len()
        );
    }

    #[test]
    fn no_more_pages_stay_writable_than_may() {
        let pages = PAGES_MAX as u64 + 100;
        let mut hot = Hot::new([pages as usize]);
        for capture in 0..2 * u64::from(EPOCHS) {
            hot.begin(|_| capture);
            let kept: HashSet<u64> = hot.pages().map(|(_, page)| page).collect();
            for page in (0..pages).filter(|page| !kept.contains(page)) {
                hot.on_entry((0, page));
            }
        }
        assert_eq!(hot.len(), PAGES_MAX);
    }

    #[test]
    fn whatever_is_written_nothing_is_lost() {
        let mut play = Play::new();
        let mut random = 1_u64;
        for epoch in 0..5000_u64 {
            let written: Vec<u64> = (0..20)
                .map(|_| {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                    // Small numbers often, large ones seldom, and others after a while.
                    ((random >> 33) % (1 + (random >> 50) % PAGES) + epoch / 50) % PAGES
                })
                .collect();
            play.epoch(&written);
        }
        assert!(play.faults < 5000 * 20);
    }
}
