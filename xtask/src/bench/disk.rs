//! What the guest's disk loses by protection: an image on each host, one image that both see,
//! and no protection.

use anyhow::{Context, Result, bail};

use super::rows::{Found, RowKind, Target, shown};
use super::service::Caller;
use super::stats::{Samples, ratio};
use super::status::Span;
use super::vm::{Vm, VmSpec};
use super::{Bench, Measured};
use crate::demo::pair::Side;
use crate::proof::resp::Reply;

/// Loads of the guest (`DISKLOOP`), and the rows.
const LOADS: [(&str, RowKind); 4] = [
    ("randwrite", shown_only("disk_random_write")),
    ("seqwrite", shown_only("disk_sequential_write")),
    ("fsync", shown_only("disk_fsync")),
    ("read", shown_only("disk_read")),
];
/// Length of a load, in seconds.
const SLICE_S: u32 = 1;

const fn shown_only(name: &'static str) -> RowKind {
    RowKind {
        name,
        unit: "ratio",
        target: Target::Shown,
    }
}

/// The rows, in order.
pub fn kinds() -> Vec<RowKind> {
    LOADS.iter().map(|(_, kind)| *kind).collect()
}

/// One load on one VM.
#[derive(Default)]
struct Loaded {
    /// Requests a second, of each slice.
    rates: Samples,
    requests: u64,
    request_bytes: u64,
    span: Span,
}

impl Loaded {
    fn run(&mut self, vm: &Vm<'_>, caller: &mut Caller, load: &str) -> Result<()> {
        let before = vm.status(Side::A)?;
        let reply = caller.ask(&["DISKLOOP", load, &SLICE_S.to_string()])?;
        let after = vm.status(Side::A)?;
        let Reply::Bulk(Some(text)) = reply else {
            bail!("the guest answered DISKLOOP by {reply:?}");
        };
        let [requests, bytes, elapsed_us] = report(&String::from_utf8_lossy(&text))?;
        self.rates.push(requests as f64 * 1e6 / elapsed_us.max(1) as f64);
        self.requests += requests;
        self.request_bytes = bytes;
        self.span.add(&before, &after);
        Ok(())
    }

    fn shown(&self) -> String {
        let or_none = |value: Option<f64>| value.map_or("-".into(), shown);
        let rate = self.rates.median();
        let mib = rate.map(|rate| rate * self.request_bytes as f64 / f64::from(1 << 20));
        format!(
            "{} requests/s of {} bytes, {} MiB/s",
            or_none(rate),
            self.request_bytes,
            or_none(mib)
        )
    }

    fn wire(&self) -> String {
        let each =
            |count: u64| ratio(Some(count as f64), Some(self.requests as f64)).map_or("-".into(), shown);
        format!(
            "{} bytes on the wire and {} syncs a request",
            each(self.span.counters.wire_bytes),
            each(self.span.counters.syncs)
        )
    }
}

/// Requests, bytes of each, and microseconds.
fn report(text: &str) -> Result<[u64; 3]> {
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.parse().ok())
            .with_context(|| format!("the guest's report lacks `{name}`: {text}"))
    };
    Ok([field("requests")?, field("bytes")?, field("elapsed_us")?])
}

/// Measures the rows.
pub fn measure(bench: &Bench) -> Result<Measured> {
    let replicated = VmSpec::protected("pipelined");
    let shared = VmSpec {
        replicated: None,
        ..VmSpec::protected("pipelined")
    };
    let specs = [replicated, shared, VmSpec::unprotected()];
    let start = |(number, spec): (usize, &VmSpec)| Vm::start(&bench.place, number, &bench.program, spec);
    let vms: Vec<Vm<'_>> = specs.iter().enumerate().map(start).collect::<Result<_>>()?;
    let mut callers: Vec<Caller> = vms.iter().map(Vm::caller).collect::<Result<_>>()?;
    let mut loads: [[Loaded; 3]; LOADS.len()] = Default::default();
    for _ in 0..bench.pace.rounds {
        for ((load, _), loaded) in LOADS.iter().zip(&mut loads) {
            for ((vm, caller), loaded) in vms.iter().zip(&mut callers).zip(loaded) {
                loaded.run(vm, caller, load)?;
            }
        }
    }
    let found = loads.iter().map(|[replicated, shared, alone]| {
        Found::from(ratio(replicated.rates.median(), alone.rates.median()))
            .note(format!(
                "replicated: {}; {}",
                replicated.shown(),
                replicated.wire()
            ))
            .note(format!("shared: {}; {}", shared.shown(), shared.wire()))
            .note(format!("unprotected: {}", alone.shown()))
            .with(replicated.rates.series("requests a second, replicated", "1/s"))
            .with(shared.rates.series("requests a second, shared", "1/s"))
            .with(alone.rates.series("requests a second, unprotected", "1/s"))
    });
    Ok(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_report_is_read() {
        assert_eq!(
            report("requests:7\nbytes:4096\nelapsed_us:1000\n").unwrap(),
            [7, 4096, 1000]
        );
        assert!(
            report("requests:7\n")
                .unwrap_err()
                .to_string()
                .contains("`bytes`")
        );
    }
}
