//! What protection costs with the guest's size, and when nothing happens.

use std::thread::sleep;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::rows::{Found, RowKind, Target, shown};
use super::stats::ratio;
use super::status::Span;
use super::sync::parts;
use super::vm::{Vm, VmSpec};
use super::{Bench, Measured};
use crate::demo::pair::Side;

const GROWTH: RowKind = RowKind {
    name: "ram_growth",
    unit: "ratio",
    target: Target::AtMost(1.2),
};
const IDLE: RowKind = RowKind {
    name: "idle_cpu",
    unit: "cores",
    target: Target::AtMost(0.03),
};
/// Memory of the small guest, in MiB.
const SMALL_MIB: u32 = 128;
/// Memory of a large guest, in MiB, if it fits.
pub const LARGE_MIB: u32 = 8192;
/// What must stay free beside the large guest's copy: its primary touches little, its secondary all.
const RESERVE_MIB: u64 = 2048;
/// Both guests dirty pages of an area of so many: what they touch must not differ.
const AREA_PAGES: u32 = 8192;
/// Dirty pages of a sync.
const PAGES: u32 = 100;
/// Pairs of guests, one after the other: where in a machine's memory a process gets its own makes a
/// difference to it of up to a third, for as long as it runs.
const PAIRS: u32 = 3;
/// A guest's loop of kicks lasts so long, in seconds.
const SLICE_S: u32 = 1;

/// The row of [`measure_growth`].
pub fn growth_kinds() -> Vec<RowKind> {
    vec![GROWTH]
}

/// The row of [`measure_idle`].
pub fn idle_kinds() -> Vec<RowKind> {
    vec![IDLE]
}

/// Whether a sync costs more if the guest is larger.
pub fn measure_growth(bench: &Bench) -> Result<Measured> {
    let large_mib = largest_that_fits(available_mib()?)?;
    let spec = |memory_mib| VmSpec {
        memory_mib,
        cmdline: format!("pattern={AREA_PAGES}"),
        ..VmSpec::raw("lockstep")
    };
    let start = |number, memory_mib| Vm::start(&bench.place, number, &bench.program, &spec(memory_mib));
    // A machine that is itself a guest gets memory of its hypervisor's when it first touches it, and slowly:
    // once before.
    let first_s = start(0, large_mib)?.protect_s;
    let mut spans: [Span; 2] = Default::default();
    let mut protect_s = [None; 2];
    for pair in 0..PAIRS as usize {
        let vms = [start(2 * pair + 1, SMALL_MIB)?, start(2 * pair + 2, large_mib)?];
        protect_s = vms.each_ref().map(|vm| vm.protect_s);
        for _ in 0..bench.pace.rounds.div_ceil(PAIRS) {
            for (vm, span) in vms.iter().zip(&mut spans) {
                let before = vm.status(Side::A)?;
                vm.caller()?.kick_loop(PAGES, SLICE_S)?;
                span.add(&before, &vm.status(Side::A)?);
            }
        }
    }
    let [small, large] = [(SMALL_MIB, &spans[0]), (large_mib, &spans[1])].map(|(mib, span)| {
        let series = span.breakdown(&format!("{mib} MiB: "));
        series.map(|series| series[0].clone())
    });
    let (small, large) = (small?, large?);
    let or_none = |value: Option<f64>| value.map_or("-".into(), shown);
    let mut found = Found::from(ratio(large.median(), small.median()))
        .note(format!(
            "{PAGES} dirty pages: a sync takes {} us with {SMALL_MIB} MiB, {} us with {large_mib} MiB",
            or_none(small.median()),
            or_none(large.median())
        ))
        .note(format!(
            "from the start of the secondary to protection: {} s with {SMALL_MIB} MiB, {} s with {large_mib} \
             MiB, nearly all of it untouched; {} s for a guest before, where this machine may have touched \
             its own memory for the first time",
            or_none(protect_s[0]),
            or_none(protect_s[1]),
            or_none(first_s)
        ));
    for (mib, span) in [(SMALL_MIB, &spans[0]), (large_mib, &spans[1])] {
        found = found.note(format!("{mib} MiB: {}", parts(span)?));
    }
    if large_mib < LARGE_MIB {
        found = found.note(format!(
            "{LARGE_MIB} MiB do not fit into this machine's free memory"
        ));
    }
    Ok(vec![found.with(small).with(large)])
}

/// The largest guest, halving from [`LARGE_MIB`], whose copy fits.
pub fn largest_that_fits(available_mib: u64) -> Result<u32> {
    let mut mib = LARGE_MIB;
    while mib >= 4 * SMALL_MIB {
        if u64::from(mib) + RESERVE_MIB <= available_mib {
            return Ok(mib);
        }
        mib /= 2;
    }
    bail!(
        "only {available_mib} MiB of this machine's memory are free: too little for a guest to compare with"
    )
}

/// Memory that this machine has left, in MiB.
pub fn available_mib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo cannot be read")?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?
            .split_ascii_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    Ok(kib.context("/proc/meminfo does not tell what is available")? / 1024)
}

/// Processor time of both sides while the guest does nothing.
pub fn measure_idle(bench: &Bench) -> Result<Measured> {
    let vm = Vm::start(&bench.place, 0, &bench.program, &VmSpec::protected("pipelined"))?;
    // What the boot and the first copy have left to do.
    sleep(bench.pace.slice);
    let used = || -> Result<[f64; 2]> { Ok([vm.processor_ms(Side::A)?, vm.processor_ms(Side::B)?]) };
    let (begin, before, first) = (Instant::now(), used()?, vm.status(Side::A)?);
    sleep(bench.pace.idle);
    let (elapsed_ms, after) = (begin.elapsed().as_secs_f64() * 1000.0, used()?);
    let mut span = Span::default();
    span.add(&first, &vm.status(Side::A)?);
    let [primary, secondary] = [0, 1].map(|side| (after[side] - before[side]) / elapsed_ms);
    Ok(vec![Found::from(Some(primary + secondary)).note(format!(
        "over {} s: primary {}, secondary {}; {} syncs in that time",
        shown(elapsed_ms / 1000.0),
        shown(primary),
        shown(secondary),
        span.counters.syncs
    ))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_guest_is_as_large_as_memory_allows() {
        assert_eq!(largest_that_fits(23_000).unwrap(), 8192);
        assert_eq!(largest_that_fits(10_000).unwrap(), 4096);
        assert_eq!(largest_that_fits(2_600).unwrap(), 512);
        assert!(largest_that_fits(2_000).is_err());
        assert!(available_mib().unwrap() > 0);
    }
}
