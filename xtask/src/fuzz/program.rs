//! The program with all targets, and libFuzzer in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::outcome::Outcome;
use crate::tools::{self, cargo, output_of, tail};

/// What it is built for: named, so that build scripts and macros are built without all that.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Coverage and comparisons for libFuzzer, and AddressSanitizer. The sanitizer is an unstable option, which
/// the stable compiler takes with RUSTC_BOOTSTRAP; so no other compiler is needed than the one that builds
/// Kemari.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Ccodegen-units=16";
/// One input may take so long, in seconds, ...
const INPUT_SECONDS_MAX: u32 = 25;
/// ... the process so much memory, and one allocation so much, in MiB.
const MEMORY_MIB_MAX: u32 = 1024;
const ALLOCATION_MIB_MAX: u32 = 256;
/// How long a crash is made smaller, in seconds.
const MINIMISE_SECONDS: u32 = 30;
/// Lines that are shown of a run that found something.
const OUTPUT_LINES_MAX: usize = 60;

/// The built program.
pub(crate) struct Program(PathBuf);

/// The workspace of the targets.
fn workspace() -> PathBuf {
    tools::root().join("fuzz")
}

/// Where the inputs of a target are that are kept for ever.
pub(crate) fn kept(target: &str) -> PathBuf {
    workspace().join("corpus").join(target)
}

/// Where a target's inputs of a kind are: what was found, its seeds, crashes.
fn place(kind: &str, target: &str) -> Result<PathBuf> {
    let directory = workspace().join("target").join(kind).join(target);
    fs::create_dir_all(&directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    Ok(directory)
}

/// The files of a directory, in the order of their names; none if it is not there.
pub(crate) fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(directory)?;
    let entries =
        fs::read_dir(directory).with_context(|| format!("{} cannot be read", directory.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
    Ok(paths)
}

impl Program {
    /// Builds it.
    pub(crate) fn build() -> Result<Self> {
        eprintln!("building what is fuzzed; the first time this takes some minutes");
        let mut command = cargo();
        command
            .current_dir(workspace())
            .args(["build", "--quiet", "--release", "--target", TRIPLE])
            .env_remove("CARGO_TARGET_DIR")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", RUSTFLAGS);
        output_of(&mut command)?;
        Ok(Self(
            workspace().join(format!("target/{TRIPLE}/release/kemari-fuzz")),
        ))
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(&self.0);
        command
            .current_dir(workspace())
            .stdin(Stdio::null())
            .env("KEMARI_FUZZ_TARGET", target)
            // Threads of the process live as long as it does.
            .env("ASAN_OPTIONS", "detect_leaks=0:quarantine_size_mb=16");
        command
    }

    /// The same, with the limits of a run.
    fn limited(&self, target: &str) -> Command {
        let mut command = self.command(target);
        command.args([
            format!("-timeout={INPUT_SECONDS_MAX}"),
            // One that only takes long is no finding.
            format!("-report_slow_units={INPUT_SECONDS_MAX}"),
            format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
            format!("-malloc_limit_mb={ALLOCATION_MIB_MAX}"),
        ]);
        command
    }

    /// The names of the targets.
    pub(crate) fn targets(&self) -> Result<Vec<String>> {
        let names = output_of(self.command("").env("KEMARI_FUZZ_LIST", "1"))?;
        Ok(names.trim().split(", ").map(str::to_owned).collect())
    }

    /// Fuzzes a target for so long, or until something is found.
    pub(crate) fn fuzz(&self, target: &str, minutes: u64) -> Result<Outcome> {
        let (found, seeds) = (place("corpus", target)?, place("seeds", target)?);
        let crashes = place("crashes", target)?;
        output_of(self.command(target).env("KEMARI_FUZZ_SEEDS", &seeds))?;
        fs::create_dir_all(kept(target))?;
        let begin = Instant::now();
        let mut command = self.limited(target);
        command
            .arg(format!("-max_total_time={}", minutes * 60))
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .arg("-print_final_stats=1")
            .args([&found, &seeds, &kept(target)]);
        let output = command.output().context("the fuzzer cannot be started")?;
        let text = String::from_utf8_lossy(&output.stderr);
        let mut outcome = Outcome::parse(target, &text);
        outcome.seconds = begin.elapsed().as_secs();
        if !output.status.success() {
            println!("{}", tail(&text, OUTPUT_LINES_MAX));
            ensure!(
                !outcome.crashes.is_empty(),
                "the fuzzer died and left no input behind ({})",
                output.status
            );
        }
        Ok(outcome)
    }

    /// Runs one input; whether the target stands it.
    pub(crate) fn run_input(&self, target: &str, input: &Path) -> Result<bool> {
        // A directory it would take for a corpus, and fuzz.
        ensure!(input.is_file(), "{} is no file", input.display());
        let status = self.limited(target).arg(input).status();
        Ok(status.context("the fuzzer cannot be started")?.success())
    }

    /// A smaller input that crashes too, or the same.
    pub(crate) fn minimised(&self, target: &str, crash: &Path) -> PathBuf {
        let is_crash = crash
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("crash-"));
        let smaller = crash.with_extension("min");
        // Of what takes long or takes memory a smaller one that does not quite is no use.
        let ended = is_crash.then(|| {
            let mut command = self.limited(target);
            command
                .args(["-minimize_crash=1", "-runs=20000"])
                .arg(format!("-max_total_time={MINIMISE_SECONDS}"))
                .arg(format!("-exact_artifact_path={}", smaller.display()))
                .arg(crash);
            command.output()
        });
        match ended {
            Some(Ok(_)) if smaller.exists() => smaller,
            _ => crash.to_owned(),
        }
    }

    /// The inputs that together cover all that any known one covers, in as few files as can be found.
    pub(crate) fn merged(&self, target: &str) -> Result<Vec<PathBuf>> {
        let merged = place("merged", target)?;
        for path in files(&merged)? {
            fs::remove_file(path)?;
        }
        let mut command = self.limited(target);
        command
            .arg("-set_cover_merge=1")
            .args([&merged, &place("corpus", target)?, &kept(target)]);
        let output = command.output().context("the fuzzer cannot be started")?;
        if !output.status.success() {
            bail!(
                "the inputs of {target} cannot be merged: {}",
                tail(&String::from_utf8_lossy(&output.stderr), OUTPUT_LINES_MAX)
            );
        }
        let mut chosen = files(&merged)?;
        // The short ones first: most of them fit.
        chosen.sort_by_key(|path| path.metadata().map_or(u64::MAX, |metadata| metadata.len()));
        Ok(chosen)
    }
}
