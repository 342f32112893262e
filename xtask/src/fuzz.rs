//! `cargo xtask fuzz`: what reads bytes from a guest, a peer, a file or the arbiter, under libFuzzer. The
//! targets are in `fuzz/`.
//!
//! What is found grows in `fuzz/target/corpus/`, one directory a target, and goes on from there the next
//! time. What is worth keeping is in `fuzz/corpus/`, small, and is run by `cargo xtask test` too.

mod outcome;
mod program;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use program::Program;

/// Most bytes and most files that are kept of one target.
const KEPT_BYTES_MAX: u64 = 96 << 10;
const KEPT_FILES_MAX: usize = 150;

/// What to fuzz, and for how long.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Which target; all, one after the other, if none is named
    pub target: Option<String>,
    /// How long each target runs, in minutes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub minutes: u64,
    /// Run this one input and nothing else
    #[arg(long, value_name = "FILE", requires = "target")]
    pub input: Option<PathBuf>,
    /// Afterwards keep in fuzz/corpus/ what reaches something new, as few and short inputs as do
    #[arg(long, conflicts_with = "input")]
    pub keep: bool,
}

/// Fuzzes; whether nothing was found. The last line is JSON.
pub fn fuzz(options: &Options) -> Result<bool> {
    let program = Program::build()?;
    let all = program.targets()?;
    let wanted = match &options.target {
        None => all,
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => bail!("`{name}` is none of the targets: {}", all.join(", ")),
    };
    if let (Some(input), Some(target)) = (&options.input, &options.target) {
        let input = std::path::absolute(input)?;
        return program.run_input(target, &input);
    }
    let mut outcomes = Vec::new();
    for target in &wanted {
        eprintln!("{target}: {} min", options.minutes);
        let outcome = program.fuzz(target, options.minutes)?;
        eprintln!("{outcome}");
        outcome
            .crashes
            .iter()
            .for_each(|crash| show(&program, target, crash));
        if options.keep {
            keep(&program, target)?;
        }
        outcomes.push(outcome);
    }
    println!("{}", outcome::last_line(&outcomes));
    Ok(outcomes.iter().all(|outcome| outcome.crashes.is_empty()))
}

/// Says what was found, and how to run it again.
fn show(program: &Program, target: &str, crash: &Path) {
    let smallest = program.minimised(target, crash);
    println!(
        "FOUND in {target}: {}\n  again: cargo xtask fuzz {target} --input {}\n  once it is mended: copy it \
         to {}",
        crash.display(),
        smallest.display(),
        program::kept(target).display()
    );
}

/// Replaces what is kept of a target by what covers as much with less.
fn keep(program: &Program, target: &str) -> Result<()> {
    let chosen = program.merged(target)?;
    let directory = program::kept(target);
    for path in program::files(&directory)? {
        if is_chosen(&path) {
            std::fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
        }
    }
    let (mut bytes, mut files) = (0, 0);
    for path in chosen {
        let length = path.metadata()?.len();
        if bytes + length > KEPT_BYTES_MAX || files == KEPT_FILES_MAX {
            continue;
        }
        let name = path.file_name().unwrap_or_default();
        std::fs::copy(&path, directory.join(name))?;
        (bytes, files) = (bytes + length, files + 1);
    }
    eprintln!("{target}: {files} inputs are kept, {bytes} bytes");
    Ok(())
}

/// Whether a file's name is one that libFuzzer gives: the SHA-1 of its content.
/// What people name is kept for ever.
fn is_chosen(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.len() == 40 && name.iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_have_named_is_not_replaced() {
        assert!(is_chosen(Path::new(
            "corpus/da39a3ee5e6b4b0d3255bfef95601890afd80709"
        )));
        assert!(!is_chosen(Path::new("corpus/a-record-of-any-size")));
    }
}
