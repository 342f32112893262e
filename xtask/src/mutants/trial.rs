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
use crate::tools::{cargo, tail};

/// Longest time that tests may take of an edited tree: so much longer than of the tree as it is, ...
const TIMES_MAX: u32 = 3;
/// ... and this. An edit that makes a test hang is caught, too.
const EXTRA_MAX: Duration = Duration::from_secs(30);
/// Longest time of tests of the tree as it is, built.
const UNEDITED_MAX: Duration = Duration::from_secs(180);
/// How often it is looked whether tests have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Names of tests that are shown.
const NAMES_MAX: usize = 3;
/// Lines of what a compiler or a test says that are shown.
const LINES_MAX: usize = 20;

/// What tests say of an edit.
pub(super) enum Verdict {
    /// These tests failed, or hung, and did so again.
    Caught(String),
    /// All passed, at once or when what had failed was run again.
    Survived,
    /// It shows nothing: why.
    Unviable(String),
}

/// How tests ended.
enum Ended {
    Passed,
    /// These have failed, by name; none is named where the program died.
    Failed(Vec<String>),
    /// They were ended at their limit.
    Hung,
}

/// Tests that were run over the tree as it is, and how long they took.
#[derive(Default)]
pub(super) struct Tests {
    unedited: BTreeMap<Vec<String>, Duration>,
}

impl Tests {
    /// Makes sure that the tests of an edit pass without it, and are any.
    ///
    /// # Errors
    /// Why they would show nothing.
    pub(crate) fn pass_unedited(&mut self, tree: &Tree, mutant: &Mutant) -> Result<()> {
        let words = words(mutant);
        if self.unedited.contains_key(&words) {
            return Ok(());
        }
        if let Some(why) = build(tree, &words)? {
            bail!("the tree does not compile as it is:\n{why}");
        }
        let begin = Instant::now();
        let (ended, output) = run(tree, &words, UNEDITED_MAX)?;
        ensure!(
            matches!(ended, Ended::Passed),
            "{words:?} fail without any edit:\n{}",
            tail(&output, LINES_MAX)
        );
        ensure!(are_any(&output), "{words:?} are no tests");
        self.unedited.insert(words, begin.elapsed());
        Ok(())
    }

    /// Runs the tests of an edit over the tree, in which it is made. A test that fails now and then, or only
    /// while the machine is busy, catches nothing: what has failed must fail again.
    pub(crate) fn judge(&self, tree: &Tree, mutant: &Mutant) -> Result<Verdict> {
        let words = words(mutant);
        if let Some(why) = build(tree, &words)? {
            return Ok(Verdict::Unviable(why));
        }
        let unedited = self.unedited.get(&words).copied().unwrap_or(UNEDITED_MAX);
        let limit = unedited * TIMES_MAX + EXTRA_MAX;
        let (first, output) = run(tree, &words, limit)?;
        let mut by = String::from("a program that hangs or dies");
        let again: Vec<String> = match first {
            Ended::Passed => return Ok(Verdict::Survived),
            Ended::Failed(names) if !names.is_empty() => {
                by = some(&names);
                let built = until_filters(&words).cloned();
                let exactly = ["--", "--exact"].map(String::from);
                built.chain(exactly).chain(names).collect()
            }
            Ended::Failed(_) if !has_died(&output) => {
                return Ok(Verdict::Unviable(format!(
                    "no test has failed, but cargo:\n{}",
                    tail(&output, LINES_MAX)
                )));
            }
            Ended::Failed(_) | Ended::Hung => words,
        };
        Ok(match run(tree, &again, limit)?.0 {
            Ended::Passed => Verdict::Survived,
            Ended::Failed(_) | Ended::Hung => Verdict::Caught(by),
        })
    }
}

/// Whether any test has run, and all have passed.
fn are_any(output: &str) -> bool {
    output
        .lines()
        .any(|line| line.starts_with("test result: ok. ") && !line.starts_with("test result: ok. 0 passed"))
}

/// The tests that have failed: the harness lists their names, indented, behind what they said.
fn failed(output: &str) -> Vec<String> {
    let (_, list) = output.rsplit_once("\nfailures:\n").unwrap_or_default();
    let names = list.lines().map_while(|line| line.strip_prefix("    "));
    names.map(str::to_owned).collect()
}

/// The first of these names, and how many there are more.
fn some(names: &[String]) -> String {
    let shown = names
        .iter()
        .take(NAMES_MAX)
        .map(String::as_str)
        .collect::<Vec<_>>();
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown.join(", "),
        more => format!("{}, and {more} more", shown.join(", ")),
    }
}

/// Whether a test's program has died: by a signal, as at an abort, or in the middle of a test.
fn has_died(output: &str) -> bool {
    output.contains("process didn't exit successfully")
}

fn words(mutant: &Mutant) -> Vec<String> {
    let package = ["--package", mutant.package()].map(String::from);
    package.into_iter().chain(mutant.tests.iter().cloned()).collect()
}

/// What is built of an edited tree is kept apart: to cargo the copy's crates are the checkout's, and it would
/// take what it has built last of either. It is built for each edit, so it must be built soon rather than run
/// fast.
fn cargo_in(tree: &Tree) -> Command {
    let mut command = cargo();
    command
        .current_dir(tree.directory())
        .env("CARGO_TARGET_DIR", tree.target_dir())
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
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

/// Runs tests, in a process group of their own that is ended after `limit`. How they ended,
/// and what they said.
fn run(tree: &Tree, words: &[String], limit: Duration) -> Result<(Ended, String)> {
    let path = tree.target_dir().join("output");
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
    let said = String::from_utf8_lossy(&said).into_owned();
    let ended = match status {
        None => Ended::Hung,
        Some(status) if status.success() => Ended::Passed,
        Some(_) => Ended::Failed(failed(&said)),
    };
    Ok((ended, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = "running 2 tests\n.F\nfailures:\n\n---- a::b stdout ----\nboom\n\n\nfailures:\n    \
                          a::b\n    c\n\ntest result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 7 \
                          filtered out; finished in 0.00s\n";

    #[test]
    fn who_has_failed_is_named() {
        assert_eq!(failed(FAILED), ["a::b", "c"]);
        assert!(!are_any(FAILED) && !has_died(FAILED));
        assert_eq!(failed("error: could not compile `kemari`\n"), [""; 0]);
    }

    #[test]
    fn some_names_are_enough() {
        let names = ["a", "b", "c", "d", "e"].map(String::from);
        assert_eq!(some(&names[..3]), "a, b, c");
        assert_eq!(some(&names), "a, b, c, and 2 more");
    }

    #[test]
    fn a_run_without_tests_is_none_and_a_program_may_die() {
        let none =
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s\n";
        assert!(!are_any(none));
        assert!(are_any(&format!("{none}{}", none.replace("ok. 0", "ok. 3"))));
        assert!(has_died(
            "Caused by:\n  process didn't exit successfully: `x` (signal: 6, SIGABRT: process abort signal)\n"
        ));
    }
}
