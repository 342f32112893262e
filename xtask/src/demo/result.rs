//! What a run of the demo has shown.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lab::Loss;
use serde::Serialize;

use super::options::{Cut, Disk, Guest, Options};
use crate::proof::checker::Verdict;
use crate::proof::client::FINAL_READER;
use crate::proof::history::{History, Nanos};

/// Sentences of each kind that are printed.
const FINDINGS_SHOWN_MAX: usize = 5;

/// The result, as it is in result.json. What a cut would have to cause is null where there was none.
#[derive(Clone, Debug, Serialize)]
pub struct DemoResult {
    /// "linux" or "bare".
    pub guest: String,
    /// "lab" or "local".
    pub hosts: String,
    /// "power", "kill", "link" or "none".
    pub cut: String,
    /// Where in a sync the primary was at the cut.
    pub cut_in_step: Option<String>,
    /// Acknowledged writes whose answer came before the cut.
    pub acknowledged_before: Option<u64>,
    /// Acknowledged writes whose answer came after the cut.
    pub acknowledged_after: Option<u64>,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Those of them that are gone.
    pub lost: u64,
    /// Answers that no single order of the operations explains.
    pub contradicted: u64,
    /// Connections that ended before the client ended them.
    pub connections_lost: u64,
    /// Longest time that a connection waited between two answers.
    pub longest_gap_ms: f64,
    /// From the last sign of the primary to the first guest instruction on the secondary.
    pub takeover_ms: Option<f64>,
    /// Committed syncs.
    pub syncs: u64,
    /// Whether nothing at all went wrong.
    pub ok: bool,
}

/// The result of a run and the reasons behind it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The result.
    pub result: DemoResult,
    /// Why it is not ok: sentences.
    pub reasons: Vec<String>,
    /// What the primary's disk has forgotten, if it is one that forgets.
    pub loss: Option<Loss>,
}

/// What happened to the hosts.
#[derive(Clone, Debug, Default)]
pub struct Aftermath {
    /// When the cut began.
    pub cut_at: Option<Nanos>,
    /// See [`DemoResult`].
    pub cut_in_step: Option<String>,
    /// See [`DemoResult`].
    pub takeover_ms: Option<f64>,
    /// See [`DemoResult`].
    pub syncs: u64,
    /// What the primary's disk has forgotten, if it is one that forgets.
    pub loss: Option<Loss>,
    /// What went wrong on the way: sentences.
    pub failures: Vec<String>,
}

/// What is wrong with a run by what its clients saw.
fn faults(cut: Cut, history: &History, verdict: &Verdict, after: &Aftermath) -> Vec<String> {
    let mut reasons = Vec::new();
    reasons.extend(
        verdict
            .lost
            .iter()
            .take(FINDINGS_SHOWN_MAX)
            .map(|what| format!("lost: {what}")),
    );
    reasons.extend(
        verdict
            .contradicted
            .iter()
            .take(FINDINGS_SHOWN_MAX)
            .map(|what| format!("contradicted: {what}")),
    );
    // Where nobody goes on, connections end.
    let one_goes_on = cut != Cut::Both;
    for end in history.connections.iter().filter(|_| one_goes_on) {
        if let Some(why) = &end.lost {
            reasons.push(format!("connection {} was lost: {why}", end.connection));
        }
    }
    let since = after.cut_at.unwrap_or(0);
    let silent = history
        .acknowledged_since_by_connection(since)
        .into_iter()
        .zip(&history.connections);
    let silent = silent.filter(|(count, end)| *count == 0 && end.connection != FINAL_READER);
    for (_, end) in silent.filter(|_| one_goes_on) {
        let when = if cut == Cut::None { "" } else { " after the cut" };
        reasons.push(format!(
            "connection {} got no write acknowledged{when}",
            end.connection
        ));
    }
    if verdict.acknowledged == 0 {
        reasons.push("no write was acknowledged".into());
    }
    if matches!(cut, Cut::Kill | Cut::Power) && after.takeover_ms.is_none() {
        reasons.push("the survivor reports no takeover".into());
    }
    reasons
}

