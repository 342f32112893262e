//! The first copy: all of the guest's memory, while the guest runs, round by round.

use kemari_sync::wire::{PAGES_PER_FRAME_MAX, PageBatchWriter};
use kemari_vmm::machine::Machine;
use kemari_vmm::memory::{self, PAGE_BYTES};

/// Most bytes of a round that wait in the connection: the rest is read from memory when there is room.
pub const QUEUED_BYTES_MAX: usize = 2 << 20;

/// Most pages that are looked at for one frame: each that the guest has not touched is a page fault.
const LOOKED_PAGES_MAX: usize = 1024;

/// What comes next in a round.
pub enum Next {
    /// A frame.
    Frame(Vec<u8>),
    /// Nothing yet: what was looked at need not be sent.
    Nothing,
    /// The round is all sent.
    Done,
}

/// The round under way, and what is known of the next.
#[derive(Default)]
pub struct Copy {
    /// Pages of this round that are still to be sent, last first.
    rest: Vec<u64>,
    /// Whether a round is under way.
    active: bool,
    /// Pages of the first round that are zero need not be sent: the secondary's memory begins as zeros.
    skip_zero: bool,
    /// Pages that became dirty since they were last put into a round.
    dirty: Vec<u64>,
    /// For humans: pages to send in the first round, and pages done.
    pub total_pages: u64,
    pub done_pages: u64,
}

impl Copy {
    /// Begins a round: with all pages (and the dirty log starts), or with those dirtied since the round before.
    pub fn begin(&mut self, machine: &Machine, first: bool) -> anyhow::Result<()> {
        if first {
            machine.dirty().start()?;
            self.dirty.clear();
            self.rest = memory::all_pages(machine.memory()).collect();
            self.total_pages = self.rest.len() as u64;
            self.done_pages = 0;
        } else {
            self.rest = std::mem::take(&mut self.dirty);
        }
        self.rest.reverse();
        self.skip_zero = first;
        self.active = true;
        Ok(())
    }

    /// Whether a round is under way.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The next frame of the round. Of a guest's untouched memory there may be much to look at and nothing to send.
    pub fn next_frame(&mut self, machine: &Machine) -> anyhow::Result<Next> {
        let mut page_bytes = [0; PAGE_BYTES];
        let mut looked = 0;
        let mut out = Vec::with_capacity(PAGES_PER_FRAME_MAX * (PAGE_BYTES + 16));
        let mut batch = PageBatchWriter::new(true, &mut out);
        while !batch.is_full()
            && looked < LOOKED_PAGES_MAX
            && let Some(page) = self.rest.pop()
        {
            memory::read_page(machine.memory(), page, &mut page_bytes)?;
            self.done_pages += 1;
            looked += 1;
            if !(self.skip_zero && is_zero(&page_bytes)) {
                batch.push(page, &page_bytes);
            }
        }
        if batch.pages() == 0 {
            return Ok(match self.rest.is_empty() {
                true => Next::Done,
                false => Next::Nothing,
            });
        }
        batch.finish();
        Ok(Next::Frame(out))
    }

    /// Ends a round whose frames are all handed over; returns how many pages are dirty again.
    pub fn end_round(&mut self, machine: &Machine) -> anyhow::Result<u64> {
        self.active = false;
        machine.dirty().collect(&mut self.dirty)?;
        Ok(self.dirty.len() as u64)
    }

    /// Ends the copy: what is dirty belongs to the first sync.
    pub fn take_dirty(&mut self) -> Vec<u64> {
        self.active = false;
        self.rest = Vec::new();
        std::mem::take(&mut self.dirty)
    }
}

fn is_zero(page: &[u8; PAGE_BYTES]) -> bool {
    page.chunks_exact(8).all(|word| word == [0; 8])
}

#[cfg(test)]
mod tests {
    use kemari_vmm::dirty::DirtySource;

    use super::super::capture_test::machine;
    use super::*;

    /// Looking at all memory that a guest has never touched may take a slow host seconds, in which nobody else of the
    /// loop would have a turn.
    #[test]
    fn untouched_memory_is_looked_at_piece_by_piece() {
        let machine = machine(64, DirtySource::Best);
        let mut copy = Copy::default();
        copy.begin(&machine, true).unwrap();
        let (mut steps, mut empty, mut frames) = (0, 0, 0);
        loop {
            let before = copy.done_pages;
            let next = copy.next_frame(&machine).unwrap();
            steps += 1;
            assert!(copy.done_pages - before <= LOOKED_PAGES_MAX as u64);
            match next {
                Next::Frame(_) => frames += 1,
                Next::Nothing => empty += 1,
                Next::Done => break,
            }
        }
        assert_eq!(copy.done_pages, copy.total_pages, "all of it");
        assert!(
            frames > 0 && empty > 0 && steps >= 16,
            "{frames} frames, {empty} without any"
        );
    }
}
