//! What a sync costs: beside the bare limit, to the guest, and how many there can be.

use std::time::Duration;

use anyhow::{Context, Result};

use super::limit::Limit;
use super::rows::{Found, RowKind, Target, shown};
use super::service::Caller;
use super::stats::{Samples, ratio};
use super::status::Span;
use super::vm::{Vm, VmSpec};
use super::{Bench, Measured};
use crate::demo::pair::Side;

/// Dirty pages of the rows, and their targets.
const SIZES: [(u32, RowKind); 3] = [
    (10, over_limit("sync_over_limit_10", 2.5)),
    (100, over_limit("sync_over_limit_100", 1.3)),
    (1000, over_limit("sync_over_limit_1000", 1.2)),
];
const PAUSE: RowKind = RowKind {
    name: "pause_us_100",
    unit: "us",
    target: Target::AtMost(120.0),
};
const RATE: RowKind = RowKind {
    name: "syncs_per_s_10",
    unit: "1/s",
    target: Target::AtLeast(5000.0),
};
/// A guest's loop of kicks lasts so long, in seconds.
const SLICE_S: u32 = 1;
/// The bare limit is measured for so long each time.
const LIMIT_SLICE: Duration = Duration::from_millis(300);

const fn over_limit(name: &'static str, limit: f64) -> RowKind {
    RowKind {
        name,
        unit: "ratio",
        target: Target::AtMost(limit),
    }
}

/// The rows, in order.
pub fn kinds() -> Vec<RowKind> {
    SIZES.iter().map(|(_, kind)| *kind).chain([PAUSE, RATE]).collect()
}

/// A VM whose guest kicks, and what has come of it.
struct Kicking<'a> {
    vm: Vm<'a>,
    caller: Caller,
}

/// What loops of kicks of one kind have given.
#[derive(Default)]
struct Loops {
    span: Span,
    /// Of each loop: syncs a second, microseconds a round, what a kick took the guest.
    rates: Samples,
    rounds_us: Samples,
    kicks_us: Samples,
    kicks: u64,
}

impl<'a> Kicking<'a> {
    fn start(bench: &'a Bench, number: usize, spec: &VmSpec) -> Result<Self> {
        let vm = Vm::start(&bench.place, number, &bench.program, spec)?;
        let caller = vm.caller()?;
        Ok(Self { vm, caller })
    }

    fn run(&mut self, pages: u32, into: &mut Loops) -> Result<()> {
        let before = self.vm.status(Side::A)?;
        let report = self.caller.kick_loop(pages, SLICE_S)?;
        let after = self.vm.status(Side::A)?;
        let syncs = into.span.counters.syncs;
        into.span.add(&before, &after);
        let syncs = into.span.counters.syncs - syncs;
        into.rates.push(syncs as f64 * 1e6 / report.elapsed_us as f64);
        into.rounds_us
            .push(report.round_us().context("the guest did not kick at all")?);
        into.kicks_us.push(report.kick_us_median);
        into.kicks += report.kicks;
        Ok(())
    }
}

impl Loops {
    /// Bytes on the wire of a sync.
    fn bytes(&self) -> Option<f64> {
        ratio(
            Some(self.span.counters.wire_bytes as f64),
            Some(self.span.counters.syncs as f64),
        )
    }

    fn pages(&self) -> Option<f64> {
        ratio(
            Some(self.span.counters.pages as f64),
            Some(self.span.counters.syncs as f64),
        )
    }
}

