//! What a drill costs: for how long it holds the secondary up to begin,
//! and how much slower syncs are beside it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::rows::{Found, RowKind, Target, shown};
use super::stats::{Samples, ratio};
use super::upkeep::{LARGE_MIB, available_mib, largest_that_fits};
use super::vm::{Vm, VmSpec};
use super::{Bench, Measured};
use crate::demo::pair::Side;
use crate::tools::wait_for;

const SYNCS: RowKind = RowKind {
    name: "drill_syncs_ratio",
    unit: "ratio",
    target: Target::AtLeast(0.8),
};
const STANDSTILL: RowKind = RowKind {
    name: "drill_standstill_us",
    unit: "us",
    target: Target::AtMost(50_000.0),
};
/// Memory of the small guest, in MiB.
const SMALL_MIB: u32 = 64;
/// The guests dirty pages of an area of so many, ...
const AREA_PAGES: u32 = 1024;
/// ... so many for each sync.
const PAGES: u32 = 10;
/// A guest's loop of kicks, and a drill beside it, last so long, in seconds.
const SLICE_S: u32 = 2;
/// Until the status has a drill that is over.
const SHOWN_MAX: Duration = Duration::from_secs(5);

/// The rows, in order.
pub fn kinds() -> Vec<RowKind> {
    vec![SYNCS, STANDSTILL]
}

/// Measures the rows.
pub fn measure(bench: &Bench) -> Result<Measured> {
    let large_mib = largest_that_fits(available_mib()?)?;
    let small = drilled(bench, 0, SMALL_MIB)?;
    let large = drilled(bench, 1, large_mib)?;
    let mut syncs = Found::from(small.ratio());
    let mut standstill = Found::default();
    let mut longest: f64 = 0.0;
    for (mib, seen) in [(SMALL_MIB, &small), (large_mib, &large)] {
        let worst = seen.standstill_us.percentiles(&[100.0]).first().copied();
        let worst = worst.with_context(|| format!("no drill of {mib} MiB has begun"))?;
        longest = longest.max(worst);
        syncs = syncs.note(format!(
            "{mib} MiB: {} syncs/s alone, {} beside a drill, medians of {}",
            seen.alone.median().map_or("-".into(), shown),
            seen.beside.median().map_or("-".into(), shown),
            seen.alone.len()
        ));
        standstill = standstill.note(format!(
            "{mib} MiB: median {} us, at most {} us",
            seen.standstill_us.median().map_or("-".into(), shown),
            shown(worst)
        ));
        if mib == large_mib && large_mib < LARGE_MIB {
            standstill = standstill.note(format!(
                "{LARGE_MIB} MiB do not fit into this machine's free memory"
            ));
        }
    }
    standstill.value = Some(longest);
    Ok(vec![syncs, standstill])
}

/// What was seen of the drills of one VM.
#[derive(Default)]
struct Seen {
    /// Syncs in a second, by slice.
    alone: Samples,
    beside: Samples,
    standstill_us: Samples,
}

impl Seen {
    fn ratio(&self) -> Option<f64> {
        ratio(self.beside.median(), self.alone.median())
    }
}

fn drilled(bench: &Bench, number: usize, memory_mib: u32) -> Result<Seen> {
    let spec = VmSpec {
        memory_mib,
        cmdline: format!("pattern={AREA_PAGES}"),
        ..VmSpec::raw("lockstep")
    };
    let vm = Vm::start(&bench.place, number, &bench.program, &spec)?;
    let (mut seen, mut last_at) = (Seen::default(), 0);
    for _ in 0..bench.pace.rounds {
        seen.alone.push(syncs_per_s(&vm)?);
        let mut order = vm.order(Side::B, "drill");
        let seconds = SLICE_S.to_string();
        let drill = order.args(["--seconds", &seconds]).stdout(Stdio::piped());
        let drill = drill.spawn().context("`kemari drill` cannot be started")?;
        seen.beside.push(syncs_per_s(&vm)?);
        let output = drill.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "a drill did not pass: {said}");
        // It is shown a moment later.
        let drill = wait_for("the outcome of the drill in the status", SHOWN_MAX, || {
            let drill = vm.status(Side::B)?.drill;
            Ok(drill.filter(|drill| drill.at != last_at))
        })?;
        last_at = drill.at;
        seen.standstill_us.push(drill.standstill_us as f64);
    }
    Ok(seen)
}

fn syncs_per_s(vm: &Vm<'_>) -> Result<f64> {
    let before = vm.status(Side::A)?.counters.syncs;
    let kicked = vm.caller()?.kick_loop(PAGES, SLICE_S)?;
    let syncs = vm.status(Side::A)?.counters.syncs - before;
    Ok(syncs as f64 * 1e6 / kicked.elapsed_us as f64)
}
