//! Which pages the secondary is owed.
//!
//! The dirty log forgets a page as soon as it has told of it. From then on the page is known here alone.

use std::collections::BTreeSet;

use crate::faults::{Fault, fault};
use crate::invariants::are_asserted;
use crate::primary::SessionId;
use crate::record::Epoch;

/// The pages that a secondary is owed, by their numbers.
///
/// A page is owed from the look at the dirty log that has found it until a sync that has it is acked. In
/// between it is found, waits to go ahead of the next sync, has gone, or is captured; one that gets dirty
/// meanwhile is found again, and so is in two of these places. Whatever fails, no page leaves all of them,
/// except by [`Self::acked`], [`Self::take_round`] and [`Self::forget`].
///
/// At any time: [`Self::find`], [`Self::offer`], [`Self::end_session`]. One sync is captured at a time: it
/// begins with [`Self::capture`] and ends with [`Self::acked`] or [`Self::give_back`]. Pages go ahead of the
/// next one while none is captured.
///
/// What a call costs follows the pages that it is about, not the size of memory.
#[derive(Debug, Default)]
pub struct Debt {
    /// Found, and part of no sync yet; some of them more than once.
    found: Vec<u64>,
    /// To go ahead of the next sync.
    waiting: Vec<u64>,
    /// Gone ahead of the next sync.
    ahead: Option<Ahead>,
    captured: Option<Captured>,
}

#[derive(Debug)]
struct Ahead {
    session: SessionId,
    epoch: Epoch,
    pages: BTreeSet<u64>,
}

#[derive(Debug)]
struct Captured {
    epoch: Epoch,
    /// In the order in which they are sent; how many of them were handed out to be.
    pages: Vec<u64>,
    sent: usize,
    ahead: Option<Ahead>,
}

impl Debt {
    /// Looks at the dirty log: `look` appends what it finds. What it has found when it fails is owed, too.
    pub fn find<E>(&mut self, look: impl FnOnce(&mut Vec<u64>) -> Result<(), E>) -> Result<(), E> {
        look(&mut self.found)
    }

    /// How many pages the next sync would have, if none were found any more; one that went ahead and is dirty
    /// again counts twice.
    pub fn of_next_sync(&mut self) -> usize {
        self.found.sort_unstable();
        self.found.dedup();
        self.found.len() + self.waiting.len() + self.gone_ahead()
    }

    fn gone_ahead(&self) -> usize {
        self.ahead.as_ref().map_or(0, |ahead| ahead.pages.len())
    }

    /// What was found, but for what has gone ahead already, may go ahead of the next sync,
    /// if it is at least so many pages.
    pub fn offer(&mut self, pages_min: usize) {
        self.found.sort_unstable();
        self.found.dedup();
        let ahead = self.ahead.as_ref();
        let is_new = |page: &u64| ahead.is_none_or(|ahead| !ahead.pages.contains(page));
        if self.found.iter().filter(|page| is_new(page)).count() >= pages_min {
            self.waiting
                .extend(self.found.extract_if(.., |page| is_new(page)));
            // Some were waiting already.
            self.waiting.sort_unstable();
            self.waiting.dedup();
        }
    }

    /// Whether something waits to go ahead of a sync of which no more than `pages_max` may.
    pub fn is_offered(&self, pages_max: usize) -> bool {
        !self.waiting.is_empty() && self.gone_ahead() < pages_max
    }

    /// Takes up to `count_max` pages that go ahead of this sync of this session from here on, which are no
    /// more than `pages_max` altogether: if these have gone, nothing waits any longer. They are to be read
    /// after this.
    pub fn go_ahead(
        &mut self,
        (session, epoch): (SessionId, Epoch),
        count_max: usize,
        pages_max: usize,
    ) -> Vec<u64> {
        let owed = self.entries();
        let stale = self
            .ahead
            .take_if(|ahead| (ahead.session, ahead.epoch) != (session, epoch));
        self.take_back(stale);
        let room = pages_max.saturating_sub(self.gone_ahead());
        if room == 0 {
            self.found.append(&mut self.waiting);
        }
        let count = self.waiting.len().min(count_max).min(room);
        let pages = self.waiting.split_off(self.waiting.len() - count);
        if count > 0 {
            let fresh = || Ahead {
                session,
                epoch,
                pages: BTreeSet::new(),
            };
            self.ahead.get_or_insert_with(fresh).pages.extend(&pages);
        }
        self.assert_invariants(owed);
        pages
    }

    /// The session in which pages went ahead of this sync, if any did.
    pub fn went_ahead_in(&self, epoch: Epoch) -> Option<SessionId> {
        let captured = self
            .captured
            .as_ref()
            .and_then(|captured| captured.ahead.as_ref());
        let ahead = [captured, self.ahead.as_ref()].into_iter().flatten();
        ahead
            .filter(|ahead| ahead.epoch == epoch)
            .map(|ahead| ahead.session)
            .next()
    }

