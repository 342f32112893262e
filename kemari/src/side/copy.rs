//! The first copy: all of the guest's memory, while the guest runs, round by round.
//!
//! The first round passes over what was never written, without reading it: the secondary's memory begins as
//! zeros. The dirty log has been started before, so what is written behind that look is in the next round.

use kemari_sync::Debt;
use kemari_sync::wire::{PAGES_PER_FRAME_MAX, PageBatchWriter};
use kemari_vmm::machine::Machine;
use kemari_vmm::memory::{self, PAGE_BYTES, Touched};

/// Most bytes of a round that wait in the connection: the rest is read from memory when there is room.
pub const QUEUED_BYTES_MAX: usize = 2 << 20;

/// Most pages that are read for one frame: many may be zero, and need not be sent.
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

/// The round under way.
#[derive(Default)]
pub struct Copy {
    /// Pages of this round that are still to be sent, last first; of the first round,
    /// those of one piece of memory.
    rest: Vec<u64>,
    /// What of the memory the first round has not looked at yet.
    walk: Option<Touched>,
    /// Whether a round is under way.
    active: bool,
    /// Pages of the first round that are zero need not be sent: the secondary's memory begins as zeros.
    skip_zero: bool,
    /// For humans: pages of the first round, and those that are sent or need not be.
    pub total_pages: u64,
    pub done_pages: u64,
}

impl Copy {
    /// Begins a round: with all pages (and the dirty log starts),
    /// or with those that are owed since the round before.
    pub fn begin(&mut self, machine: &Machine, debt: &mut Debt, first: bool) -> anyhow::Result<()> {
        if first {
            return self.begin_first(machine, debt, Touched::new());
        }
        self.begin_with(debt.take_round(), None);
        Ok(())
    }

    fn begin_first(&mut self, machine: &Machine, debt: &mut Debt, walk: Touched) -> anyhow::Result<()> {
        machine.dirty().start()?;
        debt.forget();
        self.total_pages = memory::page_count(machine.memory());
        self.done_pages = 0;
        self.begin_with(Vec::new(), Some(walk));
        Ok(())
    }

    fn begin_with(&mut self, mut pages: Vec<u64>, walk: Option<Touched>) {
        pages.reverse();
        self.rest = pages;
        self.skip_zero = walk.is_some();
        self.walk = walk;
        self.active = true;
    }

    /// Whether a round is under way.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The next frame of the round. Of a guest's memory there may be much to look at and nothing to send.
    pub fn next_frame(&mut self, machine: &Machine) -> anyhow::Result<Next> {
        if self.rest.is_empty() {
            self.look_further(machine);
        }
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
            return Ok(match self.rest.is_empty() && self.walk.is_none() {
                true => Next::Done,
                false => Next::Nothing,
            });
        }
        batch.finish();
        Ok(Next::Frame(out))
    }

    /// In the first round: finds the pages of the next piece of memory that may not be zero.
    fn look_further(&mut self, machine: &Machine) {
        let Some(walk) = &mut self.walk else { return };
        let pages = walk.next_piece(machine.memory(), &mut self.rest);
        self.done_pages += pages - self.rest.len() as u64;
        self.rest.reverse();
        if pages == 0 {
            self.walk = None;
        }
    }

    /// Ends a round whose frames are all handed over; returns how many pages are dirty again.
    pub fn end_round(&mut self, machine: &Machine, debt: &mut Debt) -> anyhow::Result<u64> {
        self.active = false;
        debt.find(|pages| machine.dirty().collect(pages))?;
        Ok(debt.of_next_sync() as u64)
    }

    /// Ends the copy.
    pub fn end(&mut self) {
        self.active = false;
        (self.rest, self.walk) = (Vec::new(), None);
    }
}

fn is_zero(page: &[u8; PAGE_BYTES]) -> bool {
    *page == [0; PAGE_BYTES]
}

#[cfg(test)]
#[path = "copy_test.rs"]
mod tests;
