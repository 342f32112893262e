//! Static builds of our own programs, for hosts that have no libraries.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::cache::{target_dir, workspace};
use crate::error::{Context, Error, Result};

/// The target that builds are for; named so that build scripts and macros are not linked statically too.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the program `binary` of the workspace's package `package`, statically linked, and returns its path.
///
/// `features` are added to the default ones. The build has a target directory of its own (`target/static`), so that
/// it can run below `cargo test`, and is stripped of debugging information, so that it travels fast into a host.
pub fn static_binary(package: &str, binary: &str, features: &[&str], release: bool) -> Result<PathBuf> {
    let target = target_dir().join("static");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args([
        "build",
        "--quiet",
        "--package",
        package,
        "--bin",
        binary,
        "--target",
        TARGET,
    ]);
    command.arg("--target-dir").arg(&target).current_dir(workspace());
    if !features.is_empty() {
        command.args(["--features", &features.join(",")]);
    }
    if release {
        command.arg("--release");
    }
    command
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=debuginfo")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = command
        .stdin(Stdio::null())
        .status()
        .context(|| format!("start cargo to build {binary}"))?;
    if !status.success() {
        return Err(Error::Command {
            command: format!("cargo build --package {package} --bin {binary} --target {TARGET}"),
            status: status.to_string(),
            output: "what cargo said stands above".into(),
        });
    }
    let profile = if release { "release" } else { "debug" };
    Ok(target.join(TARGET).join(profile).join(binary))
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
