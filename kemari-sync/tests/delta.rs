//! After thousands of random syncs, some of which fail, the receiver's pages are the sender's,
//! whatever the encoding.

use std::collections::{BTreeMap, BTreeSet};

use kemari_sync::wire::{
    DeltaCache, FrameHeader, HEADER_BYTES, PAGE_BYTES, PAGES_PER_FRAME_MAX, PageBatchWriter, PageContent,
    Staging, StagingError, SyncTally, apply_delta, base_checksum,
};
use kemari_sync::{Fault, inject};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

type Memory = BTreeMap<u64, [u8; PAGE_BYTES]>;

/// Two regions, as with RAM below and above the hole.
fn blank() -> Memory {
    let gfns = (0..300).chain(0x10_0000..0x10_0000 + 300);
    gfns.map(|gfn| (gfn, [0; PAGE_BYTES])).collect()
}

struct Sender {
    memory: Memory,
    dirty: BTreeSet<u64>,
    cache: DeltaCache,
    raw_pages: usize,
    delta_pages: usize,
}

impl Sender {
    /// The guest's, or the VMM's: a few bytes, a whole page, or zeros.
    fn write(&mut self, rng: &mut ChaCha8Rng) {
        let gfns: Vec<u64> = self.memory.keys().copied().collect();
        // Some pages are hot.
        let hot = if rng.random_bool(0.7) { 40 } else { gfns.len() };
        let gfn = gfns[rng.random_range(0..hot)];
        let page = self.memory.get_mut(&gfn).expect("one of its pages");
        match rng.random_range(0..10) {
            0 => page.fill(0),
            1 => page.iter_mut().for_each(|byte| *byte = rng.random()),
            _ => {
                for _ in 0..rng.random_range(1..12) {
                    page[rng.random_range(0..PAGE_BYTES)] = rng.random();
                }
            }
        }
        self.dirty.insert(gfn);
    }

    /// The frames of a sync, and its tally.
    fn capture(&mut self, epoch: u64, deltas: bool) -> (Vec<u8>, SyncTally, Vec<u64>) {
        let pages: Vec<u64> = std::mem::take(&mut self.dirty).into_iter().collect();
        let (mut frames, mut tally) = (Vec::new(), SyncTally::default());
        match deltas {
            true => self.cache.begin(epoch),
            false => self.cache.clear(),
        }
        for chunk in pages.chunks(PAGES_PER_FRAME_MAX.min(50)) {
            let mut batch = PageBatchWriter::new(false, &mut frames);
            for &gfn in chunk {
                let content = self.memory[&gfn];
                let kept = match deltas {
                    true => self.cache.send(gfn),
                    false => None,
                };
                match kept {
                    Some((base, true)) => {
                        self.delta_pages += usize::from(batch.push_delta(gfn, base, &content));
                        assert_eq!(*base, content, "what is kept is what was sent");
                    }
                    Some((kept, false)) => {
                        *kept = content;
                        batch.push(gfn, &content);
                    }
                    None => {
                        self.raw_pages += 1;
                        batch.push_with(gfn, |out| out.extend_from_slice(&content));
                    }
                }
            }
            if let Some((header, pages)) = batch.finish() {
                tally.add_pages(&header, pages);
            }
        }
        (frames, tally, pages)
    }
}

fn stage(staging: &mut Staging, epoch: u64, mut frames: &[u8], memory: &Memory) -> Result<(), StagingError> {
    staging.begin(epoch);
    while let Some((header, rest)) = frames.split_first_chunk::<HEADER_BYTES>() {
        let header = FrameHeader::parse(header)?;
        let (body, rest) = rest.split_at(header.length);
        staging.accept(
            &header,
            body,
            |gfn| memory.contains_key(&gfn),
            |gfn| base_checksum(&memory[&gfn]),
        )?;
        frames = rest;
    }
    Ok(())
}

