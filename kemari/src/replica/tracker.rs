//! On the primary: what changes on a replicated disk is marked durably before it is written, remembered while
//! the disk is being copied, and unmarked when both images have it durably.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kemari_sync::Marks;
use kemari_sync::wire::CHUNK_BYTES;
use kemari_vmm::disk::{DiskWatch, Tell};

use super::image::Image;
use super::record::Map;

/// An extent keeps its mark for so long after it was last written:
/// whoever writes it again pays for no new one.
pub(crate) const MARK_AGE_MIN: Duration = Duration::from_secs(10);

/// Watches the disk of an image.
pub(crate) struct Tracker {
    image: Arc<Image>,
    /// Whether a guest's flush waits for the other host's disk, too, while there is one.
    both: bool,
    /// Times are counted from here.
    begun: Instant,
    state: Mutex<Tracked>,
}

struct Tracked {
    /// Extents that are durably marked: they may be written.
    marked: Map,
    /// Chunks that have changed since they were last read for the copy; none while there is no copy.
    changed: Option<BTreeSet<u64>>,
    /// Counts beginnings and ends of copies: a thread of one that is over may still be at work,
    /// and says nothing any more.
    copies: u64,
    marks: Marks,
    /// Flushes of the guest that wait for the other host.
    tells: BTreeMap<u64, Tell>,
}

impl Tracked {
    /// Takes what tells the guest of these flushes.
    fn take_tells(&mut self, flushes: &[u64]) -> Vec<Tell> {
        flushes.iter().filter_map(|id| self.tells.remove(id)).collect()
    }
}

