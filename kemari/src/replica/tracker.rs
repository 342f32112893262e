//! On the primary: what changes on a replicated disk is marked durably before it is written, and remembered while the
//! disk is being copied.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kemari_sync::wire::CHUNK_BYTES;
use kemari_vmm::watch::{DiskWatch, Tell};

use super::image::Image;
use super::record::Map;

/// Watches the disk of an image.
pub struct Tracker {
    image: Arc<Image>,
    state: Mutex<Tracked>,
}

struct Tracked {
    /// Extents that are durably marked: they may be written.
    marked: Map,
    /// Chunks that have changed since they were last read for the copy; none while there is no copy.
    changed: Option<BTreeSet<u64>>,
    /// Extents that were written, or may have been, since the copy began.
    touched: Map,
    /// Changes under way, by the extents that they touch.
    in_flight: BTreeMap<u64, u32>,
}

impl Tracked {
    fn begin(&mut self, range: &Range<u64>) {
        for extent in Map::touched(range) {
            self.touched.set(extent);
            *self.in_flight.entry(extent).or_default() += 1;
        }
    }

    fn end(&mut self, range: &Range<u64>) {
        for extent in Map::touched(range) {
            if let Some(count) = self.in_flight.get_mut(&extent) {
                *count -= 1;
                if *count == 0 {
                    self.in_flight.remove(&extent);
                }
            }
        }
    }
}

impl Tracker {
    /// Watches, with what is marked already.
    pub fn new(image: Arc<Image>) -> Arc<Self> {
        let (marked, image_bytes) = (image.map(), image.bytes());
        Arc::new(Self {
            image,
            state: Mutex::new(Tracked {
                touched: Map::new(image_bytes),
                marked,
                changed: None,
                in_flight: BTreeMap::new(),
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
        let in_flight: Vec<u64> = state.in_flight.keys().copied().collect();
        in_flight.iter().for_each(|extent| {
            state.touched.set(*extent);
        });
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

    /// These extents were copied, and are durable on both images: their marks go, unless they were written meanwhile.
    pub fn clear_copied(&self, extents: &[u64]) {
        let mut state = self.lock();
        let untouched: Vec<u64> = extents
            .iter()
            .copied()
            .filter(|extent| !state.touched.has(*extent))
            .collect();
        untouched.iter().for_each(|extent| state.marked.clear(*extent));
        // Under the lock: nothing may be written meanwhile that counts on a mark.
        if let Err(error) = self.image.clear(&untouched) {
            tracing::warn!("marks of the disk {} stay: {error:#}", self.image.disk());
        }
    }

    /// All outputs up to this one are durable on the secondary's image.
    pub fn note_peer_flushed(&self, _request: u64) {}

    /// How many chunks have changed.
    pub fn changed(&self) -> usize {
        self.lock().changed.as_ref().map_or(0, BTreeSet::len)
    }
}

impl DiskWatch for Tracker {
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

    fn changed(&self, _: u64, range: &Range<u64>, _: bool) {
        let mut state = self.lock();
        state.end(range);
        // Also what failed: nobody knows what it has left.
        if let Some(changed) = &mut state.changed {
            changed.extend(range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES));
        }
    }

    fn flush_begins(&self, _: u64) {}

    fn flushed(&self, _: u64, tell: Tell) {
        tell();
    }
}