    /// The session has ended: what went ahead of the next sync in it, or was about to, is found again.
    pub fn end_session(&mut self, session: SessionId) {
        let owed = self.entries();
        self.found.append(&mut self.waiting);
        let ended = self.ahead.take_if(|ahead| ahead.session == session);
        self.take_back(ended);
        self.assert_invariants(owed);
    }

    /// A sync begins to be captured: all that is owed is a part of it.
    pub fn capture(&mut self, epoch: Epoch) {
        debug_assert!(self.captured.is_none(), "one sync at a time");
        let owed = self.entries();
        self.take_back_captured();
        self.found.append(&mut self.waiting);
        let stale = self.ahead.take_if(|ahead| ahead.epoch != epoch);
        self.take_back(stale);
        self.captured = Some(Captured {
            epoch,
            pages: std::mem::take(&mut self.found),
            sent: 0,
            ahead: self.ahead.take(),
        });
        self.assert_invariants(owed);
    }

    /// Looks at the dirty log for the sync that is captured, as [`Self::find`] does. Returns what of the sync
    /// is to be read and sent now: the first time all of it, in order and each page once; later what was
    /// found since, be it sent already or not.
    pub fn find_captured<E>(
        &mut self,
        look: impl FnOnce(&mut Vec<u64>) -> Result<(), E>,
    ) -> Result<&[u64], E> {
        let Some(captured) = &mut self.captured else {
            return look(&mut self.found).map(|()| &[][..]);
        };
        let from = captured.sent;
        look(&mut captured.pages)?;
        if from == 0 {
            captured.pages.sort_unstable();
            captured.pages.dedup();
        }
        captured.sent = captured.pages.len();
        Ok(&captured.pages[from..])
    }

    /// The pages of the captured sync in the order of their sending, without those that went ahead.
    pub fn captured(&self) -> &[u64] {
        self.captured.as_ref().map_or(&[], |captured| &captured.pages)
    }

    /// How many pages of the captured sync went ahead.
    pub fn pages_ahead(&self) -> usize {
        let ahead = self
            .captured
            .as_ref()
            .and_then(|captured| captured.ahead.as_ref());
        ahead.map_or(0, |ahead| ahead.pages.len())
    }

    /// Those that went ahead of it, in order.
    pub fn captured_ahead(&self) -> impl Iterator<Item = u64> + '_ {
        let ahead = self
            .captured
            .as_ref()
            .and_then(|captured| captured.ahead.as_ref());
        ahead.into_iter().flat_map(|ahead| ahead.pages.iter().copied())
    }

    /// The secondary has this sync.
    pub fn acked(&mut self, epoch: Epoch) {
        self.captured.take_if(|captured| captured.epoch == epoch);
    }

    /// This sync will not be acked: its pages are found again.
    pub fn give_back(&mut self, epoch: Epoch) {
        let owed = self.entries();
        if self
            .captured
            .as_ref()
            .is_some_and(|captured| captured.epoch == epoch)
        {
            self.take_back_captured();
        }
        self.assert_invariants(owed);
    }

    fn take_back_captured(&mut self) {
        if let Some(mut captured) = self.captured.take()
            && !fault(Fault::ForgetGiveBack)
        {
            self.found.append(&mut captured.pages);
            self.take_back(captured.ahead);
        }
    }

    fn take_back(&mut self, ahead: Option<Ahead>) {
        if let Some(ahead) = ahead.filter(|_| !fault(Fault::ForgetAhead)) {
            self.found.extend(ahead.pages);
        }
    }

    /// Takes what was found, for a round of the first copy: if it does not arrive, that begins anew,
    /// with all pages.
    pub fn take_round(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.found)
    }

    /// How often pages are known, those that are in two places twice.
    fn entries(&self) -> usize {
        let of_ahead = |ahead: &Option<Ahead>| ahead.as_ref().map_or(0, |ahead| ahead.pages.len());
        let captured = self.captured.as_ref();
        let of_captured = captured.map_or(0, |captured| captured.pages.len() + of_ahead(&captured.ahead));
        self.found.len() + self.waiting.len() + of_ahead(&self.ahead) + of_captured
    }

    /// What is so after a change in which nothing is found, acked or forgotten.
    /// `owed`: the entries before it.
    fn assert_invariants(&self, owed: usize) {
        if !are_asserted() {
            return;
        }
        assert_eq!(self.entries(), owed, "no page leaves all of its places");
        if let Some(ahead) = &self.ahead {
            assert!(!ahead.pages.is_empty(), "what went ahead are pages");
        }
        if let Some(captured) = &self.captured {
            assert!(
                self.ahead.is_none(),
                "while a sync is captured nothing goes ahead of the next"
            );
            assert!(
                captured.sent <= captured.pages.len(),
                "only what there is was sent"
            );
            let ahead = captured.ahead.as_ref();
            assert!(
                ahead.is_none_or(|ahead| ahead.epoch == captured.epoch),
                "what went ahead is of the sync that follows it"
            );
        }
    }

    /// Nobody is owed anything: the secondary is to get all pages, or there is none.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
#[path = "debt_test.rs"]
mod tests;