impl Tracker {
    /// Watches, with what is marked already. `both`: a guest's flush waits for the other host's disk, too.
    pub(crate) fn new(image: Arc<Image>, both: bool) -> Arc<Self> {
        Arc::new(Self {
            both,
            begun: Instant::now(),
            state: Mutex::new(Tracked {
                marked: image.map(),
                changed: None,
                copies: 0,
                marks: Marks::default(),
                tells: BTreeMap::new(),
            }),
            image,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Tracked> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image.
    pub(crate) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// A copy begins: what changes from here on is remembered. Returns its number.
    pub(crate) fn begin_copy(&self) -> u64 {
        let mut state = self.lock();
        state.marked = self.image.map();
        state.changed = Some(BTreeSet::new());
        state.copies += 1;
        state.marks.begin_copy();
        state.copies
    }

    /// The image was flushed since this copy began.
    pub(crate) fn note_flushed(&self, copy: u64) {
        let mut state = self.lock();
        if copy == state.copies {
            state.marks.note_flushed();
        }
    }

    /// The copy is over, done or given up.
    pub(crate) fn end_copy(&self) {
        let mut state = self.lock();
        state.changed = None;
        state.copies += 1;
    }

    /// Up to `max` chunks that have changed; they are to be read after this.
    pub(crate) fn take_changed(&self, max: usize) -> Vec<u64> {
        let mut state = self.lock();
        let Some(changed) = &mut state.changed else {
            return Vec::new();
        };
        let taken: Vec<u64> = changed.iter().copied().take(max).collect();
        taken.iter().for_each(|chunk| {
            changed.remove(chunk);
        });
        taken
    }

    /// The last block of the copy was read, and all that was written is durable here: what is touched from
    /// here on is not in it.
    pub(crate) fn note_copied(&self) {
        self.lock().marks.note_copied();
    }

    /// These extents were copied in this copy, and are durable on the other image: their marks go if they are
    /// durable here, too, and were not written meanwhile.
    pub(crate) fn clear_copied(&self, copy: u64, extents: &[u64]) {
        let mut state = self.lock();
        if copy != state.copies {
            return;
        }
        let copied = state.marks.copied(extents);
        self.clear(&mut state, &copied);
    }

    /// Under the lock: nothing may be written meanwhile that counts on a mark. While marks are being made
    /// durable, which may take a disk long, these stay until the next time: the side's loop must not wait for
    /// that.
    fn clear(&self, state: &mut Tracked, extents: &[u64]) {
        let Some(result) = self.image.try_clear(extents) else {
            return;
        };
        if let Err(error) = result {
            tracing::warn!("marks of the disk {} stay: {error:#}", self.image.disk());
        }
        extents.iter().for_each(|extent| state.marked.clear(*extent));
        state.marks.forget(extents);
    }

    /// The other host follows from here on: it has durably what was copied, and outputs are applied there,
    /// too.
    pub(crate) fn begin_pair(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let copied = state.marks.begin_pair(state.marked.iter());
        self.clear(state, &copied);
    }

    /// No other host follows any more, or the guest will not go on here: nothing waits for the other disk.
    pub(crate) fn end_pair(&self) {
        self.tell(Marks::end_pair);
    }

    /// All outputs up to this one are durable on the secondary's image.
    pub(crate) fn note_peer_flushed(&self, request: u64) {
        self.tell(|marks| marks.peer_flushed(request));
    }

    /// Something happens that may end what flushes of the guest wait for.
    fn tell(&self, event: impl FnOnce(&mut Marks) -> Vec<u64>) {
        let mut state = self.lock();
        let told = event(&mut state.marks);
        let tells = state.take_tells(&told);
        drop(state);
        tells.into_iter().for_each(|tell| tell());
    }

    /// Takes the marks of what is durable on both images and was not written for `age`. Returns up to which
    /// request everything is durable on both, if it is known.
    pub(crate) fn settle(&self, age: Duration) -> Option<u64> {
        let (now_ms, age_ms) = (self.now_ms(), age.as_millis() as u64);
        let mut state = self.lock();
        let settled = state
            .marks
            .settle(now_ms, age_ms, |extent| state.marked.has(extent))?;
        self.clear(&mut state, &settled.extents);
        Some(settled.request)
    }

    /// Whether a guest's flush waits for the other host's disk.
    pub(crate) fn waits_for_peer(&self) -> bool {
        self.lock().marks.waiting() > 0
    }

    /// How many flushes of the guest wait for the other host's disk;
    /// none if a disk would have to be waited for to know.
    pub(crate) fn waiting_flushes(&self) -> u64 {
        self.state
            .try_lock()
            .map_or(0, |state| state.marks.waiting() as u64)
    }

    /// How many chunks have changed.
    pub(crate) fn changed_chunks(&self) -> usize {
        self.lock().changed.as_ref().map_or(0, BTreeSet::len)
    }
}

impl DiskWatch for Tracker {
    fn grown(&self, bytes: u64) -> io::Result<()> {
        if bytes == self.image.bytes() {
            return Ok(());
        }
        let state = self.lock();
        if state.marks.is_paired() || state.changed.is_some() {
            return Err(io::Error::other(
                "the other host's image follows, or is being copied to",
            ));
        }
        drop(state);
        self.image
            .grow(bytes)
            .map_err(|error| io::Error::other(format!("{error:#}")))?;
        let mut state = self.lock();
        // What was marked meanwhile is in the record's map.
        state.marked = self.image.map();
        Ok(())
    }

    fn may_change(&self, range: &Range<u64>) -> bool {
        let mut state = self.lock();
        let may = Marks::may_change(Map::touched(range), |extent| state.marked.has(extent));
        if may {
            state.marks.begin(Map::touched(range));
        }
        may
    }

    fn prepare(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        // First, so that no mark is cleared from here on.
        let extents: Vec<u64> = ranges.iter().flat_map(Map::touched).collect();
        let under_way = ranges.iter().flat_map(Map::touched);
        self.lock().marks.begin(under_way);
        self.image.mark(extents.iter().copied()).map_err(|error| {
            tracing::error!("the disk {} cannot be written: {error:#}", self.image.disk());
            io::Error::other(format!("{error:#}"))
        })?;
        let mut state = self.lock();
        extents.iter().for_each(|extent| {
            state.marked.set(*extent);
        });
        Ok(())
    }

    fn changed(&self, id: u64, range: &Range<u64>, ok: bool) {
        let now_ms = self.now_ms();
        let mut state = self.lock();
        state.marks.end(id, Map::touched(range), ok, now_ms);
        // Also what failed: nobody knows what it has left.
        if let Some(changed) = &mut state.changed {
            changed.extend(range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES));
        }
    }

    fn flush_is_output(&self) -> bool {
        self.both
    }

    fn flush_begins(&self, id: u64, ended: Option<u64>) {
        self.lock().marks.flush_begins(id, ended);
    }

    fn flushed(&self, id: u64, tell: Tell) {
        self.lock().tells.insert(id, tell);
        self.tell(|marks| marks.flushed(id, self.both));
    }
}

#[cfg(test)]
#[path = "tracker_test.rs"]
mod tests;
