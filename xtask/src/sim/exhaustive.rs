//! Crashes at every step and at every pair of steps.

use std::time::Instant;

use kemari_sync::Fault;
use kemari_sync::sim::{Coverage, Scenario, ScenarioDisk, crash_everywhere};

pub(super) fn run(pairs_stride: u64, fault: Option<Fault>) -> bool {
    let mut total = Coverage::default();
    let begin = Instant::now();
    for scenario in Scenario::ALL {
        let here = Instant::now();
        let coverage = crash_everywhere(scenario, pairs_stride, fault);
        println!(
            "{:?}, {}: {} steps; {} runs with a crash at one, {} with crashes at two, in {:.1} s",
            scenario.mode,
            match scenario.disk {
                ScenarioDisk::None => "without a disk",
                ScenarioDisk::Shared => "with a shared disk",
                ScenarioDisk::Replicated => "with a replicated disk",
            },
            coverage.steps,
            coverage.singles,
            coverage.pairs,
            here.elapsed().as_secs_f64(),
        );
        total.add(coverage);
        if total.failed.is_some() {
            break;
        }
    }
    report(&total, fault, begin.elapsed().as_secs_f64())
}

fn report(total: &Coverage, fault: Option<Fault>, seconds: f64) -> bool {
    super::print_counts("crashes by step", &total.crashed_at);
    super::print_counts("invariants exercised", &total.exercised);
    if let Some((scenario, crashes, violation)) = &total.failed {
        violation.trace.iter().for_each(|line| println!("{line}"));
        println!(
            "{scenario:?} with {crashes:?} breaks {:?}: {}",
            violation.invariant, violation.text
        );
    }
    let runs = total.singles + total.pairs;
    println!(
        "{} steps, each crashed at twice; {runs} runs, {} takeovers; {:.0} runs a minute",
        total.steps,
        total.takeovers,
        runs as f64 * 60.0 / seconds,
    );
    let is_good = super::conclude(total.failed.is_some(), fault.is_some());
    super::print_line(&serde_json::json!({
        "steps": total.steps, "runs": runs, "seconds": seconds, "takeovers": total.takeovers,
        "exercised": super::by_name(&total.exercised), "broken": total.failed.is_some(),
    }));
    is_good
}
