//! Static builds of our own programs, for hosts that have no libraries.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cache::{target_dir, workspace};
use crate::error::{Context, Error, Result};
use crate::process::show;

/// The target that builds are for; named so that build scripts and macros are not linked statically too.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the program `binary` of the workspace's package `package`, statically linked, and returns its path.
///
/// `features` are added to the default ones. The build has a target directory of its own (`target/static`),
/// so that it can run below `cargo test`, and is stripped of debugging information, so that it travels fast
/// into a host.
pub fn static_binary(package: &str, binary: &str, features: &[&str], release: bool) -> Result<PathBuf> {
    let mut command = cargo("build", package, features);
    command.args(["--bin", binary]);
    if release {
        command.arg("--release");
    }
    finish(command)?;
    let profile = if release { "release" } else { "debug" };
    Ok(static_dir().join(TARGET).join(profile).join(binary))
}

/// Builds all tests of the workspace's package `package`, statically linked, to be run inside a host; returns
/// the paths of the test programs. See [`static_binary`].
pub fn static_tests(package: &str, features: &[&str]) -> Result<Vec<PathBuf>> {
    let mut command = cargo("test", package, features);
    command
        .args(["--no-run", "--message-format", "json-render-diagnostics"])
        .stdout(Stdio::piped());
    let messages = finish(command)?;
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tests = messages.filter(|message| message["profile"]["test"] == true);
    Ok(tests
        .filter_map(|message| Some(message["executable"].as_str()?.into()))
        .collect())
}

fn static_dir() -> PathBuf {
    target_dir().join("static")
}

fn cargo(subcommand: &str, package: &str, features: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args([subcommand, "--quiet", "--package", package, "--target", TARGET]);
    command
        .arg("--target-dir")
        .arg(static_dir())
        .current_dir(workspace());
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    command.env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=debuginfo");
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

/// Runs cargo, whose complaints go to standard error as they come;
/// returns its standard output where it is piped.
fn finish(mut command: Command) -> Result<String> {
    let shown = show(&command);
    let child = command
        .stdin(Stdio::null())
        .spawn()
        .context(|| format!("start `{shown}`"))?;
    let output = child
        .wait_with_output()
        .context(|| format!("wait for `{shown}`"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let (status, output) = (output.status.to_string(), "what cargo said stands above".into());
    Err(Error::Command {
        command: shown,
        status,
        output,
    })
}

/// The programs that run inside emulated hosts.
#[derive(Clone, Debug)]
pub struct HostBinaries {
    /// `kemari`.
    pub kemari: PathBuf,
    /// The agent.
    pub lab_agent: PathBuf,
}

/// Builds `kemari`, with `features`, and the agent for emulated hosts.
pub fn host_binaries(features: &[&str], release: bool) -> Result<HostBinaries> {
    Ok(HostBinaries {
        kemari: static_binary("kemari", "kemari", features, release)?,
        lab_agent: lab_agent()?,
    })
}

/// Builds the agent.
pub(crate) fn lab_agent() -> Result<PathBuf> {
    static_binary("lab", "lab-agent", &[], true)
}
