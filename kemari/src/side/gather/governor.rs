//! What the guest does while a sync is under way, and whether output gathers before the next: decided by
//! measuring, not by guessing.
//!
//! A guest that runs on after a capture gets further, and makes output that the next sync takes along. But
//! its threads, those that send and those that look for the ack then share the processors; and a guest that
//! waits for its client anyway gains nothing. Where the ack comes soon, more output may leave if the guest
//! stands still until then.
//!
//! On the other hand a sync costs the guest its pause and a write fault for each page that it touches again.
//! If many clients are answered, and each answer gets a sync of its own, that is what the guest spends its
//! time on; a sync that waits a little takes more of them along. A single client would only wait.
//!
//! So all of this is tried in turn, and what lets (nearly) most output go is used; in doubt the guest runs,
//! and nothing waits.

/// How much a guest and its output wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// The guest stands still until the ack.
    Still,
    /// The guest runs on; the next sync begins so long after the one before, in times of what a sync takes.
    After(u64),
}

/// All of them; each is a rival of its neighbours.
const LEVELS: [Level; 5] = [
    Level::Still,
    Level::After(0),
    Level::After(1),
    Level::After(2),
    Level::After(4),
];
/// The one to begin with, and to prefer in doubt.
const BEGIN: usize = 1;
/// The longest wait, in microseconds.
const WAIT_US_MAX: u64 = 20_000;
/// Turns of one level that are measured, at least so long, in microseconds, and at least so many syncs.
const TURN_US_MIN: u64 = 50_000;
const TURN_SYNCS_MIN: u64 = 16;
/// A turn without a sync for so long is not measured: it was not the wait that let nothing go.
const GAP_US_MAX: u64 = 5 * WAIT_US_MAX;
/// Turns of a probe: of the level in use and its rival alternately.
const PROBE_TURNS: u32 = 4;
/// Turns for which a level is used until a rival is tried, at first,
/// and when rivals have lost again and again.
const USE_TURNS_MIN: u32 = 4;
const USE_TURNS_MAX: u32 = 64;
/// How much more output must leave if the guest is to stand still for it, in percent.
/// It runs again if as much leaves then.
const GAIN_STILL_PERCENT: f64 = 5.0;
/// How much more output must leave if it is to wait longer for it,
/// and how much less may leave on the way back, in percent.
const GAIN_WAITING_PERCENT: f64 = 15.0;
const LOSS_PERCENT: f64 = 3.0;
/// As long as the load is the same, so many times as much leaves in one turn as in another of the same level,
/// at most.
const LOAD_CHANGE: f64 = 2.0;

/// Decides whether the guest stands still, and how long output gathers.
#[derive(Clone, Debug)]
pub struct GatherGovernor {
    /// Place in [`LEVELS`] of the level in use, and of its rival.
    level: usize,
    rival: usize,
    /// Whether this turn is the rival's.
    rivals_turn: bool,
    /// Turns left, of the probe or of use.
    left: u32,
    probing: bool,
    /// Turns of use before the next probe.
    use_turns: u32,
    /// What a sync takes, smoothed, in microseconds.
    sync_us: u64,
    turn: Turn,
    /// The probe so far: of the level in use, of its rival.
    measured: [Measured; 2],
    /// Outputs a microsecond of the level in use, when it was last judged.
    judged: Option<f64>,
    /// Whether the level in use is new, and one of its neighbours is still to be tried:
    /// that waits for nothing.
    is_new: bool,
}

/// What left in the turns of one level.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    outputs: u64,
    us: u64,
    /// Outputs a microsecond of the turn in which least left, and of the one in which most did.
    rates: Option<(f64, f64)>,
}

impl Measured {
    fn add(&mut self, outputs: u64, us: u64) {
        self.outputs += outputs;
        self.us += us;
        let rate = outputs as f64 / us.max(1) as f64;
        let (least, most) = self.rates.unwrap_or((rate, rate));
        self.rates = Some((least.min(rate), most.max(rate)));
    }

    fn rate(&self) -> f64 {
        self.outputs as f64 / self.us.max(1) as f64
    }

    /// Whether its turns are alike. If not, the load has changed,
    /// and what differs between the levels may be only that.
    fn is_steady(&self) -> bool {
        self.rates.is_none_or(|(least, most)| are_alike(least, most))
    }
}

