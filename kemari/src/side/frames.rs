//! Frames of pages, out of a machine's memory.

use kemari_sync::wire::PageBatchWriter;
use kemari_sync::{DeltaCache, SyncTally};
use kemari_vmm::machine::Machine;
use kemari_vmm::memory;

/// Pages of one frame of a sync. The secondary can check what it has while more is on its way, and finds it in its
/// processor's cache still.
pub const PAGES_PER_FRAME: usize = 64;

/// How pages are sent.
pub enum Encoding<'a> {
    /// As they are.
    Whole,
    /// As their difference from what the secondary has, where that is known. Those that do not differ are not sent, but
    /// listed.
    Changes(&'a mut DeltaCache, &'a mut Vec<u64>),
    /// As they are, for they may have been sent in this sync before. What is known of them is renewed.
    Again(&'a mut DeltaCache),
}

/// Appends one frame with these pages, as they are now; at most [`PAGES_PER_FRAME`]. None, if none of them is to be sent.
///
/// # Errors
/// A page of the guest that cannot be read.
pub fn push_frame(
    machine: &Machine,
    pages: &[u64],
    encoding: &mut Encoding<'_>,
    out: &mut Vec<u8>,
    tally: &mut SyncTally,
) -> anyhow::Result<()> {
    let mut batch = PageBatchWriter::new(false, out);
    let memory = machine.memory();
    let (mut failed, mut now) = (None, [0; memory::PAGE_BYTES]);
    let mut note = |read: Result<(), _>| failed = failed.take().or(read.err());
    for &page in pages {
        let kept = match encoding {
            Encoding::Whole => None,
            Encoding::Changes(deltas, _) => deltas.send(page),
            Encoding::Again(deltas) => deltas.send(page).map(|(kept, _)| (kept, false)),
        };
        match kept {
            Some((base, true)) => {
                note(memory::read_page(memory, page, &mut now));
                if !batch.push_delta(page, base, &now)
                    && let Encoding::Changes(_, unchanged) = encoding
                {
                    unchanged.push(page);
                }
            }
            Some((kept, false)) => {
                note(memory::read_page(memory, page, kept));
                batch.push(page, kept);
            }
            None => batch.push_with(page, |out| note(memory::append_page(memory, page, out))),
        }
    }
    if let Some((header, pages)) = batch.finish() {
        tally.add_pages(&header, pages);
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}
