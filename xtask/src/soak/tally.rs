//! What the periods have shown.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::cut::Cut;
use crate::proof::checker::Verdict;

/// Sentences of a verdict that are printed.
const FINDINGS_SHOWN_MAX: usize = 5;

/// One period.
#[derive(Debug)]
pub(crate) struct Period {
    /// What happened.
    pub cut: Cut,
    /// The primary's step when it ended.
    pub step: Option<String>,
    /// Whether the VM went on on the other host, unplanned.
    pub took_over: bool,
    /// Connections that ended before the client ended them.
    pub lost_connections: u64,
    /// Longest time that a connection waited between two answers.
    pub longest_gap_ms: f64,
    /// Tests of the disk by the guest, which have found what they wrote.
    pub disk_tests: u64,
    acknowledged: u64,
    lost: u64,
    contradicted: u64,
}

impl Period {
    /// A period that begins.
    pub(crate) fn new(cut: Cut) -> Self {
        Self {
            cut,
            step: None,
            took_over: false,
            lost_connections: 0,
            longest_gap_ms: 0.0,
            disk_tests: 0,
            acknowledged: 0,
            lost: 0,
            contradicted: 0,
        }
    }

    /// Takes the checker's word, and prints what is wrong.
    pub(crate) fn judge(&mut self, verdict: &Verdict) {
        self.acknowledged = verdict.acknowledged;
        self.lost = verdict.lost.len() as u64;
        self.contradicted = verdict.contradicted.len() as u64;
        for (what, sentences) in [("lost", &verdict.lost), ("contradicted", &verdict.contradicted)] {
            for sentence in sentences.iter().take(FINDINGS_SHOWN_MAX) {
                eprintln!("  ! {what}: {sentence}");
            }
        }
    }

    /// Whether a client has noticed.
    pub(crate) fn is_bad(&self) -> bool {
        self.lost + self.contradicted + self.lost_connections > 0
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<15} {:<13} {:>7} acknowledged, longest silence {:>5.0} ms",
            self.cut,
            self.step.as_deref().unwrap_or("-"),
            self.acknowledged,
            self.longest_gap_ms
        )
    }
}

/// All periods, as the last line that is printed.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Tally {
    takeovers: u64,
    failed: u64,
    lost: u64,
    contradicted: u64,
    connections_lost: u64,
    acknowledged: u64,
    longest_gap_ms: f64,
    disk_tests: u64,
    /// Takeovers in the middle of such a test.
    takeovers_in_disk_tests: u64,
    by_cut: BTreeMap<&'static str, u64>,
    by_step: BTreeMap<String, u64>,
}

/// The last line.
#[derive(Serialize)]
struct Line<'a> {
    seed: u64,
    seconds: u64,
    periods: u64,
    #[serde(flatten)]
    tally: &'a Tally,
}

impl Tally {
    /// Adds a period.
    pub(crate) fn add(&mut self, period: Period) {
        *self.by_cut.entry(period.cut.name()).or_default() += 1;
        self.takeovers += u64::from(period.took_over);
        self.lost += period.lost;
        self.contradicted += period.contradicted;
        self.connections_lost += period.lost_connections;
        self.acknowledged += period.acknowledged;
        self.disk_tests += period.disk_tests;
        self.takeovers_in_disk_tests += u64::from(period.took_over && period.disk_tests > 0);
        self.longest_gap_ms = self.longest_gap_ms.max(period.longest_gap_ms);
        if let Some(step) = period.step {
            *self.by_step.entry(step).or_default() += 1;
        }
    }

    /// Counts the failure that ended a VM.
    pub(crate) fn fail(&mut self, error: &anyhow::Error) {
        self.failed += 1;
        println!("  ✗ {error:#}");
    }

    /// Number of periods so far.
    pub(crate) fn periods(&self) -> u64 {
        self.by_cut.values().sum()
    }

    /// Whether nothing went wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.failed + self.lost + self.contradicted + self.connections_lost == 0 && self.periods() > 0
    }

    /// Prints the table and, last, the line.
    pub(crate) fn print(&self, seed: u64, time: Duration) -> Result<()> {
        println!();
        for (what, counts) in [
            (
                "cut",
                self.by_cut
                    .iter()
                    .map(|(k, n)| (k.to_string(), n))
                    .collect::<Vec<_>>(),
            ),
            (
                "in step",
                self.by_step.iter().map(|(k, n)| (k.clone(), n)).collect(),
            ),
        ] {
            for (name, count) in counts {
                println!("  {what:<8} {name:<15} {count:>6}");
            }
        }
        let line = Line {
            seed,
            seconds: time.as_secs(),
            periods: self.periods(),
            tally: self,
        };
        println!("{}", serde_json::to_string(&line)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_client_notices_is_counted_and_stays() {
        let mut tally = Tally::default();
        assert!(!tally.is_clean(), "nothing was shown yet");
        tally.add(Period::new(Cut::Kill));
        assert!(tally.is_clean());
        let mut bad = Period::new(Cut::Power);
        bad.judge(&Verdict {
            lost: vec!["a write".into()],
            ..Verdict::default()
        });
        assert!(bad.is_bad());
        tally.add(bad);
        tally.add(Period::new(Cut::Link));
        assert!(!tally.is_clean() && tally.periods() == 3);
        let mut failed = Tally::default();
        failed.add(Period::new(Cut::Kill));
        failed.fail(&anyhow::anyhow!("no answer"));
        assert!(!failed.is_clean());
    }
}
