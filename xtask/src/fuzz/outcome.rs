//! What libFuzzer says of a run.

use std::fmt;
use std::path::PathBuf;

use serde_json::json;

/// One target's run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The target.
    pub name: String,
    /// Inputs that were run.
    pub executions: u64,
    /// Edges of the control flow that were reached.
    pub edges: u64,
    /// Inputs that reach something new.
    pub corpus: u64,
    /// How long it ran, in seconds.
    pub seconds: u64,
    /// Inputs that it did not stand.
    pub crashes: Vec<PathBuf>,
}

impl Outcome {
    /// Reads what libFuzzer printed.
    pub(crate) fn parse(name: &str, output: &str) -> Self {
        let last = |after: &str| {
            let found = output.lines().rev().find_map(|line| number(line, after));
            found.unwrap_or(0)
        };
        Self {
            name: name.to_owned(),
            // The second one also where it was ended in the middle.
            executions: last("stat::number_of_executed_units:").max(last("#")),
            edges: last(" cov:"),
            corpus: last(" corp:"),
            seconds: 0,
            crashes: output
                .lines()
                .filter_map(|line| line.split_once("Test unit written to "))
                .map(|(_, path)| path.into())
                .collect(),
        }
    }
}

/// The number behind a text in a line, if it is there.
fn number(line: &str, after: &str) -> Option<u64> {
    let (_, rest) = line.split_once(after)?;
    let rest = rest.trim_start();
    let end = rest
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} executions in {} s, {} edges, {} inputs, {} crashes",
            self.name,
            self.executions,
            self.seconds,
            self.edges,
            self.corpus,
            self.crashes.len()
        )
    }
}

/// All runs in one line.
pub(crate) fn last_line(outcomes: &[Outcome]) -> String {
    let targets: Vec<_> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "name": outcome.name,
                "executions": outcome.executions,
                "edges": outcome.edges,
                "crashes": outcome.crashes.len(),
                "corpus": outcome.corpus,
                "seconds": outcome.seconds,
            })
        })
        .collect();
    let crashes: usize = outcomes.iter().map(|outcome| outcome.crashes.len()).sum();
    json!({ "targets": targets, "crashes": crashes }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "INFO: Seed: 17\n\
        #2\tINITED cov: 100 ft: 101 corp: 1/1b exec/s: 0 rss: 40Mb\n\
        #65536\tpulse  cov: 1234 ft: 5678 corp: 321/45Kb lim: 4096 exec/s: 32768 rss: 90Mb\n";

    #[test]
    fn a_run_is_read_from_what_it_printed() {
        let whole =
            format!("{OUTPUT}Done 70000 runs in 3 second(s)\nstat::number_of_executed_units: 70000\n");
        let outcome = Outcome::parse("frames", &whole);
        assert_eq!(
            (outcome.executions, outcome.edges, outcome.corpus),
            (70_000, 1234, 321)
        );
        // One that died in the middle.
        assert_eq!(Outcome::parse("frames", OUTPUT).executions, 65_536);
        assert!(outcome.crashes.is_empty());
        // Also one whose file was there before.
        let found = "artifact_prefix='/x/'; Test unit written to /x/crash-ab\nBase64: AA==\n";
        let found = Outcome::parse("frames", &format!("{OUTPUT}{found}"));
        assert_eq!(found.crashes, [PathBuf::from("/x/crash-ab")]);
        assert_eq!(Outcome::parse("frames", "").executions, 0);
    }

    #[test]
    fn the_last_line_counts_what_was_found() {
        let found = Outcome {
            crashes: vec!["crash-1".into()],
            ..Outcome::parse("frames", OUTPUT)
        };
        let line = last_line(&[Outcome::parse("states", OUTPUT), found]);
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line["crashes"], 1);
        assert_eq!(line["targets"][1]["crashes"], 1);
        assert_eq!(line["targets"][0]["edges"], 1234);
    }
}
