//! Frames of pages, out of a machine's memory.

use kemari_sync::wire::{DeltaCache, PageBatchWriter, SyncTally};

use kemari_vmm::machine::Machine;
use kemari_vmm::memory;

/// Pages of one frame of a sync. The secondary can check what it has while more is on its way, and finds it
/// in its processor's cache still.
pub const PAGES_PER_FRAME: usize = 64;

/// How pages are sent.
pub enum Encoding<'a> {
    /// As they are.
    Whole,
    /// As their difference from what the secondary has, where that is known. Those that do not differ are not
    /// sent, but listed.
    Changes(&'a mut DeltaCache, &'a mut Vec<u64>),
    /// As they are, for they may have been sent in this sync before. What is known of them is renewed.
    Again(&'a mut DeltaCache),
}

/// Appends one frame with these pages, as they are now; at most [`PAGES_PER_FRAME`]. None,
/// if none of them is to be sent.
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

#[cfg(test)]
mod tests {
    use kemari_sync::wire::{FrameHeader, HEADER_BYTES, PageBatch, PageContent};
    use kemari_vmm::dirty::DirtySource;

    use super::super::capture_test;
    use super::*;

    const PAGE: u64 = 9;

    /// How the page was sent: its kind, if it was.
    fn push(machine: &Machine, encoding: &mut Encoding<'_>) -> Option<&'static str> {
        let mut out = Vec::new();
        push_frame(machine, &[PAGE], encoding, &mut out, &mut SyncTally::default()).expect("a page");
        let (header, body) = out.split_first_chunk::<HEADER_BYTES>()?;
        let header = FrameHeader::parse(header).expect("a frame");
        let batch = PageBatch::parse(header.kind, body, |_| true).expect("pages");
        let content = batch.iter().next().expect("one page").content;
        Some(match content {
            PageContent::Zero => "zero",
            PageContent::Raw(_) => "whole",
            PageContent::Delta { .. } => "difference",
        })
    }

    #[test]
    fn a_page_is_sent_as_a_difference_once_and_whole_if_it_may_have_been_sent_before() {
        let machine = capture_test::machine(64, DirtySource::Best);
        let (mut cache, mut unchanged) = (DeltaCache::new(1 << 20), Vec::new());
        let write = |byte: u8| {
            memory::write_in_page(machine.memory(), PAGE, 100, &[byte; 8]).expect("a page of the guest");
        };
        write(1);
        cache.begin(1);
        let first = push(&machine, &mut Encoding::Changes(&mut cache, &mut unchanged));
        assert_eq!((first, &unchanged), (Some("whole"), &vec![]));
        cache.acked(1);
        cache.begin(2);
        let second = push(&machine, &mut Encoding::Changes(&mut cache, &mut unchanged));
        assert_eq!((second, &unchanged), (None, &vec![PAGE]), "it is as it was");
        cache.acked(2);
        write(2);
        cache.begin(3);
        let third = push(&machine, &mut Encoding::Changes(&mut cache, &mut unchanged));
        assert_eq!(third, Some("difference"));
        cache.acked(3);
        write(3);
        cache.begin(4);
        let again = push(&machine, &mut Encoding::Again(&mut cache));
        assert_eq!(again, Some("whole"));
    }

    #[test]
    fn a_page_that_the_guest_does_not_have_is_an_error() {
        let machine = capture_test::machine(64, DirtySource::Best);
        let beyond = (64 << 20) / memory::PAGE_BYTES as u64;
        let mut cache = DeltaCache::new(1 << 20);
        cache.begin(1);
        for mut encoding in [Encoding::Whole, Encoding::Again(&mut cache)] {
            let mut out = Vec::new();
            let pushed = push_frame(
                &machine,
                &[0, beyond, 1],
                &mut encoding,
                &mut out,
                &mut SyncTally::default(),
            );
            assert!(pushed.is_err());
        }
    }
}
