//! Several pairs side by side, each with a VM that lives through its share of the deaths. Names and mounts
//! belong to a process, so each pair has one of its own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::Process;

use super::kills::Tally;
use super::mounts::OwnProgram;
use super::world::Programs;

/// Kills `count` primaries in all, those of `pairs` pairs; whether each death was followed by a takeover.
pub(crate) fn side_by_side(count: u32, pairs: u32, programs: &Programs, seed: u64) -> Result<bool> {
    let begin = Instant::now();
    let program = OwnProgram::open()?;
    let shares = shares(count, pairs);
    let ended: Vec<Result<(Tally, bool)>> = thread::scope(|scope| {
        let each = shares.iter().zip(0..).map(|(share, number)| {
            let command = one_pair(&program, *share, programs, seed.wrapping_add(number));
            scope.spawn(move || watch(command, number))
        });
        let watching: Vec<_> = each.collect();
        let joined = watching.into_iter().map(|watching| watching.join());
        joined
            .map(|ended| ended.expect("the thread does not panic"))
            .collect()
    });
    let (mut total, mut succeeded) = (Tally::of(seed), true);
    for ended in ended {
        let (tally, is_well) = ended?;
        total.add(tally);
        succeeded &= is_well;
    }
    total.seconds = begin.elapsed().as_secs();
    println!("{}", serde_json::to_string(&total)?);
    Ok(succeeded)
}

/// How many deaths each pair has.
fn shares(count: u32, pairs: u32) -> Vec<u32> {
    let share = |number| count / pairs + u32::from(number < count % pairs);
    (0..pairs).map(share).filter(|share| *share > 0).collect()
}

fn one_pair(program: &OwnProgram, share: u32, programs: &Programs, seed: u64) -> Command {
    let mut command = program.with_mounts_of_its_own();
    command
        .args(["weather", "--kills", &share.to_string()])
        .args(["--seed", &seed.to_string()])
        .arg("--programs")
        .args([&programs.kemari, &programs.guest])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// Passes on what a pair's process says; returns its tally, and whether all went well.
fn watch(command: Command, number: u64) -> Result<(Tally, bool)> {
    let mut process = Process::spawn(format!("pair {number}"), command)?;
    let stdout = process.child().stdout.take().context("its words are read")?;
    let mut tally = None;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("the words of a pair's process cannot be read")?;
        match serde_json::from_str(&line) {
            Ok(found) => tally = Some(found),
            Err(_) => println!("{number}: {line}"),
        }
    }
    let status = process.child().wait()?;
    ensure!(
        status.success() || tally.is_some(),
        "pair {number} ended with {status}"
    );
    let tally = tally.with_context(|| format!("pair {number} has no tally"))?;
    Ok((tally, status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_death_is_left_over() {
        assert_eq!(shares(1000, 3), [334, 333, 333]);
        assert_eq!(shares(2, 3), [1, 1]);
    }
}
