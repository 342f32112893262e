//! The first copy: all of the guest's memory, while the guest runs, round by round.

use kemari_sync::wire::{PAGES_PER_FRAME_MAX, PageBatchWriter};
use kemari_vmm::machine::Machine;
use kemari_vmm::memory::{self, PAGE_BYTES};

/// Most bytes of a round that wait in the connection: the rest is read from memory when there is room.
pub const QUEUED_BYTES_MAX: usize = 2 << 20;

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

    /// The next frame of the round, or none when it is all sent.
    pub fn next_frame(&mut self, machine: &Machine) -> anyhow::Result<Option<Vec<u8>>> {
        let mut page_bytes = [0; PAGE_BYTES];
        let mut out = Vec::with_capacity(PAGES_PER_FRAME_MAX * (PAGE_BYTES + 16));
        let mut batch = PageBatchWriter::new(true, &mut out);
        while !batch.is_full()
            && let Some(page) = self.rest.pop()
        {
            memory::read_page(machine.memory(), page, &mut page_bytes)?;
            self.done_pages += 1;
            if !(self.skip_zero && is_zero(&page_bytes)) {
                batch.push(page, &page_bytes);
            }
        }
        if batch.pages() == 0 {
            return Ok(None);
        }
        batch.finish();
        Ok(Some(out))
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
