//! `cargo xtask weather`: what happens around a pair that is well by itself. Logs that are full, names that
//! nobody knows any more, TAPs that are gone, arbiters that are wiped, limits that are reached: on the real
//! program, with the bare guest, each host a network namespace.
//!
//! A case makes a pair of hosts of its own, lets something happen, and looks at it from outside: does exactly
//! one host serve the clients in the end, is every acknowledged write there, and was it true what
//! `kemari status --check` said? With `--kills` one VM lives through as many deaths of its primary, with
//! weather in between.

mod arbiter;
mod authority;
mod case;
mod clocks;
mod disks;
mod etcd;
mod judge;
mod kills;
mod limits;
mod link;
mod log;
mod mounts;
mod names;
mod pairs;
mod rehearsal;
mod setup;
mod signals;
mod squall;
mod taps;
mod terminal;
mod world;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::demo::keep;
use crate::packages::{self, CURL, ETCD, FAKETIME, IP, MKFS, OPENSSL};
use crate::tools::{build_bare_guest, build_kemari, run_quietly, target_dir};
use case::Case;
use world::{Programs, World};

/// Longest time of all quick cases together that is not said to be too long.
const QUICK_MAX: Duration = Duration::from_secs(90);

/// Which cases.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Only cases whose names contain this (may be repeated)
    #[arg(long = "case", value_name = "FILTER")]
    pub cases: Vec<String>,
    /// Only the few that are fast, for `cargo xtask test`
    #[arg(long)]
    pub quick: bool,
    /// Names the cases, and what happens in them, and runs none
    #[arg(long)]
    pub list: bool,
    /// Instead of the cases: kill the primary as often as this when `kemari status --check` says 0, with
    /// weather in between
    #[arg(long, value_name = "N")]
    pub kills: Option<u32>,
    /// With --kills: so many pairs side by side, each with a VM of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub pairs: u32,
    /// Kemari and the bare guest, which are built already
    #[arg(long, hide = true, num_args = 2)]
    pub programs: Vec<PathBuf>,
    /// Makes the load, and the weather of --kills, repeatable
    #[arg(long)]
    pub seed: Option<u64>,
}

impl Options {
    fn wants(&self, case: &Case) -> bool {
        let named = self.cases.is_empty() || self.cases.iter().any(|part| case.name.contains(part));
        named && (case.is_quick || !self.quick)
    }
}

/// What all cases have shown: the last line printed, as JSON.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    cases: u32,
    failed: u32,
    /// Cases after which nobody had the VM any more.
    lost_vm: u32,
    /// Cases in which protected and ready was said, and a takeover at that moment did not succeed.
    false_protected: u32,
    /// Takeovers and switchovers that succeeded.
    passed: u64,
    seconds: u64,
    seed: u64,
}

fn all_cases() -> Vec<Case> {
    let kinds = [
        log::CASES,
        names::CASES,
        taps::CASES,
        arbiter::CASES,
        limits::CASES,
        signals::CASES,
        link::CASES,
        disks::CASES,
        clocks::CASES,
        rehearsal::CASES,
    ];
    kinds.concat()
}

/// Runs the cases; whether all went as they should.
pub fn weather(options: &Options) -> Result<bool> {
    let cases: Vec<Case> = all_cases()
        .into_iter()
        .filter(|case| options.wants(case))
        .collect();
    if options.list {
        cases.iter().for_each(Case::print);
        return Ok(true);
    }
    mounts::become_private()?;
    packages::ensure_installed(&[IP, ETCD, FAKETIME, OPENSSL, CURL, MKFS])?;
    let programs = programs(options)?;
    let seed = options.seed.unwrap_or_else(rand::random);
    if let Some(count) = options.kills {
        return match options.pairs {
            0 | 1 => kills::kills(count, &programs, seed),
            pairs => pairs::side_by_side(count, pairs, &programs, seed),
        };
    }
    ensure!(!cases.is_empty(), "no case has such a name: see --list");
    let begin = Instant::now();
    let mut outcome = Outcome {
        seed,
        ..Outcome::default()
    };
    for case in &cases {
        outcome.run(case, &programs);
    }
    outcome.seconds = begin.elapsed().as_secs();
    if options.quick && begin.elapsed() > QUICK_MAX {
        println!("the quick cases took longer than {} s", QUICK_MAX.as_secs());
    }
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(outcome.failed == 0)
}

fn programs(options: &Options) -> Result<Programs> {
    Ok(match options.programs.as_slice() {
        [kemari, guest] => Programs {
            kemari: kemari.clone(),
            guest: guest.clone(),
        },
        _ => Programs {
            kemari: keep(build_kemari(&["faults"])?, "weather")?,
            guest: build_bare_guest()?,
        },
    })
}

/// The quick cases as a test: in a process of its own, for mounts that nobody else sees.
pub fn in_a_process_of_its_own() -> Result<()> {
    let program = mounts::OwnProgram::open()?;
    run_quietly(Command::new(program.path()).args(["weather", "--quick"]))
}

impl Outcome {
    /// Runs one case, and prints its line.
    fn run(&mut self, case: &Case, programs: &Programs) {
        let begin = Instant::now();
        self.cases += 1;
        let ended = World::new(&case.setup, programs, self.seed).and_then(|mut world| {
            let ended = (case.run)(&mut world);
            let ended = world.breaches().and(ended);
            self.passed += world.passed;
            if ended.is_err() {
                self.look_closer(case, &mut world);
            }
            ended
        });
        let seconds = begin.elapsed().as_secs_f64();
        match ended {
            Ok(()) => println!("ok     {:<34} {seconds:>5.1} s", case.name),
            Err(error) => {
                self.failed += 1;
                println!("FAILED {:<34} {seconds:>5.1} s  {error:#}", case.name);
            }
        }
    }

    /// What a case that failed has done to the VM.
    fn look_closer(&mut self, case: &Case, world: &mut World) {
        let kept = target_dir().join("weather").join(case.name);
        let shown = world.evidence(&kept);
        println!("{shown}--- all of it in {}", kept.display());
        if world.owed.is_some() {
            self.false_protected += 1;
        }
        if !world.somebody_has_it() {
            self.lost_vm += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Fewest cases, and most that are quick.
    const CASES_MIN: usize = 90;
    const QUICK_CASES_MAX: usize = 10;

    #[test]
    fn cases_are_many_and_have_names_of_their_own() {
        let cases = all_cases();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len(), "two cases have one name");
        assert!(cases.len() >= CASES_MIN, "{} cases", cases.len());
        assert!(
            cases
                .iter()
                .all(|case| !case.what.is_empty() && !case.source.is_empty())
        );
    }

    #[test]
    fn what_is_wanted_is_named_or_quick() {
        let names = |options: &Options| -> Vec<&str> {
            let cases = all_cases();
            let wanted = cases.iter().filter(|case| options.wants(case));
            wanted.map(|case| case.name).collect()
        };
        let quick = names(&Options {
            quick: true,
            ..Options::default()
        });
        assert!((1..=QUICK_CASES_MAX).contains(&quick.len()), "{quick:?}");
        let named = names(&Options {
            cases: vec!["tap-missing".into()],
            ..Options::default()
        });
        assert_eq!(named, ["tap-missing-secondary"]);
    }
}
