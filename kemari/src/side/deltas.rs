//! Whether and how a primary sends pages as their difference from what the secondary has.

use kemari_sync::{DeltaCache, DeltaGovernor, Epoch};

use super::gather::Way;
use crate::config::{Delta, Protection};

/// What the primary knows of the secondary's pages, and whether it makes use of it.
pub struct Deltas {
    mode: Delta,
    cache: DeltaCache,
    governor: DeltaGovernor,
    /// In which way the syncs are made that it judges.
    way: Option<Way>,
}

impl Deltas {
    /// As the configuration has it; nothing is known yet.
    pub fn new(protection: &Protection) -> Self {
        Self {
            mode: protection.delta,
            cache: DeltaCache::new((protection.delta_cache_mib_max as usize) << 20),
            governor: DeltaGovernor::default(),
            way: None,
        }
    }

    /// For the next sync: `None` if its pages are to be sent whole. What is known gets old by that.
    pub fn for_sync(&mut self) -> Option<&mut DeltaCache> {
        let wanted = match self.mode {
            Delta::On => true,
            Delta::Off => false,
            Delta::Auto => self.governor.is_on(),
        };
        if !wanted {
            self.cache.clear();
            return None;
        }
        Some(&mut self.cache)
    }

    /// A sync is acked.
    pub fn acked(&mut self, epoch: Epoch) {
        self.cache.acked(epoch);
    }

    /// The pages of a sync took so long, from their encoding to the ack. The sync was made in this way, if in one at all.
    pub fn note(&mut self, us: u64, pages: u64, way: Option<Way>) {
        if self.mode != Delta::Auto || way.is_none() {
            return;
        }
        match self.way == way {
            true => self.governor.note(us, pages),
            false => self.governor.judge_anew(),
        }
        self.way = way;
    }

    /// A sync failed, or could not be captured.
    pub fn failed(&mut self) {
        self.cache.failed();
    }

    /// The secondary is another, or there is none.
    pub fn forget(&mut self) {
        self.cache.clear();
    }
}
