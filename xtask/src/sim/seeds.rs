//! Runs from seeds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kemari_sync::Fault;
use kemari_sync::sim::{Outcome, Summary, run as run_seed, trace};

use super::Options;

pub(super) fn run(options: &Options, fault: Option<Fault>) -> bool {
    let begin = Instant::now();
    let summary = match options.trace {
        true => {
            let (outcome, lines) = trace(options.seed, fault);
            lines.iter().for_each(|line| println!("{line}"));
            let mut summary = Summary::default();
            add(&mut summary, outcome);
            summary
        }
        false => run_side_by_side(options.seed, options.seeds, fault),
    };
    report(&summary, fault, begin.elapsed().as_secs_f64())
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
    super::print_counts("invariants exercised", &summary.exercised);
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
    println!(
        "{runs} runs in {seconds:.1} s ({:.0} a minute): {takeovers} takeovers, {commits} commits, {events} \
         events",
        *runs as f64 * 60.0 / seconds.max(0.001)
    );
    let is_good = super::conclude(violation.is_some(), fault.is_some());
    super::print_line(&serde_json::json!({
        "runs": runs, "seconds": seconds, "takeovers": takeovers, "commits": commits, "events": events,
        "exercised": super::by_name(&summary.exercised),
        "broken": violation.map(|(seed, violation)| {
            serde_json::json!({ "seed": seed, "invariant": format!("{:?}", violation.invariant) })
        }),
    }));
    is_good
}

fn with(fault: Option<Fault>) -> String {
    fault.map_or(String::new(), |fault| format!(" --fault {fault:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_found() {
        let summary = run_side_by_side(0, 2000, Some(Fault::ReleaseBeforeAck));
        assert!(summary.failed.is_some());
        assert!(super::super::named("NoSuchFault").is_err());
    }

    #[test]
    fn every_seed_is_run_once() {
        assert_eq!(run_side_by_side(0, 10, None).runs, 10);
    }
}
