//! Completion by the shell: `source <(COMPLETE=bash kemari)`.

use std::ffi::OsStr;
use std::time::Duration;

use clap::{CommandFactory, ValueEnum};
use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter};
use clap_complete::env::CompleteEnv;

use super::Cli;
use super::sides::{self, Side};
use crate::config::{Mode, is_name};

/// Longest time that a side is waited for: somebody waits at the keyboard.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers the shell, if it is the shell that asks, and ends the process then.
pub fn complete() {
    CompleteEnv::with_factory(Cli::command).complete();
}

/// Sides that are there; what goes wrong is nothing that a completion could tell.
fn sides() -> Vec<Side> {
    sides::all_within(PATIENCE).unwrap_or_default()
}

/// VMs that run here, and files.
pub(super) fn vms(word: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = vms_alone(word);
    found.extend(PathCompleter::file().complete(word));
    found
}

fn vms_alone(word: &OsStr) -> Vec<CompletionCandidate> {
    candidates(sides().iter().map(Side::vm), word)
}

/// Modes and, where a limit alone changes, VMs.
pub(crate) fn modes(word: &OsStr) -> Vec<CompletionCandidate> {
    let modes = Mode::value_variants().iter().filter_map(Mode::to_possible_value);
    let mut found = candidates(modes.map(|mode| mode.get_name().to_owned()), word);
    found.extend(vms_alone(word));
    found
}

/// Hosts whose sides run here.
pub(super) fn hosts(word: &OsStr) -> Vec<CompletionCandidate> {
    candidates(
        sides().iter().filter_map(|side| side.host().map(str::to_owned)),
        word,
    )
}

/// Event channels of the VMs that run here.
pub(super) fn channels() -> Vec<CompletionCandidate> {
    let sides = sides();
    let channels = sides
        .iter()
        .flat_map(|side| &side.answer)
        .flat_map(|status| status.channels.clone());
    candidates(channels, OsStr::new(""))
}

/// Those that begin with the word, each once. The shell gets them raw: only what a name may be.
fn candidates(names: impl Iterator<Item = String>, word: &OsStr) -> Vec<CompletionCandidate> {
    let word = word.to_string_lossy();
    let mut names: Vec<String> = names
        .filter(|name| name.starts_with(&*word) && is_name(name))
        .collect();
    names.sort();
    names.dedup();
    names.into_iter().map(CompletionCandidate::new).collect()
}