/// Whether these are rates of the same load.
fn are_alike(one: f64, other: f64) -> bool {
    one.max(other) <= one.min(other) * LOAD_CHANGE
}

#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    since_us: u64,
    last_us: u64,
    outputs: u64,
    syncs: u64,
}

impl Turn {
    fn from(now_us: u64) -> Self {
        Self {
            since_us: now_us,
            last_us: now_us,
            ..Self::default()
        }
    }
}

impl Default for GatherGovernor {
    fn default() -> Self {
        Self {
            level: BEGIN,
            rival: BEGIN - 1,
            rivals_turn: false,
            left: USE_TURNS_MIN,
            probing: false,
            use_turns: USE_TURNS_MIN,
            sync_us: 0,
            turn: Turn::default(),
            measured: Default::default(),
            judged: None,
            is_new: true,
        }
    }
}

impl GatherGovernor {
    fn in_use(&self) -> Level {
        LEVELS[if self.rivals_turn { self.rival } else { self.level }]
    }

    /// Whether the guest is to stand still from the next capture to its ack.
    pub fn stands_still(&self) -> bool {
        self.in_use() == Level::Still
    }

    /// How long after the last release the next sync waits for more output, in microseconds.
    pub fn wait_us(&self) -> u64 {
        match self.in_use() {
            Level::Still => 0,
            Level::After(times) => (times * self.sync_us).min(WAIT_US_MAX),
        }
    }

    /// Names the way in which syncs are made at present, for whoever measures something else of them. `None`
    /// while one way is compared with another: nothing else is to change then.
    pub fn way(&self) -> Option<usize> {
        (!self.probing).then_some(self.level)
    }

    /// A sync was released at this time: it took `sync_us` from its capture on, and had so many outputs.
    pub fn note(&mut self, now_us: u64, sync_us: u64, outputs: u64) {
        self.sync_us = match self.sync_us {
            0 => sync_us,
            before => (7 * before + sync_us) / 8,
        };
        let turn = &mut self.turn;
        if now_us.saturating_sub(turn.last_us) > GAP_US_MAX {
            *turn = Turn::from(now_us);
            return;
        }
        turn.last_us = now_us;
        turn.outputs += outputs;
        turn.syncs += 1;
        let elapsed_us = now_us.saturating_sub(turn.since_us);
        if elapsed_us >= TURN_US_MIN && turn.syncs >= TURN_SYNCS_MIN {
            let turn = std::mem::replace(turn, Turn::from(now_us));
            self.end_turn(turn, elapsed_us);
        }
    }

    fn end_turn(&mut self, turn: Turn, elapsed_us: u64) {
        if self.probing {
            self.measured[usize::from(self.rivals_turn)].add(turn.outputs, elapsed_us);
            self.rivals_turn = !self.rivals_turn;
        } else {
            self.follow_load(turn.outputs as f64 / elapsed_us.max(1) as f64);
        }
        self.left -= 1;
        match (self.left, self.probing) {
            (0, true) => self.judge(),
            (0, false) => {
                (self.probing, self.rivals_turn) = (true, true);
                self.left = PROBE_TURNS;
                self.measured = Default::default();
            }
            _ => {}
        }
    }

    /// Begins anew if another load lets so much output go at the level in use: what was found out says
    /// nothing of that one. But that the other host is near may still be so; and if more leaves than before
    /// there are more clients, perhaps.
    fn follow_load(&mut self, rate: f64) -> bool {
        let Some(judged) = self.judged.filter(|judged| !are_alike(*judged, rate)) else {
            return false;
        };
        let (level, rival) = match LEVELS[self.level] {
            Level::Still => (self.level, BEGIN),
            Level::After(_) if rate > judged => (BEGIN, BEGIN + 1),
            Level::After(_) => (BEGIN, BEGIN - 1),
        };
        *self = Self {
            level,
            rival,
            left: 1,
            sync_us: self.sync_us,
            turn: self.turn,
            ..Self::default()
        };
        true
    }

