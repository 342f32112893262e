//! Dirty pages that go ahead of their sync, while the guest runs and nothing has to leave: the sync is shorter by them when
//! output comes.
//!
//! A page is read after its dirty mark was taken, so whatever the guest writes while it is read, or later, marks it again,
//! and it is sent once more with the sync. Only pages that stay as they are save anything: one that gets dirty again
//! before the sync does not go ahead twice.

use std::collections::HashSet;

use kemari_sync::{Epoch, SessionId, SyncTally};
use kemari_vmm::machine::Machine;

use super::frames::{Encoding, PAGES_PER_FRAME, push_frame};

/// Fewer are left to the sync: it takes them along in less time than it needs in any case.
const PAGES_MIN: usize = 128;

/// Most that are sent in one go: a sync that becomes due waits for them.
const PAGES_AT_ONCE: usize = 128;

/// Most that go ahead of one sync: their bytes are kept until it is acked.
const PAGES_MAX: usize = 4096;

/// What has gone ahead of a sync.
pub struct Sent {
    session: SessionId,
    epoch: Epoch,
    pages: HashSet<u64>,
    /// What was sent, for a session that has to begin anew.
    pub frames: Vec<u8>,
    /// Counts the frames.
    pub tally: SyncTally,
}

/// What waits to go ahead of the next sync, and what has gone.
#[derive(Default)]
pub struct Ahead {
    waiting: Vec<u64>,
    sent: Option<Sent>,
}

impl Sent {
    /// Whether the secondary has it, as a part of this sync.
    pub fn is_there(&self, session: SessionId, epoch: Epoch) -> bool {
        (self.session, self.epoch) == (session, epoch)
    }

    /// The pages, in no order.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.pages.iter().copied()
    }
}

impl Ahead {
    /// Moves those of the pages that could go ahead out of `owed`, if there are enough of them to be worth it.
    pub fn offer(&mut self, owed: &mut Vec<u64>) {
        let is_new = |page: &u64| !self.sent.as_ref().is_some_and(|sent| sent.pages.contains(page));
        if owed.iter().filter(|page| is_new(page)).count() >= PAGES_MIN {
            self.waiting.extend(owed.extract_if(.., |page| is_new(page)));
        }
    }

    /// Whether something waits that there is room for.
    pub fn is_due(&self) -> bool {
        !self.waiting.is_empty() && self.sent_pages() < PAGES_MAX
    }

    /// Pages that were taken out of what is owed.
    pub fn pages(&self) -> usize {
        self.waiting.len() + self.sent_pages()
    }

    fn sent_pages(&self) -> usize {
        self.sent.as_ref().map_or(0, |sent| sent.pages.len())
    }

    /// Frames with some of what waits, for this sync of this session; the first time, what `opening` appends before them. No
    /// more than `pages_max` pages go ahead of a sync: if these have gone, what waits is owed.
    ///
    /// # Errors
    /// A page of the guest that cannot be read.
    pub fn send(
        &mut self,
        machine: &Machine,
        (session, epoch): (SessionId, Epoch),
        pages_max: usize,
        opening: impl FnOnce(&mut Vec<u8>),
        owed: &mut Vec<u64>,
    ) -> anyhow::Result<Vec<u8>> {
        let room = pages_max.min(PAGES_MAX).saturating_sub(self.sent_pages());
        if room == 0 {
            owed.append(&mut self.waiting);
        }
        let count = self.waiting.len().min(PAGES_AT_ONCE).min(room);
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut out = Vec::new();
        let sent = self.sent.get_or_insert_with(|| {
            opening(&mut out);
            Sent {
                session,
                epoch,
                pages: HashSet::new(),
                frames: Vec::new(),
                tally: SyncTally::default(),
            }
        });
        let from = sent.frames.len();
        let pages = self.waiting.split_off(self.waiting.len() - count);
        // Owed from here on, whatever becomes of them.
        sent.pages.extend(&pages);
        for chunk in pages.chunks(PAGES_PER_FRAME) {
            push_frame(
                machine,
                chunk,
                &mut Encoding::Whole,
                &mut sent.frames,
                &mut sent.tally,
            )?;
        }
        out.extend_from_slice(&sent.frames[from..]);
        Ok(out)
    }

    /// At a capture: what waits still is owed with the rest; what has gone ahead is a part of that sync.
    pub fn take(&mut self, owed: &mut Vec<u64>) -> Option<Sent> {
        owed.append(&mut self.waiting);
        self.sent.take()
    }

    /// The session has ended: nothing has gone ahead.
    pub fn end_session(&mut self, owed: &mut Vec<u64>) {
        if let Some(sent) = self.take(owed) {
            owed.extend(sent.pages);
        }
    }
}

#[cfg(test)]
#[path = "ahead_test.rs"]
mod tests;
