//! Marks of a replicated disk: which extents may differ between the two images, and when a mark goes.
//!
//! A mark is set, durably, before what it stands for is written, on either side. It goes when both images
//! have that durably, be it written or copied, and not before. Which marks there are is for the images'
//! records to know; here is what else the rule needs. The caller asks which marks may go, takes them from the
//! record, and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::faults::{Fault, fault};
use crate::invariants::are_asserted;

/// Number of an extent of an image: a mark stands for one.
pub type Extent = u64;
/// Number of a request of the guest. They rise.
pub type RequestId = u64;

/// Flushes that may be under way, counted with those that have failed: what more there are prove nothing.
const FLUSHES_MAX: usize = 1_024;

/// What the primary knows of the changes of one disk.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Changes under way, by the extents that they touch.
    in_flight: BTreeMap<Extent, u32>,
    /// The last change of each extent since this side rules, and when it ended, in milliseconds.
    last: BTreeMap<Extent, (RequestId, u64)>,
    /// Extents of changes that failed, and the first of those: what they hold here, nobody knows.
    /// Only a copy ends that.
    doubtful: BTreeMap<Extent, RequestId>,
    /// The copy that is being made, or that the next pair begins with.
    copy: Option<Copy>,
    /// Flushes under way, and up to which request everything had ended when they began.
    flushes: BTreeMap<RequestId, Option<RequestId>>,
    /// Up to this request everything is durable here; on the other host.
    durable: Option<RequestId>,
    peer_durable: Option<RequestId>,
    /// Whether the other host follows.
    is_paired: bool,
    /// Flushes of the guest that wait for the other host.
    waiting: BTreeSet<RequestId>,
}

#[derive(Clone, Debug, Default)]
struct Copy {
    /// Extents that were changed, or may have been, since it began, or since its last block was read.
    touched: BTreeSet<Extent>,
    /// Whether all extents that are not touched are durable here.
    is_rest_durable: bool,
}

/// What is durable on both images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Every request up to this one is.
    pub request: RequestId,
    /// Extents whose marks may go.
    pub extents: Vec<Extent>,
}

/// The extents, of so many bytes each, whose marks are set when an image grows, before it is said to have
/// grown: what is new may be anything on either host.
pub fn new_extents(old_bytes: u64, new_bytes: u64, extent_bytes: u64) -> Range<Extent> {
    let end = new_bytes.div_ceil(extent_bytes);
    match fault(Fault::GrowUnmarked) {
        true => end..end,
        false => old_bytes / extent_bytes..end,
    }
}

impl Marks {
    /// Whether these extents may be changed: each of them `is_marked`, durably.
    /// Else they are to be marked first.
    pub fn may_change(extents: impl IntoIterator<Item = Extent>, is_marked: impl Fn(Extent) -> bool) -> bool {
        fault(Fault::RecordAfterWrite) || extents.into_iter().all(is_marked)
    }

    /// A change of these extents is about to be made. From here on no mark of theirs goes.
    pub fn begin(&mut self, extents: impl IntoIterator<Item = Extent>) {
        for extent in extents {
            if let Some(copy) = &mut self.copy {
                copy.touched.insert(extent);
            }
            *self.in_flight.entry(extent).or_default() += 1;
        }
        self.assert_invariants();
    }

    /// A change that was begun has ended, well or not.
    pub fn end(
        &mut self,
        id: RequestId,
        extents: impl IntoIterator<Item = Extent>,
        is_done: bool,
        now_ms: u64,
    ) {
        for extent in extents {
            if let Some(count) = self.in_flight.get_mut(&extent) {
                *count -= 1;
                if *count == 0 {
                    self.in_flight.remove(&extent);
                }
            }
            let (last, at_ms) = self.last.entry(extent).or_insert((id, now_ms));
            (*last, *at_ms) = (id.max(*last), now_ms);
            if !is_done && !fault(Fault::UnmarkFailed) {
                self.doubtful.entry(extent).or_insert(id);
            }
        }
        self.assert_invariants();
    }

    fn copy_from_here(&self, is_rest_durable: bool) -> Option<Copy> {
        Some(Copy {
            touched: self.in_flight.keys().copied().collect(),
            is_rest_durable,
        })
    }

    /// A copy begins. What was written before may lie in a cache of the image still.
    pub fn begin_copy(&mut self) {
        self.copy = self.copy_from_here(false);
        self.assert_invariants();
    }

    /// The image was flushed since the copy began.
    pub fn note_flushed(&mut self) {
        if let Some(copy) = &mut self.copy {
            copy.is_rest_durable = true;
        }
    }

