//! What clients of the key-value service notice of the protection.

use std::time::Duration;

use anyhow::Result;

use super::rows::{Found, RowKind, Target, shown};
use super::service::{Clients, Mix, Slice};
use super::stats::{Samples, ratio};
use super::status::{Histogram, Span};
use super::vm::{Vm, VmSpec};
use super::{Bench, Measured};
use crate::demo::pair::Side;

const RATIO_1: RowKind = RowKind {
    name: "rps_ratio_1",
    unit: "ratio",
    target: Target::AtLeast(0.6),
};
const RATIO_64: RowKind = RowKind {
    name: "rps_ratio_64",
    unit: "ratio",
    target: Target::AtLeast(0.8),
};
const GAIN: RowKind = RowKind {
    name: "latency_gain_over_interval_1",
    unit: "ratio",
    target: Target::AtLeast(50.0),
};
const WIRE: RowKind = RowKind {
    name: "wire_ratio_delta",
    unit: "ratio",
    target: Target::AtMost(0.2),
};
/// The interval to compare with, in ms.
const INTERVAL_MS: i64 = 25;
/// Clients of the row with many.
const MANY: usize = 64;
/// Bytes of a page.
const PAGE_BYTES: f64 = 4096.0;

/// The rows, in order.
pub fn kinds() -> Vec<RowKind> {
    vec![RATIO_1, RATIO_64, GAIN]
}

/// The row of [`measure_wire`].
pub fn wire_kinds() -> Vec<RowKind> {
    vec![WIRE]
}

/// Slices of clients' work on one VM.
#[derive(Default)]
pub struct Work {
    /// Answers a second of each slice.
    pub rates: Samples,
    /// What each answer took, in us.
    pub latencies_us: Samples,
}

impl Work {
    /// Adds a slice.
    pub fn add(&mut self, mut slice: Slice) {
        self.rates.push(slice.rate());
        self.latencies_us.append(&mut slice.latencies_us);
    }

    fn run(&mut self, clients: &mut Clients, duration: Duration) -> Result<()> {
        self.add(clients.work(duration, Mix::Half)?);
        Ok(())
    }

    /// The absolute values, as people read them.
    pub fn shown(&self) -> String {
        let or_none = |value: Option<f64>| value.map_or("-".into(), shown);
        let at = self.latencies_us.percentiles(&[99.0]);
        format!(
            "{} answers/s, a reply after {} us (99 %: {} us)",
            or_none(self.rates.median()),
            or_none(self.latencies_us.median()),
            or_none(at.first().copied())
        )
    }
}

/// Protected over unprotected, with the absolute values.
pub fn rate_ratio(protected: &Work, alone: &Work, how: &str) -> Found {
    Found::from(ratio(protected.rates.median(), alone.rates.median()))
        .note(format!("{how}: {}", protected.shown()))
        .note(format!("unprotected: {}", alone.shown()))
        .with(protected.latencies_us.series(&format!("reply, {how}"), "us"))
        .with(alone.latencies_us.series("reply, unprotected", "us"))
}

/// What a sync was for, and where its time went, while this work was done.
pub fn per_sync(syncs: &Span, work: &Work) -> String {
    let or_none = |value: Option<f64>| value.map_or("-".into(), shown);
    let each = |count: f64| or_none(ratio(Some(count), Some(syncs.counters.syncs as f64)));
    let timings = &syncs.timings;
    let median = |histogram: &Histogram| or_none(histogram.series("").median());
    format!(
        "a sync has {} answers, {} dirty pages and {} bytes on the wire; it takes {} us: a pause of {} \
         (states {}, dirty log {}, copy and encode {}), send {}, wait for the ack {}",
        each(work.latencies_us.len() as f64),
        each(syncs.counters.pages as f64),
        each(syncs.counters.wire_bytes as f64),
        median(&timings.sync_us),
        median(&timings.pause_us),
        median(&timings.state_us),
        median(&timings.dirty_us),
        median(&timings.encode_us),
        median(&timings.send_us),
        median(&timings.ack_us),
    )
}

/// Measures the rows.
pub fn measure(bench: &Bench) -> Result<Measured> {
    let start = |number, spec: VmSpec| Vm::start(&bench.place, number, &bench.program, &spec);
    let ours = start(0, VmSpec::protected("pipelined"))?;
    let alone = start(1, VmSpec::unprotected())?;
    let interval = start(2, VmSpec::protected("interval").with("interval_ms", INTERVAL_MS))?;

    let at_once = start(3, VmSpec::protected("pipelined").with("gather", "off"))?;

    let mut one = [ours.clients(1)?, alone.clients(1)?, interval.clients(1)?];
    let mut many = [ours.clients(MANY)?, alone.clients(MANY)?, at_once.clients(MANY)?];
    let (mut work_one, mut work_many): ([Work; 3], [Work; 3]) = Default::default();
    let (mut syncs_one, mut syncs_many) = (Span::default(), Span::default());
    for _ in 0..bench.pace.rounds {
        let before = ours.status(Side::A)?;
        for (clients, work) in one.iter_mut().zip(&mut work_one) {
            work.run(clients, bench.pace.slice)?;
        }
        let between = ours.status(Side::A)?;
        syncs_one.add(&before, &between);
        for (clients, work) in many.iter_mut().zip(&mut work_many) {
            work.run(clients, bench.pace.slice)?;
        }
        syncs_many.add(&between, &ours.status(Side::A)?);
    }

    let [ours, alone, interval] = &work_one;
    let [ours_many, alone_many, at_once_many] = &work_many;
    let gain = ratio(interval.latencies_us.median(), ours.latencies_us.median());
    let gain = Found::from(gain)
        .note(format!("pipelined: {}", ours.shown()))
        .note(format!("every {INTERVAL_MS} ms: {}", interval.shown()))
        .with(ours.latencies_us.series("reply, pipelined", "us"))
        .with(interval.latencies_us.series("reply, interval of 25 ms", "us"));
    Ok(vec![
        rate_ratio(ours, alone, "pipelined, 1 connection").note(per_sync(&syncs_one, ours)),
        rate_ratio(ours_many, alone_many, "pipelined, 64 connections")
            .note(per_sync(&syncs_many, ours_many))
            .note(format!("with `gather = \"off\"`: {}", at_once_many.shown())),
        gain,
    ])
}

/// What the pages of this load need on the wire if they are encoded against what the secondary has.
pub fn measure_wire(bench: &Bench) -> Result<Measured> {
    let spec = VmSpec::protected("pipelined").with("delta", "on");
    let vm = Vm::start(&bench.place, 0, &bench.program, &spec)?;
    let mut clients = vm.clients(1)?;
    let (mut span, mut work) = (Span::default(), Work::default());
    for _ in 0..bench.pace.rounds {
        let before = vm.status(Side::A)?;
        work.run(&mut clients, bench.pace.slice)?;
        span.add(&before, &vm.status(Side::A)?);
    }
    let counters = span.counters;
    let per_sync =
        |count: u64| ratio(Some(count as f64), Some(counters.syncs as f64)).map_or("-".into(), shown);
    let on_wire = ratio(
        Some(counters.wire_bytes as f64),
        Some(counters.pages as f64 * PAGE_BYTES),
    );
    let mut found = Found::from(on_wire).note(format!(
        "1 connection; a sync has {} dirty pages and {} bytes on the wire, states of processor and devices \
         among them; {}",
        per_sync(counters.pages),
        per_sync(counters.wire_bytes),
        work.shown()
    ));
    found.series = span.breakdown("")?;
    Ok(vec![found])
}
