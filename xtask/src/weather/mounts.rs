//! File systems of a case. They are seen by this program and its children only, and end with the value.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::io::FdFlags;

use crate::tools::run_quietly;

/// Says to a process that it has mounts of its own already.
const MARK: &str = "KEMARI_WEATHER_MOUNTS";

/// Becomes a process whose mounts nobody else sees: this program again, with the same words.
pub(crate) fn become_private() -> Result<()> {
    if std::env::var_os(MARK).is_some() {
        return Ok(());
    }
    let root = rustix::process::geteuid().is_root();
    if !root {
        bail!("network namespaces and mounts need root: run it as root (for example with sudo)");
    }
    let program = OwnProgram::open()?;
    let mut command = program.with_mounts_of_its_own();
    let error = command.args(std::env::args_os().skip(1)).exec();
    Err(error).context("`unshare` (Debian package util-linux) cannot be started")
}

/// The program that this process is, as its children can start it: under its own name there may be a newer
/// one by now, or none, since cargo has built it again.
pub(crate) struct OwnProgram(File);

impl OwnProgram {
    /// Opens it, for children too.
    pub(crate) fn open() -> Result<Self> {
        let file = File::open("/proc/self/exe").context("this program cannot be opened")?;
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).context("this program cannot be passed on")?;
        Ok(Self(file))
    }

    /// Where a child finds it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Starts it so that nobody else sees its mounts.
    pub(crate) fn with_mounts_of_its_own(&self) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private"])
            .arg(self.path())
            .env(MARK, "1");
        command
    }
}

/// What is mounted.
#[derive(Debug, Default)]
pub(crate) struct Mounts(Vec<PathBuf>);

impl Mounts {
    /// Makes a directory with a file system of its own of `kib` KiB.
    pub(crate) fn small(&mut self, path: &Path, kib: u32) -> Result<()> {
        fs::create_dir_all(path)?;
        let size = format!("size={kib}k");
        run_quietly(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                .arg(path),
        )?;
        self.0.push(path.to_owned());
        Ok(())
    }

    /// Makes a directory with an ext4 of its own of `mib` MiB, in a file beside it: one that can be frozen.
    pub(crate) fn ext4(&mut self, path: &Path, mib: u64) -> Result<()> {
        fs::create_dir_all(path)?;
        let file = path.with_extension("ext4");
        File::create(&file)?.set_len(mib << 20)?;
        run_quietly(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file))?;
        run_quietly(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(path))?;
        self.0.push(path.to_owned());
        Ok(())
    }

    /// Names are looked up in `dir/hosts` from here on, and nowhere else answers.
    pub(crate) fn names(&mut self, dir: &Path) -> Result<()> {
        fs::write(dir.join("hosts"), "127.0.0.1 localhost\n")?;
        // An address in the hosts' network at which nobody is: as a name server that is gone.
        fs::write(
            dir.join("resolv.conf"),
            "nameserver 10.78.0.99\noptions timeout:2 attempts:2\n",
        )?;
        self.over(&dir.join("hosts"), Path::new("/etc/hosts"))?;
        self.over(&dir.join("resolv.conf"), Path::new("/etc/resolv.conf"))
    }

    /// Lays a file over another.
    fn over(&mut self, from: &Path, over: &Path) -> Result<()> {
        run_quietly(Command::new("mount").arg("--bind").arg(from).arg(over))?;
        self.0.push(over.to_owned());
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // One that a case has left frozen would hold up whoever is still to end.
            let _ = run_quietly(Command::new("fsfreeze").arg("--unfreeze").arg(path));
            let _ = run_quietly(Command::new("umount").arg("--lazy").arg(path));
        }
    }
}
