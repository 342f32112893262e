//! Two commits side by side.
//!
//! The other commit is built in a git worktree of its own. What is compared is what can be seen from outside
//! of any program of this kind: how long the guest waits for its kicks in lockstep, and what clients get.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Pace;
use super::kv::Work;
use super::place::Place;
use super::rows::shown;
use super::service::{Caller, Clients, Mix};
use super::stats::{Samples, ratio};
use super::vm::{Vm, VmSpec};
use crate::tools;
use crate::ui::Ui;

/// Dirty pages of the kicks that are compared.
const SIZES: [u32; 3] = [10, 100, 1000];
/// A guest's loop of kicks lasts so long, in seconds.
const SLICE_S: u32 = 1;
/// Clients of the service.
const CLIENTS: [usize; 2] = [1, 64];

/// A git worktree, removed when dropped.
struct Worktree(PathBuf);

impl Worktree {
    fn add(revision: &str) -> Result<Self> {
        let path = tools::target_dir().join("bench/against");
        // A run that was killed may have left it.
        drop(Self(path.clone()));
        let mut command = git(&["worktree", "add", "--force", "--detach"]);
        tools::run_quietly(command.arg(&path).arg(revision))?;
        Ok(Self(path))
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        if self.0.exists() {
            let _ = tools::run_quietly(git(&["worktree", "remove", "--force"]).arg(&self.0));
            let _ = fs::remove_dir_all(&self.0);
        }
        let _ = tools::run_quietly(&mut git(&["worktree", "prune"]));
    }
}

fn git(args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.current_dir(tools::root()).args(args);
    command
}

/// Compares the commit `revision` with what is here; both run the guest that is here.
pub fn compare(revision: &str, pace: Pace, ui: &Ui) -> Result<bool> {
    let other = ui.step(&format!("building kemari of {revision}, in release"), |_| {
        let worktree = Worktree::add(revision)?;
        tools::build_release(&worktree.0, &tools::target_dir().join("bench/against-target"))
    })?;
    let here = ui.step("building kemari, in release", |_| {
        tools::build_release(&tools::root(), &tools::target_dir())
    })?;
    let guest = ui.step("building the bare guest", |_| tools::build_bare_guest())?;
    let place = Place::new(guest)?;
    let compared = ui.step("both, in turn", |_| measure(&place, [&other, &here], pace))?;
    println!("\n{}", table(revision, &compared));
    let path = tools::target_dir().join("bench/against.txt");
    fs::write(&path, table(revision, &compared))
        .with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(true)
}

/// One thing, measured with the other program and with this one, slice by slice.
struct Compared {
    what: String,
    unit: &'static str,
    slices: [Samples; 2],
}

impl Compared {
    fn new(what: String, unit: &'static str) -> Self {
        Self {
            what,
            unit,
            slices: Default::default(),
        }
    }
}

fn measure(place: &Place, programs: [&Path; 2], pace: Pace) -> Result<Vec<Compared>> {
    // Only what every program takes, and both the same.
    let start =
        |(number, program): (usize, &Path)| Vm::start(place, number, program, &VmSpec::protected("lockstep"));
    let vms: Vec<Vm<'_>> = programs
        .into_iter()
        .enumerate()
        .map(start)
        .collect::<Result<_>>()?;
    let mut callers: Vec<Caller> = vms.iter().map(Vm::caller).collect::<Result<_>>()?;
    let connect = |count: usize| {
        vms.iter()
            .map(|vm| vm.clients(count))
            .collect::<Result<Vec<Clients>>>()
    };
    let mut clients: Vec<Vec<Clients>> = CLIENTS.into_iter().map(connect).collect::<Result<_>>()?;
    let mut kicks: Vec<Compared> = SIZES
        .iter()
        .map(|pages| Compared::new(format!("a kick with {pages} dirty pages"), "us"))
        .collect();
    let mut answers: Vec<Compared> = CLIENTS
        .iter()
        .map(|count| Compared::new(format!("answers, {count} connections"), "1/s"))
        .collect();
    for round in 0..2 * pace.rounds.div_ceil(2) {
        // Who comes first may find the machine in another state than who comes second.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for (pages, compared) in SIZES.iter().zip(&mut kicks) {
            for program in order {
                let report = callers[program].kick_loop(*pages, SLICE_S)?;
                compared.slices[program].push(report.kick_us_median);
            }
        }
        for (clients, compared) in clients.iter_mut().zip(&mut answers) {
            for program in order {
                let mut work = Work::default();
                work.add(clients[program].work(pace.slice, Mix::Half)?);
                compared.slices[program].append(&mut work.rates);
            }
        }
    }
    kicks.append(&mut answers);
    Ok(kicks)
}

fn table(revision: &str, compared: &[Compared]) -> String {
    let mut text = format!(
        "  {:34} {:>12} {:>12} {:>8}\n",
        "medians of slices, lockstep", revision, "here", "ratio"
    );
    for Compared { what, unit, slices } in compared {
        let [other, here] = slices;
        let or_none = |value: Option<f64>| value.map_or("-".into(), shown);
        let spread = |samples: &Samples| match samples.percentiles(&[25.0, 75.0])[..] {
            [low, high] => format!("{} to {}", shown(low), shown(high)),
            _ => "-".into(),
        };
        let _ = writeln!(
            text,
            "  {:34} {:>12} {:>12} {:>8}   quartiles: {}; {}",
            format!("{what} ({unit})"),
            or_none(other.median()),
            or_none(here.median()),
            or_none(ratio(here.median(), other.median())),
            spread(other),
            spread(here),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comparison_shows_both_medians_their_ratio_and_the_spread() {
        let mut compared = Compared::new("a kick".into(), "us");
        compared.slices = [
            [100.0, 110.0, 90.0].into_iter().collect(),
            [50.0, 60.0, 40.0].into_iter().collect(),
        ];
        let text = table("HEAD~1", &[compared]);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_ascii_whitespace().collect();
        assert_eq!(words[..6], ["a", "kick", "(us)", "100", "50.0", "0.500"]);
        assert!(text.contains("quartiles: 100 to 110; 50.0 to 60.0"), "{text}");
    }
}
