//! Whether deltas pay: decided by measuring, not by guessing how fast wire and processor are.

/// Syncs of one kind that are measured in turn.
const PROBE_SYNCS: u32 = 32;
/// Of them, the first ones do not count: with deltas they fill the cache, without them they empty the queues.
const WARM_UP_SYNCS: u32 = 8;
/// Syncs that the better kind is used for until the other is tried again.
const USE_SYNCS: u32 = 4096;
/// Syncs that it is used for in any case, also if the load is another than the one that was measured.
const USE_SYNCS_MIN: u32 = 128;
/// A load is another if syncs have so many times more pages, or fewer.
const LOAD_CHANGE: f64 = 2.0;
/// How much less a page must cost with deltas, in percent: they cost both sides processor time that others
/// may want, and that the time from the encoding to the ack does not show.
const GAIN_PERCENT: f64 = 10.0;
/// Weight of the last sync in the load.
const LOAD_WEIGHT: f64 = 1.0 / 16.0;

/// Decides for each sync whether pages are sent as deltas where that is shorter.
#[derive(Clone, Debug)]
pub struct DeltaGovernor {
    /// Whether the syncs at present are with deltas.
    on: bool,
    /// Syncs left of this turn.
    left: u32,
    /// Whether this turn is to measure the kind that is not known to be better.
    probing: bool,
    /// (microseconds, pages) of this turn that count.
    measured: (u64, u64),
    /// Microseconds a page without and with deltas, as last measured.
    cost_us: [Option<f64>; 2],
    /// Pages of a sync, a moving mean.
    load: f64,
    /// The load when it was decided which kind is better.
    decided_at: f64,
}

impl Default for DeltaGovernor {
    fn default() -> Self {
        Self {
            on: true,
            left: PROBE_SYNCS,
            probing: true,
            measured: (0, 0),
            cost_us: [None; 2],
            load: 0.0,
            decided_at: 0.0,
        }
    }
}

impl DeltaGovernor {
    /// Whether the next sync is to be with deltas.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// A sync was acked: what its pages took, from their encoding to the ack, in microseconds.
    pub fn note(&mut self, us: u64, pages: u64) {
        let begun = if self.probing { PROBE_SYNCS } else { USE_SYNCS };
        let done = begun - self.left;
        if done >= WARM_UP_SYNCS {
            self.measured.0 += us;
            self.measured.1 += pages;
        }
        self.load += LOAD_WEIGHT * (pages as f64 - self.load);
        self.left -= 1;
        if !self.probing && done >= USE_SYNCS_MIN && self.is_another_load() {
            // What was measured, perhaps of an idle guest, says nothing any more.
            self.judge_anew();
        } else if self.left == 0 {
            self.next_turn();
        }
    }

    /// Both kinds are to be measured again: syncs are made in another way now.
    pub fn judge_anew(&mut self) {
        *self = Self {
            load: self.load,
            ..Self::default()
        };
    }

    fn is_another_load(&self) -> bool {
        self.load > self.decided_at * LOAD_CHANGE || self.load * LOAD_CHANGE < self.decided_at
    }

    fn next_turn(&mut self) {
        let (us, pages) = std::mem::take(&mut self.measured);
        if pages > 0 {
            self.cost_us[usize::from(self.on)] = Some(us as f64 / pages as f64);
        }
        // After a turn of use the other kind is probed; after the probe of both, the better one is used.
        (self.on, self.probing) = match (self.probing, self.cost_us) {
            (true, [Some(without), Some(with)]) => (with <= without * (1.0 - GAIN_PERCENT / 100.0), false),
            (true, [without, _]) => (without.is_some(), true),
            (false, _) => (!self.on, true),
        };
        self.left = if self.probing { PROBE_SYNCS } else { USE_SYNCS };
        self.decided_at = self.load;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share of syncs with deltas, when a page costs so much without and with them.
    fn share_on(without_us: u64, with_us: u64) -> f64 {
        let mut governor = DeltaGovernor::default();
        let syncs = 3 * u64::from(USE_SYNCS);
        let on = (0..syncs).filter(|_| {
            let on = governor.is_on();
            governor.note(10 * if on { with_us } else { without_us }, 10);
            on
        });
        on.count() as f64 / syncs as f64
    }

    #[test]
    fn the_cheaper_kind_is_used_and_the_other_tried_now_and_then() {
        let (pays, does_not) = (share_on(10, 5), share_on(5, 10));
        assert!((0.95..1.0).contains(&pays), "{pays}");
        assert!((0.001..0.05).contains(&does_not), "{does_not}");
        let hardly_pays = share_on(100, 95);
        assert!((0.001..0.05).contains(&hardly_pays), "{hardly_pays}");
    }

    #[test]
    fn it_follows_a_change() {
        let mut governor = DeltaGovernor::default();
        let mut syncs_on = |without_us, with_us| {
            let on = (0..4 * USE_SYNCS).filter(|_| {
                let on = governor.is_on();
                governor.note(if on { with_us } else { without_us }, 1);
                on
            });
            on.count() as u32
        };
        assert!(syncs_on(10, 5) > 3 * USE_SYNCS);
        // Up to one turn passes before the other kind is tried.
        assert!(syncs_on(5, 10) < 2 * USE_SYNCS);
    }

    #[test]
    fn what_was_measured_of_an_idle_guest_does_not_count_for_a_busy_one() {
        let mut governor = DeltaGovernor::default();
        let mut syncs_on = |syncs: u32, pages, with_us| {
            let on = (0..syncs).filter(|_| {
                let on = governor.is_on();
                governor.note(pages * if on { with_us } else { 10 }, pages);
                on
            });
            on.count() as u32
        };
        assert!(syncs_on(400, 10, 20) < 300, "they do not pay for the idle one");
        assert!(syncs_on(1000, 100, 5) > 500, "they do for the busy one");
        assert!(
            syncs_on(1000, 10, 20) < 500,
            "and not later, when it is idle again"
        );
    }

    #[test]
    fn syncs_without_pages_decide_nothing() {
        let mut governor = DeltaGovernor::default();
        (0..1000).for_each(|_| governor.note(50, 0));
        assert_eq!(governor.cost_us, [None; 2]);
    }
}
