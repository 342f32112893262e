//! Deltas: a page as its difference from what the secondary has for certain.
//!
//! The base is the content of the last *acked* sync, of which the primary keeps a bounded part. What was sent
//! and not acked is never a base; it takes the place of the base, so a sync that fails takes what it touched
//! out. A delta carries a checksum of its base, so that a receiver whose page is another refuses it at the
//! check and not at a takeover. A page that is still its base needs no delta: it is not sent.
//!
//! Body of a delta: runs of new bytes, each `offset: u16`, `length: u16` and the bytes, in ascending order.

use rapidhash::RapidHashMap;

use super::PAGE_BYTES;
use crate::checksum::checksum;
use crate::faults::{Fault, fault};
use crate::record::Epoch;

type Bytes = [u8; PAGE_BYTES];

/// Most bytes of a delta: a longer one saves too little to be worth its making.
pub const DELTA_BYTES_MAX: usize = PAGE_BYTES * 3 / 4;

/// Bytes of a run before its content.
const RUN_BYTES: usize = 4;

/// Unit of the comparison, in bytes. A gap of one unit between two runs costs no more than another run would.
const WORD: usize = 8;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Word by word, up to the first that differs. Compilers make no vectors out of that: on a plain processor it
/// is as fast as with them, on an emulated one four times as fast.
fn is_same(one: &[u8; LINE], other: &[u8; LINE]) -> bool {
    let mut pairs = one.as_chunks::<WORD>().0.iter().zip(other.as_chunks::<WORD>().0);
    pairs.all(|(one, other)| one == other)
}

/// Checksum by which both sides know that they mean the same base.
pub fn base_checksum(page: &Bytes) -> u32 {
    checksum(page)
}

/// Appends the runs by which `new` differs from `old`. Returns false, with nothing appended, if they are
/// longer than [`DELTA_BYTES_MAX`].
pub fn encode_delta(old: &Bytes, new: &Bytes, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let differs = |word: usize| old[word * WORD..][..WORD] != new[word * WORD..][..WORD];
    let (old_lines, new_lines) = (old.as_chunks::<LINE>().0, new.as_chunks::<LINE>().0);
    let words = PAGE_BYTES / WORD;
    let mut word = 0;
    while word < words {
        // Most of a page is the same: look at whole cache lines.
        if word.is_multiple_of(LINE / WORD)
            && is_same(&old_lines[word * WORD / LINE], &new_lines[word * WORD / LINE])
        {
            word += LINE / WORD;
            continue;
        }
        if !differs(word) {
            word += 1;
            continue;
        }
        let first = word;
        word += 1;
        while word < words && (differs(word) || (word + 1 < words && differs(word + 1))) {
            word += 1;
        }
        let bytes = &new[first * WORD..word * WORD];
        if out.len() - start + RUN_BYTES + bytes.len() > DELTA_BYTES_MAX {
            out.truncate(start);
            return false;
        }
        out.extend_from_slice(&((first * WORD) as u16).to_le_bytes());
        out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        out.extend_from_slice(bytes);
    }
    true
}

/// The runs of a delta: where, and which bytes. `None` in place of one that is cut off or leaves the page.
fn runs(mut rest: &[u8]) -> impl Iterator<Item = Option<(usize, &[u8])>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let run = || {
            let (offset, after) = rest.split_first_chunk::<2>()?;
            let (length, after) = after.split_first_chunk::<2>()?;
            let (offset, length) = (u16::from_le_bytes(*offset), u16::from_le_bytes(*length));
            let (bytes, after) = after.split_at_checked(length.into())?;
            let fits = usize::from(offset) + bytes.len() <= PAGE_BYTES && !bytes.is_empty();
            fits.then_some((usize::from(offset), bytes, after))
        };
        let found = run();
        rest = found.map_or(&[], |(_, _, after)| after);
        Some(found.map(|(offset, bytes, _)| (offset, bytes)))
    })
}

/// Whether these are runs that lie within a page.
pub fn is_delta(bytes: &[u8]) -> bool {
    bytes.len() <= DELTA_BYTES_MAX && runs(bytes).all(|run| run.is_some())
}

