//! Whether and how a primary sends pages as their difference from what the secondary has.

mod governor;

use kemari_sync::Epoch;
use kemari_sync::wire::DeltaCache;

use super::gather::Way;
use crate::config::{Delta, Protection};
use governor::DeltaGovernor;

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

    /// The pages of a sync took so long, from their encoding to the ack. The sync was made in this way,
    /// if in one at all.
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

#[cfg(test)]
mod tests {
    use super::super::gather::Gather;
    use super::*;
    use crate::config::{Config, Mode};

    const PAGE: u64 = 7;
    /// So many syncs in a row are measured before the other kind has its turn.
    const TURN: u64 = 32;

    fn protection(delta: Delta) -> Protection {
        let text = include_str!("../../../docs/example.toml");
        let config = Config::parse(text, "test").expect("the example");
        Protection {
            delta,
            ..config.protection
        }
    }

    fn way(mode: Mode) -> Option<Way> {
        let mut gather = Gather::new(&protection(Delta::Auto));
        gather.set_mode(mode);
        gather.way()
    }

    /// Sends the page in this sync. Returns whether a difference from what the secondary has could have been
    /// sent.
    fn send(deltas: &mut Deltas, epoch: Epoch) -> Option<bool> {
        let cache = deltas.for_sync()?;
        cache.begin(epoch);
        let (_, is_base) = cache.send(PAGE).expect("there is room for it");
        Some(is_base)
    }

    #[test]
    fn a_page_is_known_once_it_is_acked_but_not_after_a_failure_nor_of_another_secondary() {
        let mut deltas = Deltas::new(&protection(Delta::On));
        assert_eq!(send(&mut deltas, 1), Some(false));
        deltas.acked(1);
        assert_eq!(send(&mut deltas, 2), Some(true));
        deltas.failed();
        assert_eq!(send(&mut deltas, 3), Some(false), "2 may have come or not");
        deltas.acked(3);
        assert_eq!(send(&mut deltas, 4), Some(true));
        deltas.acked(4);
        deltas.forget();
        assert_eq!(send(&mut deltas, 5), Some(false));
    }

    #[test]
    fn what_is_known_is_old_after_syncs_without_differences() {
        let mut deltas = Deltas::new(&protection(Delta::Auto));
        let in_way = way(Mode::Lockstep);
        let (mut epoch, mut turns) = (0, Vec::new());
        for _ in 0..3 * TURN {
            epoch += 1;
            let sent = send(&mut deltas, epoch);
            deltas.acked(epoch);
            // Whole pages take longer.
            let us = if sent.is_some() { 1 } else { 100 };
            deltas.note(us, 1, in_way);
            if turns.last() != Some(&sent) {
                turns.push(sent);
            }
        }
        assert_eq!(turns, [Some(false), Some(true), None, Some(false), Some(true)]);
    }

    #[test]
    fn syncs_in_another_way_are_judged_anew() {
        let mut deltas = Deltas::new(&protection(Delta::Auto));
        let [one, other] = [Mode::Lockstep, Mode::Interval].map(way);
        let note = |deltas: &mut Deltas, way, times| (0..times).for_each(|_| deltas.note(1, 1, way));
        note(&mut deltas, one, TURN);
        note(&mut deltas, other, TURN);
        assert!(
            deltas.for_sync().is_some(),
            "the turn has begun again with the other way"
        );
        note(&mut deltas, None, TURN);
        assert!(deltas.for_sync().is_some(), "syncs of no way do not count");
        note(&mut deltas, other, 1);
        assert!(deltas.for_sync().is_none());
    }
}