    /// The last block of the copy was read, and all that was written is durable here: what is under way, or
    /// is touched from here on, is not in it.
    pub fn note_copied(&mut self) {
        self.copy = self.copy_from_here(true);
        self.assert_invariants();
    }

    /// These extents were copied, and are durable on the other image: returned are those that are durable
    /// here, too, and were not touched meanwhile. Their marks may go.
    pub fn copied(&self, extents: &[Extent]) -> Vec<Extent> {
        let Some(copy) = &self.copy else {
            return Vec::new();
        };
        let may_go = copy.is_rest_durable || fault(Fault::UnmarkCopied);
        let untouched = extents.iter().filter(|extent| !copy.touched.contains(extent));
        untouched.copied().filter(|_| may_go).collect()
    }

    /// The other host follows from here on: it has durably what was copied, and outputs are applied there,
    /// too. Of what is `marked`, these marks may go.
    pub fn begin_pair(&mut self, marked: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
        // What the other host has flushed since the first sync may be what a flush here waits for.
        (self.is_paired, self.durable) = (true, None);
        let Some(copy) = self.copy.take().filter(|copy| copy.is_rest_durable) else {
            return Vec::new();
        };
        // What failed after its extent was read is in no copy.
        self.doubtful.retain(|extent, _| copy.touched.contains(extent));
        let marked = marked.into_iter();
        marked.filter(|extent| !copy.touched.contains(extent)).collect()
    }

    /// No other host follows any more, or the guest will not go on here.
    /// Returns the flushes that the guest may be told of.
    pub fn end_pair(&mut self) -> Vec<RequestId> {
        (self.is_paired, self.peer_durable) = (false, None);
        let told = self.take_told();
        self.assert_invariants();
        told
    }

    /// A flush is about to be issued. `ended`: the last request up to which all changes have ended.
    pub fn flush_begins(&mut self, id: RequestId, ended: Option<RequestId>) {
        self.flushes.insert(id, ended);
        if self.flushes.len() > FLUSHES_MAX {
            self.flushes.pop_first();
        }
        self.assert_invariants();
    }

    /// It has ended well. `waits`: the guest is told when the other host has done it, too. Returns the
    /// flushes that the guest may be told of.
    pub fn flushed(&mut self, id: RequestId, waits: bool) -> Vec<RequestId> {
        let ended = self.flushes.remove(&id).flatten();
        self.durable = self.durable.max(ended);
        if !waits || !self.is_paired || fault(Fault::FlushWithoutPeer) {
            return vec![id];
        }
        self.waiting.insert(id);
        let told = self.take_told();
        self.assert_invariants();
        told
    }

    /// All outputs up to this one are durable on the other image.
    /// Returns the flushes that the guest may be told of.
    pub fn peer_flushed(&mut self, request: RequestId) -> Vec<RequestId> {
        self.peer_durable = self.peer_durable.max(Some(request));
        let told = self.take_told();
        self.assert_invariants();
        told
    }

    fn take_told(&mut self) -> Vec<RequestId> {
        let (is_paired, durable) = (self.is_paired, self.peer_durable);
        let is_told = |id: RequestId| !is_paired || durable >= Some(id);
        self.waiting.extract_if(.., |id| is_told(*id)).collect()
    }

    /// What is so of it between any two calls.
    fn assert_invariants(&self) {
        if !are_asserted() {
            return;
        }
        let is_touched = |extent| {
            self.copy
                .as_ref()
                .is_none_or(|copy| copy.touched.contains(extent))
        };
        for (extent, count) in &self.in_flight {
            assert!(*count > 0, "what is under way has not ended");
            assert!(is_touched(extent), "what is under way is in no copy");
        }
        let doubtful = self.doubtful.iter();
        for (extent, first) in doubtful {
            let last = self.last.get(extent).map(|(last, _)| last);
            assert!(last.is_none_or(|last| last >= first), "what failed was a change");
        }
        assert!(
            self.flushes.len() <= FLUSHES_MAX,
            "what is known of flushes is bounded"
        );
        if let Some(first) = self.waiting.first() {
            assert!(self.is_paired, "nobody waits for a host that does not follow");
            assert!(self.peer_durable < Some(*first), "who need not wait is told");
        }
    }

    /// The last change of an extent whose mark is not gone.
    pub fn last_change(&self, extent: Extent) -> Option<RequestId> {
        self.last.get(&extent).map(|(id, _)| *id)
    }

    /// Whether the other host follows.
    pub fn is_paired(&self) -> bool {
        self.is_paired
    }