/// Makes the new page out of its base, in place. Hands each run to `write`: where in the page,
/// and which bytes.
///
/// # Panics
/// If [`is_delta`] is false of the bytes.
pub fn apply_delta(bytes: &[u8], mut write: impl FnMut(usize, &[u8])) {
    for run in runs(bytes) {
        let (offset, bytes) = run.expect("the runs were checked");
        write(offset, bytes);
    }
}

/// One page of the cache.
struct Slot {
    gfn: u64,
    /// What was sent in the sync `epoch`, the last that it was sent in.
    bytes: Box<Bytes>,
    epoch: Epoch,
    /// Whether that sync was acked.
    acked: bool,
    /// Whether it may be acked yet.
    pending: bool,
}

/// Bytes of memory that a page of the cache takes, bookkeeping included.
const SLOT_BYTES: usize = PAGE_BYTES + 128;

/// How many slots are looked at for one to be replaced.
const LOOKS_MAX: usize = 16;

/// What the primary keeps of the pages that the secondary has: those that were sent lately.
pub struct DeltaCache {
    slots: Vec<Slot>,
    by_gfn: RapidHashMap<u64, usize>,
    slots_max: usize,
    /// Where a slot to be replaced is looked for next.
    hand: usize,
    /// The sync that is being encoded or waits for its ack, and its slots.
    sync: Option<Epoch>,
    touched: Vec<usize>,
}

