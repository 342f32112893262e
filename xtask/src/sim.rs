//! `cargo xtask sim`: the mechanism in a simulated world that crashes it: from seeds, at every step,
//! or explored.
//!
//! The simulation brings the deliberate faults with it, and those must not slip into other programs that
//! cargo builds together with this one. So it is a feature: without it the command calls itself once more,
//! with the feature and fully optimised.

#[cfg(feature = "sim")]
mod exhaustive;
#[cfg(feature = "sim")]
mod model;
#[cfg(feature = "sim")]
mod seeds;

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
    /// Crashes a short scenario at every step of either side, and at every pair of steps
    #[arg(long, conflicts_with_all = ["model", "trace"])]
    pub exhaustive: bool,
    /// With --exhaustive: takes one in so many pairs of steps; 0: none
    #[arg(long, default_value_t = 1, requires = "exhaustive")]
    pub stride: u64,
    /// Explores the consent rules: everything that may happen, breadth first
    #[arg(long, conflicts_with = "trace")]
    pub model: bool,
    /// With --model: most moves from the beginning
    #[arg(long, default_value_t = 1000, requires = "model")]
    pub depth: u32,
    /// With --model: most crashes, breaks, time-outs, lost answers and orders
    #[arg(long, default_value_t = 2, requires = "model")]
    pub blows: u8,
    /// With --model: most outputs of the guest
    #[arg(long, default_value_t = 1, requires = "model")]
    pub outputs: u8,
    /// With --model: begins with a protected VM instead of with its boot
    #[arg(long, requires = "model")]
    pub protected: bool,
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
    command.args(arguments(options));
    Ok(anyhow::Context::context(command.status(), "cargo cannot be started")?.success())
}

/// The same options on a command line.
#[cfg(not(feature = "sim"))]
fn arguments(options: &Options) -> Vec<String> {
    let value = |name: &str, value: &dyn ToString| [format!("--{name}"), value.to_string()];
    let mut all = Vec::new();
    all.extend(value("seeds", &options.seeds));
    all.extend(value("seed", &options.seed));
    all.extend(options.fault.iter().flat_map(|fault| value("fault", fault)));
    all.extend(options.trace.then(|| "--trace".to_owned()));
    if options.exhaustive {
        all.push("--exhaustive".to_owned());
        all.extend(value("stride", &options.stride));
    }
    if options.model {
        all.push("--model".to_owned());
        all.extend(value("depth", &options.depth));
        all.extend(value("blows", &options.blows));
        all.extend(value("outputs", &options.outputs));
        all.extend(options.protected.then(|| "--protected".to_owned()));
    }
    all
}

/// Runs the simulation; whether the mechanism kept all rules (or, with a fault, whether that was noticed).
#[cfg(feature = "sim")]
pub fn sim(options: &Options) -> Result<bool> {
    if options.model {
        return model::run(options);
    }
    let fault = options.fault.as_deref().map(named).transpose()?;
    match options.exhaustive {
        true => Ok(exhaustive::run(options.stride, fault)),
        false => Ok(seeds::run(options, fault)),
    }
}

#[cfg(feature = "sim")]
fn named(name: &str) -> Result<kemari_sync::Fault> {
    use kemari_sync::Fault;
    anyhow::Context::with_context(Fault::from_name(name), || {
        let names: Vec<String> = Fault::ALL.iter().map(|fault| format!("{fault:?}")).collect();
        format!("there is no fault `{name}`; there are: {}", names.join(", "))
    })
}

/// Says what was found; whether that is what had to be.
#[cfg(feature = "sim")]
fn conclude(is_broken: bool, has_fault: bool) -> bool {
    match (has_fault, is_broken) {
        (false, false) => println!("no rule was broken"),
        (true, true) => println!("the fault was found, as it must be"),
        (true, false) => println!("the fault was NOT found"),
        (false, true) => println!("a rule was BROKEN"),
    }
    is_broken == has_fault
}

/// The last line, for programs.
#[cfg(feature = "sim")]
fn print_line(line: &serde_json::Value) {
    println!("{line}");
}

#[cfg(feature = "sim")]
fn by_name<K: std::fmt::Debug>(
    counts: &std::collections::BTreeMap<K, u64>,
) -> std::collections::BTreeMap<String, u64> {
    let counts = counts.iter();
    counts
        .map(|(name, times)| (format!("{name:?}").trim_matches('"').to_owned(), *times))
        .collect()
}

/// How often each had something to judge, or was hit.
#[cfg(feature = "sim")]
fn print_counts<K: std::fmt::Debug>(title: &str, counts: &std::collections::BTreeMap<K, u64>) {
    println!("{title}:");
    for (name, times) in counts {
        println!("  {:<36} {times:>14}", format!("{name:?}").trim_matches('"'));
    }
}