    /// How many flushes of the guest wait for the other host.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What is durable on both images, if it is known, and of that the extents that were not written for
    /// `age_ms`: whoever writes one again soon pays for no new mark. `is_marked`: whether an extent is
    /// durably marked.
    pub fn settle(&self, now_ms: u64, age_ms: u64, is_marked: impl Fn(Extent) -> bool) -> Option<Settled> {
        let both = match fault(Fault::UnmarkEarly) {
            true => self.durable,
            false => self.durable.min(self.peer_durable),
        };
        let settled = both.filter(|_| self.is_paired)?;
        // What failed since it could not be marked here, the other host has carried out:
        // it keeps its marks from there on.
        let unmarked = self.doubtful.iter().filter(|(extent, _)| !is_marked(**extent));
        let request = match unmarked.map(|(_, id)| *id).min() {
            Some(doubtful) => settled.min(doubtful.checked_sub(1)?),
            None => settled,
        };
        let is_settled = |extent: &Extent, id: RequestId, at_ms: u64| {
            id <= request
                && now_ms >= at_ms.saturating_add(age_ms)
                && !self.in_flight.contains_key(extent)
                && !self.doubtful.contains_key(extent)
        };
        let last = self.last.iter();
        let extents = last.filter(|(extent, (id, at_ms))| is_settled(extent, *id, *at_ms));
        Some(Settled {
            request,
            extents: extents.map(|(extent, _)| *extent).collect(),
        })
    }

    /// The marks of these extents are gone.
    pub fn forget(&mut self, extents: &[Extent]) {
        let is_in_flight = |extent| self.in_flight.contains_key(extent);
        assert!(
            !are_asserted() || !extents.iter().any(is_in_flight),
            "from the begin of a change on no mark of it goes"
        );
        for extent in extents {
            self.last.remove(extent);
        }
    }
}

/// What the secondary has carried out on one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// The last of the outputs.
    pub request: Option<RequestId>,
    /// Frames of the copy.
    pub frames: u64,
}

/// What the secondary knows of the outputs that it has carried out on one disk, and of the copy to it.
#[derive(Clone, Debug, Default)]
pub struct ReplicaMarks {
    /// The last output that touched each marked extent, and when, in milliseconds.
    last: BTreeMap<Extent, (RequestId, u64)>,
    carried: Carried,
    /// Frames of the copy that are durable.
    stored: u64,
}

impl ReplicaMarks {
    /// An output that touches these extents is about to be carried out. False: it was carried out before.
    pub fn begin(&mut self, id: RequestId, extents: impl IntoIterator<Item = Extent>, now_ms: u64) -> bool {
        if self.carried.request.is_none() && fault(Fault::ForgetInFlight) {
            self.end(id);
        }
        let is_due = self.carried.request < Some(id);
        if is_due {
            let entries = extents.into_iter().map(|extent| (extent, (id, now_ms)));
            self.last.extend(entries);
        }
        is_due
    }

    /// This output was carried out.
    pub fn end(&mut self, id: RequestId) {
        let is_next = self.carried.request.is_none_or(|before| before < id);
        assert!(
            !are_asserted() || is_next,
            "outputs are carried out in order, and once"
        );
        self.carried.request = Some(id);
    }

    /// One more frame of the copy was carried out. Returns how many are not durable.
    pub fn end_frame(&mut self) -> u64 {
        self.carried.frames += 1;
        self.carried.frames - self.stored
    }

    /// A flush begins. What is carried out after this is not for it.
    pub fn begin_flush(&self) -> Carried {
        self.carried
    }

    /// That flush has ended well. Returns what is durable, and may be said to be.
    pub fn flushed(&mut self, mut flush: Carried) -> Carried {
        if fault(Fault::FlushedEarly) {
            flush.request = self.carried.request;
        }
        if fault(Fault::StoredEarly) {
            flush.frames = self.carried.frames;
        }
        self.stored = flush.frames;
        if are_asserted() {
            assert!(
                flush.request <= self.carried.request,
                "durable is what was carried out"
            );
            assert!(
                self.stored <= self.carried.frames,
                "durable is what was carried out"
            );
        }
        flush
    }

    /// Every output up to this one is durable on both images. Returns the extents whose marks are to go: they
    /// were not written for `age_ms`.
    pub fn settle(&mut self, request: RequestId, now_ms: u64, age_ms: u64) -> Vec<Extent> {
        let is_settled = |_: &Extent, (id, at_ms): &mut (RequestId, u64)| {
            *id <= request && now_ms >= at_ms.saturating_add(age_ms)
        };
        let settled = self.last.extract_if(.., is_settled);
        settled.map(|(extent, _)| extent).collect()
    }
}

#[cfg(test)]
#[path = "marks_test.rs"]
mod tests;