/// Measures the rows.
pub fn measure(bench: &Bench) -> Result<Measured> {
    let spec = |mode| VmSpec::raw(mode);
    let mut lockstep = Kicking::start(bench, 0, &spec("lockstep"))?;
    let mut pipelined = Kicking::start(bench, 1, &spec("pipelined"))?;
    let mut alone = Kicking::start(bench, 2, &VmSpec::unprotected())?;
    let mut limit = Limit::new(bench.place.netns())?;

    let mut syncs: [Loops; SIZES.len()] = Default::default();
    let mut limits: [Samples; SIZES.len()] = Default::default();
    let (mut paused, mut unpaused, mut fast, mut fast_lockstep): (Loops, Loops, Loops, Loops) =
        Default::default();
    for _ in 0..bench.pace.rounds {
        for (((pages, _), loops), limits) in SIZES.iter().zip(&mut syncs).zip(&mut limits) {
            lockstep.run(*pages, loops)?;
            let bytes = loops.bytes().context("the program counts no bytes on the wire")?;
            limits.append(&mut limit.measure(bytes as usize, LIMIT_SLICE)?);
        }
        pipelined.run(100, &mut paused)?;
        alone.run(100, &mut unpaused)?;
        pipelined.run(10, &mut fast)?;
        lockstep.run(10, &mut fast_lockstep)?;
    }

    let mut found = Vec::new();
    for (((pages, _), loops), limits) in SIZES.iter().zip(&syncs).zip(&limits) {
        found.push(over(*pages, loops, limits)?);
    }
    found.push(pause(&paused, &unpaused)?);
    found.push(rate(&fast, &fast_lockstep)?);
    Ok(found)
}

fn over(pages: u32, loops: &Loops, limits: &Samples) -> Result<Found> {
    let mut series = loops.span.breakdown("")?;
    let limit = limits.series("bare limit", "us");
    let (sync_us, limit_us) = (series[0].median(), limit.median());
    series.insert(1, limit);
    let or_none = |value: Option<f64>| value.map_or("-".into(), shown);
    let mean_us = loops.span.timings.sync_us.mean_us();
    let mut found = Found::from(ratio(sync_us, limit_us))
        .note(format!(
            "lockstep; a sync takes {} us (mean {}), the bare limit {} us (99 %: {} and {} us)",
            or_none(sync_us),
            or_none(mean_us),
            or_none(limit_us),
            or_none(series[0].at(99.0)),
            or_none(series[1].at(99.0)),
        ))
        .note(format!(
            "asked for {pages} pages: {} pages and {} bytes on the wire a sync; the guest waited {} us for a \
             kick",
            or_none(loops.pages()),
            or_none(loops.bytes()),
            or_none(loops.kicks_us.median()),
        ))
        .note(parts(&loops.span)?);
    found.series = series;
    Ok(found)
}

/// Where the time of a sync goes.
pub(super) fn parts(span: &Span) -> Result<String> {
    let series = span.breakdown("")?;
    let parts: Vec<String> = series
        .iter()
        .skip(1)
        .filter_map(|part| Some(format!("{} {}", part.label.trim(), shown(part.median()?))))
        .collect();
    Ok(format!("medians of its parts in us: {}", parts.join(", ")))
}

fn pause(paused: &Loops, unpaused: &Loops) -> Result<Found> {
    let series = paused.span.breakdown("")?;
    let pause = series[1].clone();
    let (round_us, alone_us) = (paused.rounds_us.median(), unpaused.rounds_us.median());
    // Kicks that join a sync under way make epochs longer than rounds.
    let rounds_a_sync = ratio(Some(paused.kicks as f64), Some(paused.span.counters.syncs as f64));
    let lost_us = round_us
        .zip(alone_us)
        .zip(rounds_a_sync)
        .map(|((with, without), rounds)| (with - without) * rounds);
    let or_none = |value: Option<f64>| value.map_or("-".into(), shown);
    let mut found = Found::from(pause.median())
        .note(format!(
            "pipelined; guest time lost an epoch, write faults and exits included: {} us (a round of 100 \
             pages takes it {} us, unprotected {} us; {} rounds an epoch, {} pages a sync)",
            or_none(lost_us),
            or_none(round_us),
            or_none(alone_us),
            or_none(rounds_a_sync),
            or_none(paused.pages()),
        ))
        .note(parts(&paused.span)?);
    found.series = series;
    found.series.swap(0, 1);
    Ok(found)
}

fn rate(fast: &Loops, lockstep: &Loops) -> Result<Found> {
    let or_none = |value: Option<f64>| value.map_or("-".into(), shown);
    let found = Found::from(fast.rates.median())
        .note(format!(
            "pipelined, {} pages a sync; lockstep: {} syncs a second",
            or_none(fast.pages()),
            or_none(lockstep.rates.median())
        ))
        .note(parts(&fast.span)?)
        .with(fast.rates.series("syncs a second, pipelined", "1/s"))
        .with(lockstep.rates.series("syncs a second, lockstep", "1/s"));
    Ok(found)
}
