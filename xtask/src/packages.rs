//! Debian packages that the commands need.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::tools::run_quietly;

/// A program and the Debian package that holds it.
pub type Need = (&'static str, &'static str);

/// Network namespaces, bridges and TAPs.
pub const IP: Need = ("ip", "iproute2");
/// The arbiter.
pub const ETCD: Need = ("etcd", "etcd-server");
/// Requests over HTTP.
pub const CURL: Need = ("curl", "curl");
/// Shifts the clock of a program.
pub const FAKETIME: Need = ("faketime", "faketime");
/// Makes certificates.
pub const OPENSSL: Need = ("openssl", "openssl");
/// Makes images of other formats than raw, and compares them.
pub const QEMU_IMG: Need = ("qemu-img", "qemu-utils");
/// Makes file systems.
pub const MKFS: Need = ("mkfs.ext4", "e2fsprogs");
/// The firmware of guests that boot a disk: no program, so its path.
pub const SEABIOS: Need = ("/usr/share/seabios/bios-microvm.bin", "seabios");
/// Names the files of a checkout.
pub const GIT: Need = ("git", "git");
/// The service of the Linux guest, and of the tests of the proof.
pub const REDIS: Need = ("redis-server", "redis-server");

/// Installs what is missing; without root it says what to install.
pub fn ensure_installed(needs: &[Need]) -> Result<()> {
    let missing = needs.iter().filter(|(program, _)| !is_installed(program));
    let packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    let root = rustix::process::geteuid().is_root();
    ensure!(
        root,
        "packages are missing; install them as root, then try again: {line}"
    );
    // Services that packages bring along must not start: they would take ports on this machine.
    let environment = [("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")];
    let apt = |args: &[&str]| run_quietly(Command::new("apt-get").args(args).envs(environment));
    let install = || {
        apt(&[
            &["install", "--yes", "--quiet", "--no-install-recommends"],
            &packages[..],
        ]
        .concat())
    };
    install()
        .or_else(|_| apt(&["update", "--quiet"]).and_then(|()| install()))
        .with_context(|| format!("packages are missing and could not be installed; try by hand: {line}"))
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    // An ordinary user's PATH lacks the directories of root's programs.
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        // A path stays one.
        .any(|dir| Path::new(dir).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_needs_no_installing() {
        ensure_installed(&[("sh", "dash"), ("/etc/passwd", "base-passwd")]).unwrap();
        assert!(!is_installed("no-such-program-of-any-package"));
        assert!(!is_installed("/usr/share/no-such-file"));
    }
}
