//! On the primary: what changes on a replicated disk is marked durably before it is written, remembered while the disk is
//! being copied, and unmarked when both images have it durably.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kemari_sync::wire::CHUNK_BYTES;
use kemari_vmm::watch::{DiskWatch, Tell};

use super::image::Image;
use super::record::Map;

/// An extent keeps its mark for so long after it was last written: whoever writes it again pays for no new one.
pub const MARK_AGE_MIN: Duration = Duration::from_secs(10);

/// Watches the disk of an image.
pub struct Tracker {
    image: Arc<Image>,
    /// Whether a guest's flush waits for the other host's disk, too, while there is one.
    both: bool,
    state: Mutex<Tracked>,
}

struct Tracked {
    /// Extents that are durably marked: they may be written.
    marked: Map,
    /// Chunks that have changed since they were last read for the copy; none while there is no copy.
    changed: Option<BTreeSet<u64>>,
    /// Extents that were written, or may have been, since the copy began, or since its last block was read.
    touched: Map,
    /// Whether all extents that are not touched are durable here: marks go only then.
    is_rest_durable: bool,
    /// Changes under way, by the extents that they touch.
    in_flight: BTreeMap<u64, u32>,
    /// The last change of each extent since this side rules, and when it ended.
    last: BTreeMap<u64, (u64, Instant)>,
    /// Extents of changes that failed, and the first of those: what they hold here, nobody knows. Only a copy ends that.
    doubtful: BTreeMap<u64, u64>,
    /// Flushes under way, and up to which request everything had ended when they began.
    flushes: BTreeMap<u64, Option<u64>>,
    /// Up to this request everything is durable here; on the other host.
    durable: Option<u64>,
    peer_durable: Option<u64>,
    /// Whether the other host follows.
    is_paired: bool,
    /// Flushes of the guest that wait for the other host.
    tells: BTreeMap<u64, Tell>,
}

impl Tracked {
    fn begin(&mut self, range: &Range<u64>) {
        for extent in Map::touched(range) {
            self.touched.set(extent);
            *self.in_flight.entry(extent).or_default() += 1;
        }
    }

    fn end(&mut self, id: u64, range: &Range<u64>, ok: bool) {
        for extent in Map::touched(range) {
            if let Some(count) = self.in_flight.get_mut(&extent) {
                *count -= 1;
                if *count == 0 {
                    self.in_flight.remove(&extent);
                }
            }
            let last = self.last.entry(extent).or_insert((id, Instant::now()));
            *last = (id.max(last.0), Instant::now());
            if !ok {
                self.doubtful.entry(extent).or_insert(id);
            }
        }
    }

    /// The first change that failed on an extent which is not durably marked, since that failed too.
    fn first_unmarked_doubt(&self) -> Option<u64> {
        let unmarked = self
            .doubtful
            .iter()
            .filter(|(extent, _)| !self.marked.has(**extent));
        unmarked.map(|(_, id)| *id).min()
    }

    /// Takes the flushes that need not wait any more.
    fn take_tells(&mut self) -> Vec<Tell> {
        let waiting = match (self.is_paired, self.peer_durable) {
            (false, _) => BTreeMap::new(),
            (true, None) => return Vec::new(),
            (true, Some(durable)) => self.tells.split_off(&(durable + 1)),
        };
        std::mem::replace(&mut self.tells, waiting)
            .into_values()
            .collect()
    }
}