fn commit(staging: &mut Staging, memory: &mut Memory) {
    for page in staging.pages() {
        let target = memory.get_mut(&page.gfn).expect("it was checked");
        match page.content {
            PageContent::Zero => target.fill(0),
            PageContent::Raw(bytes) => *target = *bytes,
            PageContent::Delta { runs, .. } => apply_delta(runs, |offset, bytes| {
                target[offset..offset + bytes.len()].copy_from_slice(bytes);
            }),
        }
    }
    staging.clear();
}

/// What went wrong first.
#[derive(Debug)]
enum Wrong {
    /// The receiver refused a sync.
    Refused(StagingError),
    /// A page of the receiver is not what the sender has.
    Differs,
}

impl From<StagingError> for Wrong {
    fn from(error: StagingError) -> Self {
        Self::Refused(error)
    }
}

/// Runs syncs.
fn run(seed: u64, syncs: u64) -> Result<Sender, Wrong> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut sender, mut receiver) = (
        Sender {
            memory: blank(),
            dirty: BTreeSet::new(),
            // Smaller than the memory: pages are replaced.
            cache: DeltaCache::new(150 * (PAGE_BYTES + 128)),
            raw_pages: 0,
            delta_pages: 0,
        },
        blank(),
    );
    let mut staging = Staging::new(4 << 20);
    let mut deltas = true;
    for epoch in 1..=syncs {
        for _ in 0..rng.random_range(0..60) {
            sender.write(&mut rng);
        }
        if rng.random_bool(0.02) {
            deltas = !deltas;
        }
        let (frames, tally, pages) = sender.capture(epoch, deltas);
        // The guest runs on.
        for _ in 0..rng.random_range(0..5) {
            sender.write(&mut rng);
        }
        match rng.random_range(0..20) {
            // Lost on the way, wholly or in part, or refused by a check: the receiver has nothing of it.
            0 | 1 => {
                let cut = rng.random_range(0..=1) * frames.len();
                stage(&mut staging, epoch, &frames[..cut], &receiver)?;
                staging.clear();
                sender.dirty.extend(pages);
                sender.cache.failed();
                continue;
            }
            // Its ack may be lost, too: then the handshake of the next session tells.
            _ => {
                stage(&mut staging, epoch, &frames, &receiver)?;
                staging.check(&tally.commit(epoch, false))?;
                commit(&mut staging, &mut receiver);
                sender.cache.acked(epoch);
            }
        }
        for (gfn, page) in &receiver {
            if !sender.dirty.contains(gfn) && page != &sender.memory[gfn] {
                return Err(Wrong::Differs);
            }
        }
    }
    Ok(sender)
}

#[test]
fn the_receivers_pages_are_the_senders() {
    for seed in 0..6 {
        let sender = run(seed, 600).expect("nothing is refused");
        assert!(
            sender.delta_pages > 1_000 && sender.raw_pages > 100,
            "seed {seed}"
        );
    }
}

#[test]
fn a_delta_of_what_was_not_acked_is_refused() {
    inject(Some(Fault::DeltaAgainstUnacked));
    let wrong: Vec<Wrong> = (0..6).filter_map(|seed| run(seed, 600).err()).collect();
    inject(None);
    // A page that is taken for what the secondary has is not sent at all.
    let is_refused = |wrong: &&Wrong| matches!(wrong, Wrong::Refused(StagingError::Base { .. }));
    let refused = wrong.iter().filter(is_refused).count();
    assert!(wrong.len() == 6 && refused > 0, "{wrong:?}");
}

#[test]
fn a_delta_is_the_only_word_on_its_page() {
    let (base, mut changed) = ([1; PAGE_BYTES], [1; PAGE_BYTES]);
    changed[9] = 2;
    for order in [[3, 3], [4, 3]] {
        let mut frames = Vec::new();
        let mut batch = PageBatchWriter::new(false, &mut frames);
        batch.push(order[0], &changed);
        batch.push_delta(order[1], &mut { base }, &changed);
        batch.finish();
        let memory: Memory = [(3, base), (4, base)].into();
        let mut staging = Staging::new(1 << 20);
        assert!(matches!(
            stage(&mut staging, 7, &frames, &memory),
            Err(StagingError::Base { epoch: 7, gfn: 3 })
        ));
    }
}
