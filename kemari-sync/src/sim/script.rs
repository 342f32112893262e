//! What goes wrong in a run, and when: drawn from the seed.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::HOSTS;
use super::chaos::{Blow, Target};
use super::failing::UNTIL_HEALED;

/// A run's script.
pub(super) struct Script {
    pub(super) blows: Vec<(u64, Blow)>,
    /// One failure only, after which the VM must run again within [`SINGLE_BOUND_US`].
    pub(super) is_single: bool,
    pub(super) third_host: bool,
    pub(super) breaks_pairing: bool,
    /// The replicated disk is to grow.
    pub(super) grows: bool,
    /// A card is to have no port for a while.
    pub(super) unplugs: bool,
    pub(super) heal_us: u64,
    pub(super) end_us: u64,
}

/// Within this time after a single failure clients are served again, in microseconds.
pub(super) const SINGLE_BOUND_US: u64 = 900_000;
/// From the healing to the end, in microseconds.
const CONVERGE_US: u64 = 1_200_000;

/// When the primary of the scenario dies, comes back, and when its successor is stopped, in microseconds.
const SCENARIO_US: [u64; 3] = [110_000, 130_000, 330_000];
/// When all that the crashes have left is repaired, in microseconds.
const SCENARIO_HEAL_US: u64 = 400_000;

impl Script {
    /// Boot, protection, outputs, a takeover, a new protection, a stop: what crashes are laid over.
    pub(super) fn scenario() -> Self {
        let [dies_us, returns_us, stops_us] = SCENARIO_US;
        Self {
            blows: vec![
                (dies_us, Blow::Kill(Target::Any(0))),
                (returns_us, Blow::Return(0)),
                (stops_us, Blow::OperatorStop),
            ],
            is_single: false,
            third_host: false,
            breaks_pairing: false,
            grows: false,
            unplugs: false,
            heal_us: SCENARIO_HEAL_US,
            end_us: SCENARIO_HEAL_US + CONVERGE_US,
        }
    }

    pub(super) fn draw(rng: &mut ChaCha8Rng) -> Self {
        let (third_host, breaks_pairing) = (rng.random_bool(0.4), rng.random_bool(0.1));
        let is_single = rng.random_bool(0.4);
        if is_single {
            let at_us = rng.random_range(100_000..300_000);
            let heal_us = at_us + SINGLE_BOUND_US + 50_000;
            let blows = vec![(at_us, single(rng))];
            return Self {
                blows,
                is_single,
                third_host,
                breaks_pairing,
                grows: false,
                unplugs: false,
                heal_us,
                end_us: heal_us + CONVERGE_US,
            };
        }
        let count = rng.random_range(0..10);
        let mut blows: Vec<_> = (0..count)
            .map(|_| (rng.random_range(20_000..500_000), any(rng)))
            .collect();
        // Failures that follow close upon each other hit the recovery from the first.
        for index in 1..blows.len() {
            if rng.random_bool(0.4) {
                blows[index].0 = blows[index - 1].0 + rng.random_range(0..150_000);
            }
        }
        let interruptions = interruptions(rng, &blows);
        blows.extend(interruptions);
        let grows = rng.random_bool(0.5);
        if grows {
            blows.extend(growth(rng));
        }
        if rng.random_bool(0.15) {
            blows.push((0, Blow::DiskStalls));
        }
        if rng.random_bool(0.1) {
            blows.push((0, Blow::StoreLossy));
        }
        if rng.random_bool(0.1) {
            blows.extend(contest(rng));
        }
        let last_us = blows
            .iter()
            .map(|(at_us, _)| *at_us)
            .max()
            .unwrap_or(0)
            .max(100_000);
        let heal_us = last_us + rng.random_range(0..400_000);
        Self {
            blows,
            is_single,
            third_host,
            breaks_pairing,
            grows,
            unplugs: false,
            heal_us,
            end_us: heal_us + CONVERGE_US,
        }
    }
}

/// What befalls the stops among these blows.
fn interruptions(rng: &mut ChaCha8Rng, blows: &[(u64, Blow)]) -> Vec<(u64, Blow)> {
    // A stop that is interrupted within its few steps.
    let mut interruptions = Vec::new();
    for (at_us, blow) in blows {
        if matches!(blow, Blow::OperatorStop | Blow::PowerOff) && rng.random_bool(0.6) {
            interruptions.push((
                at_us + rng.random_range(0..6_000),
                Blow::CutPower(Target::Primary),
            ));
        }
    }
    // One of what a flush has lost just before.
    for (at_us, blow) in blows {
        if matches!(blow, Blow::OperatorStop | Blow::PowerOff) && rng.random_bool(0.4) {
            let before_us = rng.random_range(1_000..20_000);
            let blow = Blow::FlushFails(Target::Primary, 1);
            interruptions.push((at_us - before_us, blow));
        }
    }
    interruptions
}

