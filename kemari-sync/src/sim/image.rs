//! An image of a replicated disk in the simulation: a cache over a disk, and a record. A flush that fails
//! loses what it was for: the cache shows it still, and no later flush writes it.

use rand::Rng;

use crate::faults::{Fault, fault};
use crate::replica::{DiskOffer, ImageHistory, ImageWord, Source};

use super::invariants::replica::Blocks;
use super::vm::PAGES;
use super::world::World;

/// An image, and its record, which is durable as soon as it is written.
#[derive(Clone, Default)]
pub(super) struct Image {
    /// What its kernel shows.
    pub(super) blocks: Blocks,
    /// What a power cut certainly leaves.
    pub(super) durable: Blocks,
    /// By block: counts writes, as of what the kernel shows, and as of what is durable.
    writes: [u64; PAGES],
    durable_writes: [u64; PAGES],
    /// Blocks that a failed flush was for and that were not written since: no flush writes them.
    lost: u32,
    /// Counts flushes that have failed.
    failures: u64,
    /// One has failed since all was durable, and whoever has the image open knows it.
    has_failed: bool,
    /// Blocks that may differ from the other image.
    pub(super) marks: u32,
    /// Its size in blocks, and its size as the record has it.
    pub(super) size: usize,
    pub(super) recorded: usize,
    pub(super) history: Option<ImageHistory>,
}

/// A flush under way.
#[derive(Clone, Debug)]
pub(super) struct Flush {
    /// What it is for: all that lay in the cache when it began.
    pub(super) blocks: Box<Blocks>,
    writes: [u64; PAGES],
    /// How many had failed when it began.
    failures: u64,
}

impl Image {
    /// An image of so many blocks, without a record.
    pub(super) fn of(size: usize) -> Self {
        Self {
            size,
            recorded: size,
            ..Self::default()
        }
    }

    pub(super) fn offer(&self) -> DiskOffer {
        DiskOffer {
            disk: "blk0".to_owned(),
            bytes: self.recorded as u64,
            word: self.word().cloned(),
            overwrite: false,
        }
    }

    pub(super) fn source(&self) -> Source {
        let word = self.word();
        Source {
            disk: "blk0".to_owned(),
            bytes: self.recorded as u64,
            lineage: word.map_or(0, |word| word.lineage),
            base: word.map_or(0, |word| word.base),
            paired_term: self.history.as_ref().map_or(0, |history| history.paired_term),
        }
    }

    pub(super) fn word(&self) -> Option<&ImageWord> {
        self.history.as_ref().map(|history| &history.word)
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut ImageHistory)) {
        self.history.as_mut().map(change);
    }

    pub(super) fn marked(&self) -> impl Iterator<Item = u64> + use<> {
        let marks = self.marks;
        (0..PAGES as u64).filter(move |block| marks & 1 << block != 0)
    }

    pub(super) fn unmark(&mut self, blocks: &[u64]) {
        for block in blocks {
            self.marks &= !(1 << block);
        }
    }

    pub(super) fn write(&mut self, block: usize, value: (u64, u64)) {
        self.blocks[block] = value;
        self.writes[block] += 1;
        self.lost &= !(1 << block);
    }

    /// A guest begins with an empty file system, in which all is durable.
    pub(super) fn format(&mut self) {
        (self.blocks, self.durable, self.lost) = (Blocks::default(), Blocks::default(), 0);
        (self.durable_writes, self.has_failed) = (self.writes, false);
    }

    /// Whether it may lack what was written.
    pub(super) fn may_lack(&self) -> bool {
        self.has_failed
    }

    pub(super) fn begin_flush(&self) -> Flush {
        Flush {
            blocks: Box::new(self.blocks),
            writes: self.writes,
            failures: self.failures,
        }
    }

    /// What the flush was for is on the disk, but for what was lost before.
    fn harden(&mut self, flush: &Flush) {
        for block in 0..PAGES {
            let is_newer = flush.writes[block] > self.durable_writes[block];
            if is_newer && self.lost & 1 << block == 0 {
                self.durable[block] = flush.blocks[block];
                self.durable_writes[block] = flush.writes[block];
            }
        }
    }

    fn lose(&mut self, flush: &Flush) {
        for block in 0..PAGES {
            let is_covered = flush.writes[block] == self.writes[block];
            if is_covered && self.durable_writes[block] < self.writes[block] {
                self.lost |= 1 << block;
            }
        }
        self.failures += 1;
        self.has_failed = true;
    }

    /// Nothing but what is durable is left.
    fn forget_cached(&mut self) {
        (self.blocks, self.writes, self.lost) = (self.durable, self.durable_writes, 0);
        self.has_failed = false;
    }
}

impl World {
    /// Who keeps what was not flushed writes it again before the next flush, if one has failed.
    pub(super) fn rewrite_lost(&mut self, host: usize, forgets: Fault) {
        let image = &mut self.hosts[host].image;
        // Asked here alone, as in the next two: what a disk does after a flush that failed is `kemari-vmm`'s,
        // which does not know the mechanism (`disk/kept.rs`).
        if image.has_failed && !fault(forgets) {
            image.lost = 0;
        }
    }

    /// A flush ends. False: it failed, or another has failed meanwhile, so that it proves nothing.
    pub(super) fn end_flush(&mut self, host: usize, flush: &Flush, forgets: Fault) -> bool {
        if self.flush_fails(host) {
            self.hosts[host].image.lose(flush);
            return false;
        }
        let image = &mut self.hosts[host].image;
        if image.failures != flush.failures && !fault(forgets) {
            return false;
        }
        image.harden(flush);
        image.has_failed = false;
        true
    }

    /// Makes all of an image durable whose user keeps what was not flushed. False: it cannot be.
    pub(super) fn flush_source(&mut self, host: usize, forgets: Fault) -> bool {
        self.rewrite_lost(host, forgets);
        let flush = self.hosts[host].image.begin_flush();
        self.end_flush(host, &flush, forgets)
    }

    /// Makes all of an image durable whose user keeps nothing. False: it cannot be, or could not be before.
    pub(super) fn flush_target(&mut self, host: usize) -> bool {
        let forgets = Fault::ForgetFailedReplicaFlush;
        let image = &self.hosts[host].image;
        if image.has_failed && !fault(forgets) {
            return false;
        }
        let flush = image.begin_flush();
        self.end_flush(host, &flush, forgets)
    }

    /// A process opens its image: what it shows from here on is what is on the disk. False:
    /// it cannot be made durable.
    pub(super) fn open_image(&mut self, host: usize) -> bool {
        if !self.setup.replicated {
            return true;
        }
        self.hosts[host].image.has_failed = false;
        if !self.flush_target(host) {
            return false;
        }
        let image = &mut self.hosts[host].image;
        if !fault(Fault::TrustCache) {
            image.forget_cached();
        }
        true
    }

    /// What the power cut leaves: of what was not flushed, anything.
    pub(super) fn lose_unflushed(&mut self, host: usize) {
        if !self.setup.replicated {
            return;
        }
        for block in 0..PAGES {
            let survives = self.rng.random_bool(0.5);
            let image = &mut self.hosts[host].image;
            if survives && image.lost & 1 << block == 0 {
                image.durable[block] = image.blocks[block];
            }
        }
        self.hosts[host].image.forget_cached();
    }
}