impl DeltaCache {
    /// An empty cache that takes at most so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            slots: Vec::new(),
            by_gfn: RapidHashMap::default(),
            slots_max: bytes_max / SLOT_BYTES,
            hand: 0,
            sync: None,
            touched: Vec::new(),
        }
    }

    /// Forgets everything: the secondary is another, or its pages change without the cache being told.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.by_gfn.clear();
        (self.hand, self.sync) = (0, None);
        self.touched.clear();
    }

    /// The sync that pages are sent in from here on. The one before must have been acked or given back.
    pub fn begin(&mut self, epoch: Epoch) {
        assert!(self.sync.is_none(), "one sync is under way at a time");
        self.sync = Some(epoch);
    }

    /// A page that is about to be sent. Its new bytes are to take the place of those that are kept of it.
    /// Whether the secondary has these for certain is said, too: only then they are a base. `None`: the cache
    /// has no room for the page.
    pub fn send(&mut self, gfn: u64) -> Option<(&mut Bytes, bool)> {
        let epoch = self.sync.expect("a sync was begun");
        let index = match self.by_gfn.get(&gfn) {
            Some(&index) => index,
            None => self.new_slot(gfn, epoch)?,
        };
        let slot = &mut self.slots[index];
        let is_base = slot.acked;
        (slot.epoch, slot.acked) = (epoch, false);
        if !std::mem::replace(&mut slot.pending, true) {
            self.touched.push(index);
        }
        Some((&mut slot.bytes, is_base))
    }

    fn new_slot(&mut self, gfn: u64, epoch: Epoch) -> Option<usize> {
        let index = if self.slots.len() < self.slots_max {
            self.slots.push(Slot {
                gfn,
                bytes: Box::new([0; PAGE_BYTES]),
                epoch,
                acked: false,
                pending: false,
            });
            self.slots.len() - 1
        } else {
            self.replaceable()?
        };
        let slot = &mut self.slots[index];
        self.by_gfn.remove(&slot.gfn);
        (slot.gfn, slot.acked, slot.epoch) = (gfn, false, epoch);
        self.by_gfn.insert(gfn, index);
        Some(index)
    }

    /// The slot of some that was used longest ago, and not in this sync.
    fn replaceable(&mut self) -> Option<usize> {
        let count = self.slots.len();
        let looked = (0..LOOKS_MAX.min(count)).map(|look| (self.hand + look) % count);
        let oldest = looked
            .filter(|index| !self.slots[*index].pending)
            .min_by_key(|index| self.slots[*index].epoch);
        self.hand = (self.hand + LOOKS_MAX) % count.max(1);
        oldest
    }

    /// The secondary has the sync: its pages are bases now.
    pub fn acked(&mut self, epoch: Epoch) {
        if self.sync.take_if(|sync| *sync == epoch).is_none() {
            return;
        }
        for index in self.touched.drain(..) {
            let slot = &mut self.slots[index];
            (slot.acked, slot.pending) = (true, false);
        }
    }

    /// The sync will not be acked: nothing that it touched is known any more.
    pub fn failed(&mut self) {
        if let Some(epoch) = self.sync
            && fault(Fault::DeltaAgainstUnacked)
        {
            return self.acked(epoch);
        }
        self.sync = None;
        for index in self.touched.drain(..) {
            let slot = &mut self.slots[index];
            (slot.acked, slot.pending) = (false, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: u8) -> Bytes {
        [fill; PAGE_BYTES]
    }

    #[test]
    fn a_delta_makes_the_new_page_out_of_the_old() {
        let old = page(7);
        for changes in [&[][..], &[0], &[4095], &[8, 9, 24, 100, 101, 2000, 4088]] {
            let mut new = old;
            changes.iter().for_each(|at| new[*at] ^= 0xff);
            let mut bytes = Vec::new();
            assert!(encode_delta(&old, &new, &mut bytes) && is_delta(&bytes));
            assert!(
                bytes.len() <= changes.len() * (WORD + RUN_BYTES),
                "{changes:?}: {bytes:?}"
            );
            let mut made = old;
            apply_delta(&bytes, |at, run| made[at..at + run.len()].copy_from_slice(run));
            assert_eq!(made, new);
        }
        let mut bytes = vec![1];
        assert!(!encode_delta(&old, &page(8), &mut bytes));
        assert_eq!(bytes, [1], "nothing is left of it");
    }

    #[test]
    fn runs_outside_of_the_page_are_refused() {
        for bad in [
            &[0, 0, 1][..],
            &[0, 0, 0, 0],
            &[0xff, 0x0f, 2, 0, 1, 1],
            &[0, 0, 2, 0, 1],
        ] {
            assert!(!is_delta(bad), "{bad:?}");
        }
        assert!(is_delta(&[]) && is_delta(&[0xff, 0x0f, 1, 0, 9]));
    }

    fn base(cache: &mut DeltaCache, gfn: u64, fill: u8) -> Option<u8> {
        let (kept, is_base) = cache.send(gfn)?;
        let base = is_base.then_some(kept[0]);
        kept.fill(fill);
        base
    }

    #[test]
    fn only_what_was_acked_is_a_base() {
        let mut cache = DeltaCache::new(4 * SLOT_BYTES);
        cache.begin(1);
        assert_eq!(base(&mut cache, 5, 10), None);
        cache.acked(1);
        cache.begin(2);
        assert_eq!(base(&mut cache, 5, 20), Some(10));
        cache.failed();
        cache.begin(3);
        assert_eq!(base(&mut cache, 5, 30), None, "a failed sync invalidates");
        cache.acked(3);
        cache.begin(4);
        assert_eq!(base(&mut cache, 5, 40), Some(30));
        assert_eq!(base(&mut cache, 5, 41), None, "sent twice in one sync");
        cache.acked(4);
        cache.begin(5);
        assert_eq!(base(&mut cache, 5, 50), Some(41));
        cache.clear();
        cache.begin(6);
        assert_eq!(base(&mut cache, 5, 60), None);
    }

    #[test]
    fn memory_is_bounded_and_what_was_used_longest_ago_goes_first() {
        let mut cache = DeltaCache::new(3 * SLOT_BYTES);
        for epoch in 1..=3 {
            cache.begin(epoch);
            cache.send(epoch);
            cache.acked(epoch);
        }
        cache.begin(4);
        assert!(cache.send(9).is_some());
        assert!(cache.send(2).is_some_and(|(_, is_base)| is_base));
        assert!(
            cache.send(1).is_some_and(|(_, is_base)| !is_base),
            "replaced by 9"
        );
        assert!(cache.send(8).is_none(), "all are in this sync");
        assert_eq!(cache.slots.len(), 3);
        cache.acked(4);
    }
}
