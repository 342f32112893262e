//! Dirty pages that go ahead of their sync, while the guest runs and nothing has to leave: the sync is
//! shorter by them when output comes.
//!
//! A page is read after its dirty mark was taken, so whatever the guest writes while it is read, or later,
//! marks it again, and it is sent once more with the sync. Only pages that stay as they are save anything:
//! one that gets dirty again before the sync does not go ahead twice.

use kemari_sync::wire::SyncTally;
use kemari_sync::{Debt, Epoch, SessionId};
use kemari_vmm::machine::Machine;

use super::frames::{Encoding, PAGES_PER_FRAME, push_frame};

/// Fewer are left to the sync: it takes them along in less time than it needs in any case.
const PAGES_MIN: usize = 128;

/// Most that are sent in one go: a sync that becomes due waits for them.
const PAGES_AT_ONCE: usize = 128;

/// Most that go ahead of one sync: their bytes are kept until it is acked.
const PAGES_MAX: usize = 4096;

/// What was sent ahead of a sync.
#[derive(Default)]
pub struct Ahead {
    /// For a session that has to begin anew.
    pub frames: Vec<u8>,
    /// Counts the frames.
    pub tally: SyncTally,
}

/// Has what was found dirty wait to go ahead of the next sync, if it is enough to be worth it.
pub fn offer(debt: &mut Debt) {
    debt.offer(PAGES_MIN);
}

/// Whether something waits that there is room for.
pub fn is_due(debt: &Debt) -> bool {
    debt.is_offered(PAGES_MAX)
}

impl Ahead {
    /// Frames with some of what waits, for this sync of this session; the first time, what `opening` appends
    /// before them. No more than `pages_max` pages go ahead of a sync.
    ///
    /// # Errors
    /// A page of the guest that cannot be read.
    pub fn send(
        &mut self,
        machine: &Machine,
        debt: &mut Debt,
        (session, epoch): (SessionId, Epoch),
        pages_max: usize,
        opening: impl FnOnce(&mut Vec<u8>),
    ) -> anyhow::Result<Vec<u8>> {
        let is_first = debt.went_ahead_in(epoch) != Some(session);
        let pages = debt.go_ahead((session, epoch), PAGES_AT_ONCE, pages_max.min(PAGES_MAX));
        let mut out = Vec::new();
        if pages.is_empty() {
            return Ok(out);
        }
        if is_first {
            *self = Self::default();
            opening(&mut out);
        }
        let from = self.frames.len();
        for chunk in pages.chunks(PAGES_PER_FRAME) {
            push_frame(
                machine,
                chunk,
                &mut Encoding::Whole,
                &mut self.frames,
                &mut self.tally,
            )?;
        }
        out.extend_from_slice(&self.frames[from..]);
        Ok(out)
    }
}

#[cfg(test)]
#[path = "ahead_test.rs"]
mod tests;
