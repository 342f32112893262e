//! `cargo xtask sim`: the mechanism in a simulated world that crashes it, from seeds.
//!
//! The simulation brings the deliberate faults with it, and those must not slip into other programs that cargo builds
//! together with this one. So it is a feature: without it the command calls itself once more, with the feature and fully
//! optimised.

use anyhow::Result;
use clap::Args;

/// Which runs.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    pub seeds: u64,
    /// The first seed; with --seeds 1 a run is replayed
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Takes a rule out of the mechanism, by its name in kemari-sync/src/faults.rs: a violation must be found
    #[arg(long)]
    pub fault: Option<String>,
    /// Prints the trace of a single run, whether or not a rule was broken
    #[arg(long)]
    pub trace: bool,
}

/// Runs the simulation; whether the mechanism kept all rules (or, with a fault, whether that was noticed).
#[cfg(not(feature = "sim"))]
pub fn sim(options: &Options) -> Result<bool> {
    let mut command = crate::tools::cargo();
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "xtask",
        "--features",
        "sim",
        "--",
        "sim",
    ]);
    command.args([
        "--seeds",
        &options.seeds.to_string(),
        "--seed",
        &options.seed.to_string(),
    ]);
    command.args(options.fault.iter().flat_map(|fault| ["--fault", fault]));
    command.args(options.trace.then_some("--trace"));
    Ok(anyhow::Context::context(command.status(), "cargo cannot be started")?.success())
}

/// Runs the simulation; whether the mechanism kept all rules (or, with a fault, whether that was noticed).
#[cfg(feature = "sim")]
pub fn sim(options: &Options) -> Result<bool> {
    with_simulation::run(options)
}

#[cfg(feature = "sim")]
mod with_simulation {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    use anyhow::{Context, Result};
    use kemari_sync::Fault;
    use kemari_sync::sim::{Outcome, Summary, run as run_seed, trace};

    use super::Options;

    pub(super) fn run(options: &Options) -> Result<bool> {
        let fault = options.fault.as_deref().map(named).transpose()?;
        if options.trace {
            let (outcome, lines) = trace(options.seed, fault);
            lines.iter().for_each(|line| println!("{line}"));
            return Ok(report(
                &Summary {
                    runs: 1,
                    ..of(vec![outcome])
                },
                fault,
                0.0,
            ));
        }
        let begin = Instant::now();
        let summary = run_side_by_side(options.seed, options.seeds, fault);
        Ok(report(&summary, fault, begin.elapsed().as_secs_f64()))
    }

    fn named(name: &str) -> Result<Fault> {
        Fault::from_name(name).with_context(|| {
            let names: Vec<String> = Fault::ALL.iter().map(|fault| format!("{fault:?}")).collect();
            format!("there is no fault `{name}`; there are: {}", names.join(", "))
        })
    }

    /// Runs seeds on all processors until they are done or one breaks a rule.
    fn run_side_by_side(first: u64, count: u64, fault: Option<Fault>) -> Summary {
        let next = AtomicU64::new(0);
        let summary = Mutex::new(Summary::default());
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                let outcome = run_seed(first.wrapping_add(number), fault);
                let broken = outcome.violation.is_some();
                add(
                    &mut summary.lock().unwrap_or_else(|poisoned| poisoned.into_inner()),
                    outcome,
                );
                if broken {
                    // The others end with what they have begun.
                    next.store(count, Ordering::Relaxed);
                    return;
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        summary
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn of(outcomes: Vec<Outcome>) -> Summary {
        let mut summary = Summary::default();
        outcomes
            .into_iter()
            .for_each(|outcome| add(&mut summary, outcome));
        summary
    }

    fn add(summary: &mut Summary, outcome: Outcome) {
        summary.runs += 1;
        summary.takeovers += outcome.takeovers;
        summary.commits += outcome.commits;
        summary.events += outcome.events;
        for (invariant, times) in &outcome.exercised {
            *summary.exercised.entry(*invariant).or_default() += times;
        }
        let earlier = |known: &Outcome| outcome.seed < known.seed;
        if outcome.violation.is_some() && summary.failed.as_ref().is_none_or(earlier) {
            summary.failed = Some(outcome);
        }
    }

    fn report(summary: &Summary, fault: Option<Fault>, seconds: f64) -> bool {
        let violation = summary
            .failed
            .as_ref()
            .and_then(|failed| Some((failed.seed, failed.violation.as_ref()?)));
        if let Some((seed, violation)) = violation {
            violation.trace.iter().for_each(|line| println!("{line}"));
            println!("seed {seed} breaks {:?}: {}", violation.invariant, violation.text);
            println!(
                "once more: cargo xtask sim --seeds 1 --seed {seed}{}",
                with(fault)
            );
        }
        let Summary {
            runs,
            takeovers,
            commits,
            events,
            ..
        } = summary;
        println!("{runs} runs in {seconds:.1} s: {takeovers} takeovers, {commits} commits, {events} events");
        let exercised: BTreeMap<String, u64> = summary
            .exercised
            .iter()
            .map(|(invariant, times)| (format!("{invariant:?}"), *times))
            .collect();
        println!("invariants exercised: {exercised:?}");
        match (fault, violation.is_some()) {
            (None, false) => println!("no rule was broken"),
            (Some(_), true) => println!("the fault was found, as it must be"),
            (Some(_), false) => println!("the fault was NOT found"),
            (None, true) => {}
        }
        violation.is_some() == fault.is_some()
    }

    fn with(fault: Option<Fault>) -> String {
        fault.map_or(String::new(), |fault| format!(" --fault {fault:?}"))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn options(seeds: u64, fault: Option<&str>) -> Options {
            Options {
                seeds,
                seed: 0,
                fault: fault.map(str::to_owned),
                trace: false,
            }
        }

        #[test]
        fn a_fault_is_found_and_an_unknown_one_is_refused() {
            assert!(run(&options(2000, Some("ReleaseBeforeAck"))).unwrap());
            assert!(run(&options(1, Some("NoSuchFault"))).is_err());
        }

        #[test]
        fn every_seed_is_run_once() {
            assert_eq!(run_side_by_side(0, 10, None).runs, 10);
        }
    }
}