    fn judge(&mut self) {
        (self.probing, self.rivals_turn) = (false, false);
        if !self.measured.iter().all(Measured::is_steady) {
            return self.left = self.use_turns;
        }
        let [own, rivals] = self.measured.map(|measured| measured.rate());
        if self.follow_load(own) {
            return;
        }
        let goes_up = self.rival > self.level;
        let goes_back = self.rival.abs_diff(BEGIN) < self.level.abs_diff(BEGIN);
        let needed_percent = match (LEVELS[self.level], LEVELS[self.rival]) {
            (_, Level::Still) => 100.0 + GAIN_STILL_PERCENT,
            (Level::Still, _) => 100.0,
            _ if goes_back => 100.0 - LOSS_PERCENT,
            _ => 100.0 + GAIN_WAITING_PERCENT,
        };
        let wins = rivals * 100.0 >= own * needed_percent && rivals > 0.0;
        self.judged = Some(if wins { rivals } else { own });
        if wins {
            self.level = self.rival;
            self.use_turns = USE_TURNS_MIN;
        } else {
            self.use_turns = (2 * self.use_turns).min(USE_TURNS_MAX);
        }
        // On in the direction that pays, else the other way.
        let is_last = |level: usize, up| level == if up { LEVELS.len() - 1 } else { 0 };
        let goes_on_up = (goes_up == wins) != is_last(self.level, goes_up == wins);
        self.rival = match goes_on_up {
            true => self.level + 1,
            false => self.level - 1,
        };
        self.left = if wins || self.is_new { 1 } else { self.use_turns };
        self.is_new = wins;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that ask anew as soon as they are answered. A sync costs the guest so much, an answer so much.
    struct Load {
        clients: u64,
        sync_cost_us: u64,
        answer_us: u64,
        flight_us: u64,
        /// What a sync takes while the guest stands still.
        still_us: u64,
    }

    impl Load {
        /// What a sync that waits so long takes in all, and how many answers it has.
        fn cycle(&self, wait_us: u64) -> (u64, u64) {
            let (cycle_us, busy_us) = (self.flight_us + wait_us, self.sync_cost_us);
            // The guest works while the last sync is under way and while this one waits, as far as its cost
            // leaves time; without an answer there is no sync.
            let runs_us = cycle_us.saturating_sub(busy_us).max(self.answer_us);
            let answers = (runs_us / self.answer_us).min(self.clients);
            (cycle_us.max(busy_us + self.answer_us), answers)
        }

        /// The same if the guest stands still: it makes one answer, and waits.
        fn cycle_still(&self) -> (u64, u64) {
            (self.still_us + self.answer_us, 1)
        }

        /// Plays one sync; returns its answers.
        fn play_once(&self, governor: &mut GatherGovernor, clock_us: &mut u64) -> u64 {
            let (elapsed_us, outputs) = match governor.stands_still() {
                true => self.cycle_still(),
                false => self.cycle(governor.wait_us()),
            };
            *clock_us += elapsed_us;
            governor.note(*clock_us, self.flight_us, outputs);
            outputs
        }

        /// Plays so many seconds; returns answers a second.
        fn play(&self, governor: &mut GatherGovernor, clock_us: &mut u64, seconds: u64) -> f64 {
            let (end_us, mut answers) = (*clock_us + seconds * 1_000_000, 0);
            while *clock_us < end_us {
                answers += self.play_once(governor, clock_us);
            }
            answers as f64 / seconds as f64
        }

        /// The same if no sync ever waits.
        fn at_once(&self) -> f64 {
            let (elapsed_us, answers) = self.cycle(0);
            answers as f64 * 1e6 / elapsed_us as f64
        }
    }

    const MANY: Load = Load {
        clients: 64,
        sync_cost_us: 350,
        answer_us: 20,
        flight_us: 400,
        still_us: 450,
    };
    const ONE: Load = Load { clients: 1, ..MANY };

    #[test]
    fn answers_to_many_clients_are_gathered() {
        let (mut governor, mut clock_us) = (GatherGovernor::default(), 0);
        let rate = MANY.play(&mut governor, &mut clock_us, 20);
        assert!(
            rate > 2.0 * MANY.at_once(),
            "{rate} instead of {}",
            MANY.at_once()
        );
    }

    #[test]
    fn a_single_client_loses_little() {
        let (mut governor, mut clock_us) = (GatherGovernor::default(), 0);
        ONE.play(&mut governor, &mut clock_us, 5);
        let rate = ONE.play(&mut governor, &mut clock_us, 60);
        assert!(rate > 0.97 * ONE.at_once(), "{rate} instead of {}", ONE.at_once());
        assert_eq!(governor.level, BEGIN);
    }

    #[test]
    fn the_guest_stands_still_where_more_leaves_then() {
        let near = Load { still_us: 150, ..ONE };
        let (mut governor, mut clock_us) = (GatherGovernor::default(), 0);
        near.play(&mut governor, &mut clock_us, 5);
        let rate = near.play(&mut governor, &mut clock_us, 60);
        assert!(rate > 0.97 * 1e6 / 170.0, "{rate}");
        assert_eq!(LEVELS[governor.level], Level::Still);
        // The ack comes later: the guest runs on.
        ONE.play(&mut governor, &mut clock_us, 20);
        assert_eq!(governor.level, BEGIN);
    }

    #[test]
    fn it_follows_a_change_of_the_load() {
        let (mut governor, mut clock_us) = (GatherGovernor::default(), 0);
        for _ in 0..3 {
            MANY.play(&mut governor, &mut clock_us, 20);
            assert!(governor.level > BEGIN);
            ONE.play(&mut governor, &mut clock_us, 20);
            assert_eq!(governor.level, BEGIN);
        }
    }

    #[test]
    fn a_change_of_the_load_is_seen_at_once() {
        let (mut governor, mut clock_us) = (GatherGovernor::default(), 0);
        MANY.play(&mut governor, &mut clock_us, 60);
        assert!(governor.level > BEGIN && governor.use_turns == USE_TURNS_MAX);
        ONE.play(&mut governor, &mut clock_us, 1);
        assert_eq!(governor.level, BEGIN);
        // Neither of its neighbours is better for one client. What is, for many, is found at once,
        // if need be after the probe in which they came.
        ONE.play(&mut governor, &mut clock_us, 60);
        assert_eq!((governor.level, governor.use_turns), (BEGIN, USE_TURNS_MAX));
        let quick = Load { answer_us: 5, ..MANY };
        let turns = u64::from(PROBE_TURNS + 1 + PROBE_TURNS + 1);
        let until_us = clock_us + turns * 2 * TURN_US_MIN;
        while governor.level == BEGIN && clock_us < until_us {
            quick.play_once(&mut governor, &mut clock_us);
        }
        assert_eq!(governor.level, BEGIN + 1);
    }

    #[test]
    fn both_neighbours_of_a_level_are_tried_before_it_is_kept() {
        let (mut governor, mut clock_us) = (GatherGovernor::default(), 0);
        let mut tried = Vec::new();
        while !governor.probing || tried.len() < 2 {
            let (was_probing, rival) = (governor.probing, governor.rival);
            ONE.play_once(&mut governor, &mut clock_us);
            if governor.probing && !was_probing {
                tried.push(rival);
            }
            assert!(clock_us < u64::from(USE_TURNS_MIN + PROBE_TURNS + 3) * TURN_US_MIN);
        }
        assert_eq!(tried, [BEGIN - 1, BEGIN + 1]);
    }

    #[test]
    fn a_load_that_changes_in_a_probe_decides_nothing() {
        let (mut governor, mut clock_us) = (GatherGovernor::default(), 0);
        ONE.play(&mut governor, &mut clock_us, 5);
        let level = governor.level;
        for _ in 0..100_000 {
            // Much is asked for in the rival's second turn, and only then.
            let asked_for = governor.probing && governor.left == 2;
            clock_us += 500;
            governor.note(clock_us, 300, if asked_for { 40 } else { 10 });
            assert_eq!(governor.level, level);
        }
    }

    #[test]
    fn a_pause_of_the_load_decides_nothing() {
        let (mut governor, mut clock_us) = (GatherGovernor::default(), 0);
        MANY.play(&mut governor, &mut clock_us, 20);
        let level = governor.level;
        for _ in 0..100 {
            clock_us += 2 * GAP_US_MAX;
            governor.note(clock_us, 300, 1);
        }
        assert_eq!(governor.level, level);
    }

    #[test]
    fn it_does_not_wait_for_ever() {
        let (mut governor, mut clock_us) = (GatherGovernor::default(), 0);
        let slow = Load {
            sync_cost_us: 90_000,
            flight_us: 100_000,
            answer_us: 1_000,
            ..MANY
        };
        slow.play(&mut governor, &mut clock_us, 100);
        assert!(governor.wait_us() <= WAIT_US_MAX);
    }
}
