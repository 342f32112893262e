//! The repository, and the programs that are called.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Interval between two looks at what is waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Lines of a failed program's output that are shown.
const OUTPUT_LINES_MAX: usize = 40;

/// The root of the repository.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The `cargo` that runs this.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a program to its end; its output is shown only if it fails.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    output_of(command).map(drop)
}

/// Runs a program to its end and returns what it printed to its standard output.
pub fn output_of(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("`{shown}` cannot be started"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let all = text + &String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{shown}` failed ({}):\n{}",
            output.status,
            tail(&all, OUTPUT_LINES_MAX)
        );
    }
    Ok(text)
}

/// The command line as one would type it.
pub fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Looks again and again until there is a result; an error of `look` ends the waiting, and so does `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(
            begin.elapsed() < limit,
            "{what} did not happen within {} s",
            limit.as_secs()
        );
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Builds the program as the demo and the lab use it; `features` are those of crate `kemari`.
pub fn build_kemari(features: &[&str]) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--package", "kemari"]);
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    run_quietly(&mut command)?;
    Ok(target_dir().join("debug/kemari"))
}

/// Builds the program of a checkout of this repository as an administrator would, for measurements. Each
/// checkout wants a target directory of its own: to cargo the crates of one are those of another, and it
/// would take what it has built last of either.
pub fn build_release(checkout: &Path, target: &Path) -> Result<PathBuf> {
    let mut command = cargo();
    command.current_dir(checkout).env("CARGO_TARGET_DIR", target);
    run_quietly(command.args(["build", "--quiet", "--release", "--package", "kemari"]))?;
    Ok(target.join("release/kemari"))
}

/// Builds the bare guest: a workspace of its own, with a target directory of its own.
pub fn build_bare_guest() -> Result<PathBuf> {
    let directory = root().join("guests/bare");
    let mut command = cargo();
    command.current_dir(&directory).env_remove("CARGO_TARGET_DIR");
    run_quietly(command.args(["build", "--quiet", "--release"]))?;
    Ok(directory.join("target/release/bare-guest"))
}
