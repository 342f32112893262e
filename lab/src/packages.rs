//! Debian packages: tools that the lab runs are installed, what goes into images is only downloaded and
//! unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use crate::cache;
use crate::error::{Context, Error, Result};
use crate::process::run;

/// Programs that the lab runs, and the packages that bring them.
const TOOLS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("ip", "iproute2"),
    ("mke2fs", "e2fsprogs"),
    ("lz4", "lz4"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];
/// Where programs of Debian packages are; a user's PATH may lack the second half.
const PROGRAM_DIRS: [&str; 6] = [
    "/usr/bin",
    "/bin",
    "/usr/sbin",
    "/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
];

/// Installs the Debian packages that the lab needs, if any of their programs is missing.
/// Needs root and apt then.
pub fn ensure_packages() -> Result<()> {
    ensure_installed(&TOOLS)
}

/// The same for some programs, with the packages that bring them.
pub(crate) fn ensure_installed(tools: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = tools
        .iter()
        .filter(|(program, _)| installed(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot("installing packages"));
    }
    tracing::info!(packages = ?missing, "installing Debian packages");
    update_lists();
    let mut command = apt_get();
    command
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&missing);
    // Services that packages bring along must not start: they would take ports on this machine.
    run(command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1"))?;
    Ok(())
}

/// Where a program is that [`ensure_packages`] brings; only its name if it is nowhere, which makes a clear
/// error when it is started.
pub(crate) fn tool(program: &str) -> PathBuf {
    installed(program).unwrap_or_else(|| program.into())
}

fn installed(program: &str) -> Option<PathBuf> {
    PROGRAM_DIRS
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args([
        "--quiet",
        "--option",
        "APT::Sandbox::User=root",
        "--option",
        "DPkg::Lock::Timeout=300",
    ]);
    command
}

/// `apt-get update`, once a process. A failure shows in what is asked for next.
fn update_lists() {
    static UPDATED: Once = Once::new();
    UPDATED.call_once(|| {
        if let Err(error) = run(apt_get().arg("update")) {
            tracing::warn!(%error, "cannot update the package lists");
        }
    });
}

/// Runs an apt command, and once more with fresh package lists if it fails.
fn with_lists<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    attempt().or_else(|_| {
        update_lists();
        attempt()
    })
}

/// Downloads and unpacks a package (its files only: no scripts, nothing is installed); returns the directory
/// of its files, cached under the package's name.
pub(crate) fn unpacked(package: &str) -> Result<PathBuf> {
    cache::entry(&format!("package-{package}"), |path| {
        tracing::info!(package, "downloading");
        let debs = tempfile::tempdir_in(cache::dir()?).context(|| "make a directory for packages".into())?;
        with_lists(|| run(apt_get().args(["download", package]).current_dir(debs.path())))?;
        let deb = only_file(debs.path())?;
        run(Command::new("dpkg-deb").arg("--extract").args([&deb, path]))?;
        Ok(())
    })
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(dir).and_then(|mut entries| entries.next().transpose());
    let entry = entry.context(|| format!("read {}", dir.display()))?;
    entry.map(|entry| entry.path()).ok_or_else(|| Error::Format {
        path: dir.to_owned(),
        reason: "apt-get download left no package here".into(),
    })
}

/// The package that the meta package `meta` depends on whose name begins with `prefix`; cached, so that a lab
/// keeps its kernel until `target/lab` is removed.
pub(crate) fn resolve(meta: &str, prefix: &str) -> Result<String> {
    let path = cache::entry(&format!("depends-{meta}"), |path| {
        let find = || {
            let output = run(Command::new("apt-cache").args(["depends", meta]))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let mut names = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Depends: "));
            let name = names.find(|name| name.starts_with(prefix)).map(str::to_owned);
            name.ok_or_else(|| Error::Format {
                path: meta.into(),
                reason: format!("this package depends on no {prefix}*: is it in apt's lists?"),
            })
        };
        cache::write(path, with_lists(find)?.as_bytes())
    })?;
    Ok(String::from_utf8_lossy(&cache::read(&path)?).into_owned())
}