fn single(rng: &mut ChaCha8Rng) -> Blow {
    let target = if rng.random_bool(0.7) {
        Target::Primary
    } else {
        Target::Secondary
    };
    let for_us = rng.random_range(10_000..500_000);
    match rng.random_range(0..19) {
        0 | 1 => Blow::Kill(target),
        2 | 3 => Blow::CutPower(target),
        4 => Blow::Freeze(target, for_us),
        5 => Blow::CutLink {
            there: true,
            back: true,
            for_us: 10_000_000,
        },
        6 => Blow::CutLink {
            there: rng.random_bool(0.5),
            back: rng.random_bool(0.5),
            for_us,
        },
        7 => Blow::ResetLink,
        8 => Blow::StoreDown,
        9 => Blow::Damage,
        10 => Blow::CheckFails,
        11 => Blow::CaptureFails,
        12 => Blow::UplinkLost(target),
        13 => Blow::DiskStuck(target),
        14 | 15 => Blow::DiskFails(target, failures(rng)),
        16 | 17 => Blow::FlushFails(target, rng.random_range(1..4)),
        _ => Blow::HostFailing,
    }
}

fn any(rng: &mut ChaCha8Rng) -> Blow {
    let target = match rng.random_range(0..5) {
        0 | 1 => Target::Primary,
        2 | 3 => Target::Secondary,
        _ => Target::Any(rng.random_range(0..HOSTS)),
    };
    let for_us = rng.random_range(5_000..400_000);
    match rng.random_range(0..46) {
        0..=2 => Blow::Kill(target),
        3..=5 => Blow::CutPower(target),
        6 | 7 => Blow::Freeze(target, for_us),
        8..=10 => Blow::Return(rng.random_range(0..HOSTS)),
        11..=13 => Blow::CutLink {
            there: rng.random_bool(0.7),
            back: rng.random_bool(0.7),
            for_us,
        },
        14..=17 => Blow::ResetLink,
        18 => Blow::Mend,
        19 => Blow::CutStore(target),
        20 => Blow::CutClients(target),
        21 => Blow::StoreDown,
        22 | 23 => Blow::StoreLossy,
        24 => Blow::Damage,
        25 => Blow::CheckFails,
        26 => Blow::CaptureFails,
        27 => {
            if rng.random_bool(0.5) {
                Blow::PrepareFails
            } else {
                Blow::RestoreFails(rng.random_range(1..6))
            }
        }
        28 => Blow::FenceFails,
        29 => Blow::DiskStalls,
        30 => Blow::HostFailing,
        31 => Blow::OperatorStop,
        32 => Blow::OperatorTakeover,
        33 => Blow::Unprotect,
        34 => Blow::Protect,
        35 | 36 => Blow::UplinkLost(target),
        37 => Blow::DiskStuck(target),
        38..=41 => Blow::DiskFails(target, failures(rng)),
        42..=44 => Blow::FlushFails(target, rng.random_range(1..4)),
        _ => Blow::PowerOff,
    }
}

/// Both sides of a pair win again and again, and stand still before they act:
/// what a winner has done then is of an older win.
fn contest(rng: &mut ChaCha8Rng) -> Vec<(u64, Blow)> {
    let begins_us = rng.random_range(60_000..300_000);
    let cut = Blow::CutLink {
        there: true,
        back: true,
        for_us: 900_000,
    };
    let mut blows = vec![
        (begins_us, cut),
        (begins_us, Blow::StoreLossy),
        (begins_us, Blow::RestoreFails(rng.random_range(1..6))),
    ];
    for _ in 0..4 {
        let at_us = begins_us + rng.random_range(90_000..600_000);
        let freeze = Blow::Freeze(
            Target::Any(rng.random_range(0..2)),
            rng.random_range(100_000..300_000),
        );
        blows.push((at_us, freeze));
    }
    blows
}

/// How many requests of a disk fail: a few, or all until everything is healed.
fn failures(rng: &mut ChaCha8Rng) -> u32 {
    match rng.random_bool(0.6) {
        true => rng.random_range(1..4),
        false => UNTIL_HEALED,
    }
}

/// The images are made larger, in any order, and the primary is told, once or twice: maybe too early.
fn growth(rng: &mut ChaCha8Rng) -> Vec<(u64, Blow)> {
    let begins_us = rng.random_range(60_000..400_000);
    let mut growth = Vec::new();
    for host in 0..HOSTS {
        growth.push((begins_us + rng.random_range(0..60_000), Blow::Enlarge(host)));
    }
    for _ in 0..2 {
        growth.push((begins_us + rng.random_range(0..120_000), Blow::Resize));
    }
    if rng.random_bool(0.4) {
        let crash = match rng.random_bool(0.5) {
            true => Blow::CutPower(Target::Any(rng.random_range(0..HOSTS))),
            false => Blow::Kill(Target::Primary),
        };
        growth.push((begins_us + rng.random_range(0..140_000), crash));
    }
    growth
}
