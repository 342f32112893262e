//! `cargo xtask hostile`: every kind of abuse by a protected guest, with an innocent VM beside it. It is the
//! scenario `hostile` of the program's tests (`kemari/tests/scenarios/hostile.rs`), for longer.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result};
use clap::Args;

use crate::tools::cargo;

/// For how long.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How long each kind of abuse goes on, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
}

/// Plays it; whether the hostile guest has hurt only itself. The last line is JSON.
pub fn hostile(options: &Options) -> Result<bool> {
    let mut command = cargo();
    command
        .args(["test", "--quiet", "--package", "kemari", "--test", "scenarios"])
        .args(["--", "--nocapture", "hostile::"])
        .env("KEMARI_HOSTILE_MS", (options.seconds * 1000).to_string())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cargo cannot be started")?;
    let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
    let mut result = None;
    for line in lines.into_iter().flatten() {
        let line = line.context("what the scenario says cannot be read")?;
        match is_result(&line) {
            true => result = Some(line),
            false => println!("{line}"),
        }
    }
    let status = child.wait().context("the scenario cannot be waited for")?;
    let (last_line, succeeded) = outcome(result, status.success());
    println!("{last_line}");
    Ok(succeeded)
}

fn is_result(line: &str) -> bool {
    line.starts_with("{\"kinds\":")
}

/// The last line, and whether all went well. The scenario ends with the first kind that hurts somebody else,
/// and one that was not played has no result.
fn outcome(result: Option<String>, succeeded: bool) -> (String, bool) {
    match result.filter(|_| succeeded) {
        Some(result) => (result, true),
        None => ("{\"kinds\":null,\"failed\":1}".to_owned(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_succeeds_only_with_a_result_and_says_the_same() {
        let good = "{\"kinds\":18,\"failed\":0,\"ms_each\":10000,\"memory_mib_max\":120}";
        assert!(is_result(good) && !is_result("test hostile ... ok"));
        assert_eq!(outcome(Some(good.to_owned()), true), (good.to_owned(), true));
        for (result, succeeded) in [(None, true), (None, false), (Some(good.to_owned()), false)] {
            let (last_line, all_well) = outcome(result, succeeded);
            assert!(last_line.contains("\"failed\":1") && !all_well);
        }
    }
}