impl Report {
    /// Judges a run by what the clients saw (the final read included) and what happened to the hosts.
    pub fn new(
        options: &Options,
        hosts: &str,
        history: &History,
        verdict: &Verdict,
        after: Aftermath,
    ) -> Self {
        let cut = options.cut;
        let mut reasons = after.failures.clone();
        reasons.extend(faults(cut, history, verdict, &after));
        let result = DemoResult {
            guest: options.guest.to_string(),
            hosts: hosts.to_owned(),
            cut: cut.to_string(),
            cut_in_step: after.cut_in_step,
            acknowledged_before: after.cut_at.map(|cut| history.acknowledged_between(0, cut)),
            acknowledged_after: after
                .cut_at
                .map(|cut| history.acknowledged_between(cut, Nanos::MAX)),
            acknowledged: verdict.acknowledged,
            lost: verdict.lost.len() as u64,
            contradicted: verdict.contradicted.len() as u64,
            connections_lost: history.connections_lost(),
            longest_gap_ms: history.longest_gap() as f64 / 1e6,
            takeover_ms: after.takeover_ms,
            syncs: after.syncs,
            ok: reasons.is_empty(),
        };
        Self {
            result,
            reasons,
            loss: after.loss,
        }
    }

    /// Prints a short summary for people.
    pub fn print(&self, seed: u64) {
        let r = &self.result;
        let or_none = |ms: Option<f64>| ms.map_or("-".into(), |ms| format!("{ms:.0} ms"));
        println!();
        println!(
            "  {} guest, {} hosts, cut: {} (seed {seed})",
            r.guest, r.hosts, r.cut
        );
        if let (Some(before), Some(after)) = (r.acknowledged_before, r.acknowledged_after) {
            let step = r.cut_in_step.as_deref().unwrap_or("unknown");
            println!("  cut in step          {step}");
            println!(
                "  acknowledged writes  {} ({before} before the cut, {after} after it)",
                r.acknowledged
            );
        } else {
            println!("  acknowledged writes  {}", r.acknowledged);
        }
        if let Some(loss) = self.loss {
            let all = loss.forgotten + loss.kept;
            println!(
                "  unflushed sectors    {all}, of which the disk forgot {}",
                loss.forgotten
            );
        }
        println!("  lost                 {}", r.lost);
        println!("  contradicted         {}", r.contradicted);
        println!("  connections lost     {}", r.connections_lost);
        println!("  longest silence      {:.0} ms", r.longest_gap_ms);
        println!("  takeover             {}", or_none(r.takeover_ms));
        println!("  syncs                {}", r.syncs);
        for reason in &self.reasons {
            println!("  ! {reason}");
        }
        println!("  {}", if r.ok { "ok: nobody noticed" } else { "NOT OK" });
        println!();
    }
}

/// One line of runs.jsonl.
#[derive(Serialize)]
struct Line<'a> {
    run: u32,
    seed: u64,
    service: Option<String>,
    disk: String,
    flush: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forgotten_sectors: Option<u64>,
    #[serde(flatten)]
    result: &'a DemoResult,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    reasons: &'a [String],
}

/// The files that a demo leaves: result.json (of the last run,
/// or of the first that was not ok) and runs.jsonl.
#[derive(Debug)]
pub struct Records {
    directory: PathBuf,
    runs: File,
    ok: u32,
    failed: Vec<u32>,
}

impl Records {
    /// Begins anew in a directory.
    pub fn create(directory: &Path) -> Result<Self> {
        let in_words = || format!("{} cannot be written", directory.display());
        fs::create_dir_all(directory).with_context(in_words)?;
        let _ = fs::remove_file(directory.join("result.json"));
        let runs = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(directory.join("runs.jsonl"));
        Ok(Self {
            directory: directory.to_owned(),
            runs: runs.with_context(in_words)?,
            ok: 0,
            failed: Vec::new(),
        })
    }

    /// Adds a run.
    pub fn add(&mut self, run: u32, seed: u64, options: &Options, report: &Report) -> Result<()> {
        let result = &report.result;
        let line = serde_json::to_string(&Line {
            run,
            seed,
            service: (options.guest != Guest::Bare).then(|| options.service.to_string()),
            disk: options.disk.to_string(),
            flush: (options.disk == Disk::Replicated).then(|| options.flush.to_string()),
            forgotten_sectors: report.loss.map(|loss| loss.forgotten),
            result,
            reasons: &report.reasons,
        })?;
        writeln!(self.runs, "{line}").context("runs.jsonl cannot be written")?;
        if self.failed.is_empty() {
            let json = serde_json::to_string(result)? + "\n";
            fs::write(self.directory.join("result.json"), json).context("result.json cannot be written")?;
        }
        if result.ok {
            self.ok += 1;
        } else {
            self.failed.push(run);
        }
        Ok(())
    }

    /// Prints how a repetition ended.
    pub fn summary(&self, repeat: u32) {
        println!("  results in {}", self.directory.display());
        if repeat > 1 {
            println!(
                "  {} runs ok, {} not ok {:?}",
                self.ok,
                self.failed.len(),
                self.failed
            );
        }
    }
}