impl Tracker {
    /// Watches, with what is marked already. `both`: a guest's flush waits for the other host's disk, too.
    pub fn new(image: Arc<Image>, both: bool) -> Arc<Self> {
        let (marked, image_bytes) = (image.map(), image.bytes());
        Arc::new(Self {
            image,
            both,
            state: Mutex::new(Tracked {
                marked,
                changed: None,
                touched: Map::new(image_bytes),
                is_rest_durable: false,
                in_flight: BTreeMap::new(),
                last: BTreeMap::new(),
                doubtful: BTreeMap::new(),
                flushes: BTreeMap::new(),
                durable: None,
                peer_durable: None,
                is_paired: false,
                tells: BTreeMap::new(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Tracked> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// A copy begins: what changes from here on is remembered.
    pub fn begin_copy(&self) {
        let mut state = self.lock();
        state.marked = self.image.map();
        state.changed = Some(BTreeSet::new());
        state.touched = Map::new(self.image.bytes());
        // What was written before may lie in the page cache still.
        state.is_rest_durable = false;
        let in_flight: Vec<u64> = state.in_flight.keys().copied().collect();
        in_flight.iter().for_each(|extent| {
            state.touched.set(*extent);
        });
    }

    /// The image was flushed since the copy began.
    pub fn note_flushed(&self) {
        self.lock().is_rest_durable = true;
    }

    /// The copy is over, done or given up.
    pub fn end_copy(&self) {
        self.lock().changed = None;
    }

    /// Up to `max` chunks that have changed; they are to be read after this.
    pub fn take_changed(&self, max: usize) -> Vec<u64> {
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

    /// The last block of the copy was read, nothing is under way, and all that was written is durable here: what is
    /// touched from here on is not in it.
    pub fn note_copied(&self) {
        let mut state = self.lock();
        state.touched = Map::new(self.image.bytes());
        state.is_rest_durable = true;
    }

    /// These extents were copied, and are durable on the other image: their marks go if they are durable here, too, and
    /// were not written meanwhile.
    pub fn clear_copied(&self, extents: &[u64]) {
        let mut state = self.lock();
        if !state.is_rest_durable {
            return;
        }
        let untouched = extents
            .iter()
            .copied()
            .filter(|extent| !state.touched.has(*extent))
            .collect();
        self.clear(&mut state, untouched);
    }

    /// Under the lock: nothing may be written meanwhile that counts on a mark. While marks are being made durable, which
    /// may take a disk long, these stay until the next time: the side's loop must not wait for that.
    fn clear(&self, state: &mut Tracked, extents: Vec<u64>) {
        let Some(result) = self.image.try_clear(&extents) else {
            return;
        };
        if let Err(error) = result {
            tracing::warn!("marks of the disk {} stay: {error:#}", self.image.disk());
        }
        for extent in &extents {
            state.marked.clear(*extent);
            state.last.remove(extent);
        }
    }

    /// The other host follows from here on: it has durably what was copied, and outputs are applied there, too.
    pub fn begin_pair(&self) {
        let mut state = self.lock();
        if state.is_rest_durable {
            let copied = state
                .marked
                .iter()
                .filter(|extent| !state.touched.has(*extent))
                .collect();
            self.clear(&mut state, copied);
        }
        state.doubtful.clear();
        // What the other host has flushed since the first sync may be what a flush here waits for.
        (state.is_paired, state.durable) = (true, None);
    }

    /// No other host follows any more, or the guest will not go on here: nothing waits for the other disk.
    pub fn end_pair(&self) {
        let mut state = self.lock();
        (state.is_paired, state.peer_durable) = (false, None);
        let tells = state.take_tells();
        drop(state);
        tells.into_iter().for_each(|tell| tell());
    }

    /// All outputs up to this one are durable on the secondary's image.
    pub fn note_peer_flushed(&self, request: u64) {
        let mut state = self.lock();
        state.peer_durable = state.peer_durable.max(Some(request));
        let tells = state.take_tells();
        drop(state);
        tells.into_iter().for_each(|tell| tell());
    }

    /// Takes the marks of what is durable on both images and was not written for `age`. Returns up to which request
    /// everything is durable on both, if it is known.
    pub fn settle(&self, age: Duration) -> Option<u64> {
        let mut state = self.lock();
        let settled = state
            .durable
            .min(state.peer_durable)
            .filter(|_| state.is_paired)?;
        // The secondary has carried out what could not be marked here: it keeps its marks from there on.
        let settled = match state.first_unmarked_doubt() {
            Some(doubtful) => settled.min(doubtful.checked_sub(1)?),
            None => settled,
        };
        let now = Instant::now();
        let extents = state
            .last
            .iter()
            .filter(|(extent, (id, at))| {
                *id <= settled
                    && now.duration_since(*at) >= age
                    && !state.in_flight.contains_key(extent)
                    && !state.doubtful.contains_key(extent)
            })
            .map(|(extent, _)| *extent)
            .collect();
        self.clear(&mut state, extents);
        Some(settled)
    }

    /// Whether a guest's flush waits for the other host's disk.
    pub fn waits_for_peer(&self) -> bool {
        !self.lock().tells.is_empty()
    }

    /// How many flushes of the guest wait for the other host's disk; none if a disk would have to be waited for to know.
    pub fn waiting_flushes(&self) -> u64 {
        self.state.try_lock().map_or(0, |state| state.tells.len() as u64)
    }

    /// How many chunks have changed.
    pub fn changed_chunks(&self) -> usize {
        self.lock().changed.as_ref().map_or(0, BTreeSet::len)
    }
}

impl DiskWatch for Tracker {
    fn grown(&self, bytes: u64) -> io::Result<()> {
        if bytes == self.image.bytes() {
            return Ok(());
        }
        let state = self.lock();
        if state.is_paired || state.changed.is_some() {
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
        state.touched = Map::new(bytes);
        Ok(())
    }

    fn may_change(&self, range: &Range<u64>) -> bool {
        let mut state = self.lock();
        let may = Map::touched(range).all(|extent| state.marked.has(extent));
        if may {
            state.begin(range);
        }
        may
    }

    fn prepare(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        // First, so that no mark is cleared from here on.
        let extents: Vec<u64> = ranges.iter().flat_map(Map::touched).collect();
        let mut state = self.lock();
        ranges.iter().for_each(|range| state.begin(range));
        drop(state);
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
        let mut state = self.lock();
        state.end(id, range, ok);
        // Also what failed: nobody knows what it has left.
        if let Some(changed) = &mut state.changed {
            changed.extend(range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES));
        }
    }

    fn flush_is_output(&self) -> bool {
        self.both
    }

    fn flush_begins(&self, id: u64, ended: Option<u64>) {
        self.lock().flushes.insert(id, ended);
    }

    fn flushed(&self, id: u64, tell: Tell) {
        let mut state = self.lock();
        let ended = state.flushes.remove(&id).flatten();
        state.durable = state.durable.max(ended);
        if self.both && state.is_paired {
            state.tells.insert(id, tell);
            let tells = state.take_tells();
            drop(state);
            tells.into_iter().for_each(|tell| tell());
        } else {
            drop(state);
            tell();
        }
    }
}

#[cfg(test)]
#[path = "tracker_test.rs"]
mod tests;
