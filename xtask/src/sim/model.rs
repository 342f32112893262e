//! The consent rules, explored.

use std::time::Instant;

use anyhow::Result;
use kemari_sync::model::{Bounds, Removed, explore};

use super::Options;

/// Different states after which an exploration ends undecided: about 20 GB of memory.
const STATES_MAX: usize = 40_000_000;

pub(super) fn run(options: &Options) -> Result<bool> {
    let removed = match options.fault.as_deref() {
        None => Removed::Nothing,
        Some("RightInMemory") => Removed::RightInMemory,
        Some("StateAtTheWin") => Removed::StateAtTheWin,
        Some(name) => Removed::Mechanism(super::named(name)?),
    };
    let bounds = Bounds {
        blows_max: options.blows,
        outputs_max: options.outputs,
        depth_max: options.depth,
        states_max: STATES_MAX,
        protected: options.protected,
    };
    let begin = Instant::now();
    let result = explore(bounds, removed);
    if let Some(violation) = &result.violation {
        violation.trace.iter().for_each(|line| println!("{line}"));
        println!("{:?} is broken: {}", violation.rule, violation.text);
    }
    super::print_counts("rules exercised", &result.exercised);
    println!(
        "{} states by {} moves, up to {} moves deep, in {:.1} s",
        result.states,
        result.moves,
        result.depth,
        begin.elapsed().as_secs_f64()
    );
    let is_broken = result.violation.is_some();
    if !is_broken && !result.complete {
        println!("the depth or the number of states ended it: beyond that nothing is known");
    }
    let is_good = super::conclude(is_broken, removed != Removed::Nothing);
    super::print_line(&serde_json::json!({
        "states": result.states, "moves": result.moves, "depth": result.depth, "complete": result.complete,
        "exercised": super::by_name(&result.exercised), "broken": is_broken,
    }));
    Ok(is_good)
}
