//! How soon the guest runs on after its host's death.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::rows::{Found, RowKind, Target, shown};
use super::stats::Samples;
use super::vm::{RECONNECT_TIMEOUT_MS, SUSPICION_TIMEOUT_MS, Vm, VmSpec, takeover_ms};
use super::{Bench, Measured};
use crate::demo::pair::Side;

const RESET: RowKind = RowKind {
    name: "takeover_reset_ms",
    unit: "ms",
    target: Target::AtMost(20.0),
};
const SILENT: RowKind = RowKind {
    name: "takeover_silent_ms",
    unit: "ms",
    target: Target::AtMost(20.0),
};
/// Longest wait for a takeover.
const TAKEOVER_MAX: Duration = Duration::from_secs(20);
/// The guest syncs for so long before the cut. Its syncs also make the primary's last sign of life as young
/// as may be.
const BEFORE_CUT: Duration = Duration::from_millis(300);

/// The rows, in order.
pub fn kinds() -> Vec<RowKind> {
    vec![RESET, SILENT]
}

#[derive(Clone, Copy)]
enum Death {
    Reset,
    Silence,
}

/// Measures the rows.
pub fn measure(bench: &Bench) -> Result<Measured> {
    let mut samples: [Samples; 2] = Default::default();
    for _ in 0..bench.pace.takeovers {
        for (death, samples) in [Death::Reset, Death::Silence].into_iter().zip(&mut samples) {
            samples.push(once(bench, death)?);
        }
    }
    let [reset, silent] = samples;
    let found = |samples: &Samples, timeout_ms: u64, label: &str| {
        let worst = samples.percentiles(&[100.0]).first().copied();
        Found::from(samples.median())
            .note(format!(
                "beyond the {timeout_ms} ms of the time-out, from the primary's last sign of life to the \
                 guest's first instruction on the secondary; {} takeovers, the slowest {} ms",
                samples.len(),
                worst.map_or("-".into(), shown)
            ))
            .with(samples.series(label, "ms"))
    };
    Ok(vec![
        found(
            &reset,
            RECONNECT_TIMEOUT_MS,
            "takeover after a reset, beyond the time-out",
        ),
        found(
            &silent,
            SUSPICION_TIMEOUT_MS,
            "takeover after silence, beyond the time-out",
        ),
    ])
}

fn once(bench: &Bench, death: Death) -> Result<f64> {
    let mut vm = Vm::start(&bench.place, 0, &bench.program, &VmSpec::protected("pipelined"))?;
    let mut caller = vm.caller()?;
    caller.tell(&["KICKLOOP", "1", "60"])?;
    sleep(BEFORE_CUT);
    let timeout_ms = match death {
        Death::Reset => {
            vm.kill(Side::A)?;
            RECONNECT_TIMEOUT_MS
        }
        Death::Silence => {
            vm.freeze(Side::A)?;
            SUSPICION_TIMEOUT_MS
        }
    };
    let beyond_ms = takeover_ms(&vm, TAKEOVER_MAX)? - timeout_ms as f64;
    ensure!(
        beyond_ms > 0.0,
        "a takeover {} ms before its time-out is over cannot be right",
        -beyond_ms
    );
    Ok(beyond_ms)
}
