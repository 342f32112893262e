//! Tests over an edited tree.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::list::Mutant;
use super::tree::Tree;
use crate::tools::{cargo, tail, target_dir};

/// Longest time that tests may take of an edited tree: so much longer than of the tree as it is, ...
const TIMES_MAX: u32 = 3;
/// ... and this. An edit that makes a test hang is caught, too.
const EXTRA_MAX: Duration = Duration::from_secs(30);
/// Longest time of tests of the tree as it is, built.
const UNEDITED_MAX: Duration = Duration::from_secs(180);
/// How often it is looked whether tests have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Lines of what a compiler or a test says that are shown.
const LINES_MAX: usize = 20;

/// What tests say of an edit.
pub(super) enum Verdict {
    /// A test failed, or hung.
    Caught,
    /// All passed.
    Survived,
    /// It does not compile: why.
    Unviable(String),
}

/// Tests that were run over the tree as it is, and how long they took.
#[derive(Default)]
pub(super) struct Tests {
    unedited: BTreeMap<Vec<String>, Duration>,
}

impl Tests {
    /// Makes sure that the tests of an edit pass without it, and are any.
    pub fn pass_unedited(&mut self, tree: &Tree, mutant: &Mutant) -> Result<()> {
        let words = words(mutant);
        if self.unedited.contains_key(&words) {
            return Ok(());
        }
        ensure!(
            build(tree, &words)?.is_none(),
            "the tree does not compile as it is"
        );
        let begin = Instant::now();
        let (passed, output) = run(tree, &words, UNEDITED_MAX)?;
        ensure!(
            passed,
            "{words:?} fail without any edit:\n{}",
            tail(&output, LINES_MAX)
        );
        let any = output.lines().any(|line| {
            line.starts_with("test result: ok. ") && !line.starts_with("test result: ok. 0 passed")
        });
        ensure!(any, "{words:?} are no tests");
        self.unedited.insert(words, begin.elapsed());
        Ok(())
    }

    /// Runs the tests of an edit over the tree, in which it is made.
    pub fn judge(&self, tree: &Tree, mutant: &Mutant) -> Result<Verdict> {
        let words = words(mutant);
        if let Some(why) = build(tree, &words)? {
            return Ok(Verdict::Unviable(why));
        }
        let unedited = self.unedited.get(&words).copied().unwrap_or(UNEDITED_MAX);
        let (passed, _) = run(tree, &words, unedited * TIMES_MAX + EXTRA_MAX)?;
        Ok(match passed {
            true => Verdict::Survived,
            false => Verdict::Caught,
        })
    }
}

fn words(mutant: &Mutant) -> Vec<String> {
    let package = ["--package", mutant.package()].map(String::from);
    package.into_iter().chain(mutant.tests.iter().cloned()).collect()
}

/// Registry crates are built once for the checkout and for the copy: they share the target directory.
fn cargo_in(tree: &Tree) -> Command {
    let mut command = cargo();
    command
        .current_dir(tree.directory())
        .env("CARGO_TARGET_DIR", target_dir());
    command
}

/// Builds the tests. What the compiler says, if it refuses.
fn build(tree: &Tree, words: &[String]) -> Result<Option<String>> {
    let mut command = cargo_in(tree);
    command
        .args(["test", "--quiet", "--no-run"])
        .args(until_filters(words));
    let output = command.output().context("cargo cannot be started")?;
    if output.status.success() {
        return Ok(None);
    }
    Ok(Some(tail(&String::from_utf8_lossy(&output.stderr), LINES_MAX)))
}

/// What stands before `--`: what is built.
fn until_filters(words: &[String]) -> impl Iterator<Item = &String> {
    words.iter().take_while(|word| *word != "--")
}

/// Runs tests, in a process group of their own that is ended after `limit`. Whether they passed in time, and what they said.
fn run(tree: &Tree, words: &[String], limit: Duration) -> Result<(bool, String)> {
    let path = target_dir().join("mutants/output");
    let output = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut command = cargo_in(tree);
    command
        .args(["test", "--quiet"])
        .args(words)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0);
    let mut child = command.spawn().context("cargo cannot be started")?;
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begin.elapsed() > limit {
            break None;
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    if status.is_none() {
        let Some(group) = Pid::from_raw(i32::try_from(child.id())?) else {
            bail!("cargo has no process id");
        };
        kill_process_group(group, Signal::KILL).context("cannot end tests that hang")?;
        child.wait()?;
    }
    let said = std::fs::read(&path)?;
    Ok((
        status.is_some_and(|status| status.success()),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}
