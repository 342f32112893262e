//! A guest's disk, looked at from outside: is its file system whole,
//! and do the guest's own programs work on it?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::cache;
use crate::error::{Context, Result};
use crate::netns::Netns;
use crate::packages::tool;
use crate::process::run;
use crate::scratch::scratch_dir;

/// Exit status of e2fsck: it has changed something, as it was asked to.
const CORRECTED: i32 = 1;

/// A copy of a guest's ext4 disk. The disk itself is only read.
#[derive(Debug)]
pub struct DiskCopy {
    directory: TempDir,
}

impl DiskCopy {
    /// Copies the disk that a guest has used; the guest must not run any more.
    pub fn take(disk: &Path) -> Result<DiskCopy> {
        Self::take_from(disk, 0)
    }

    /// Copies the file system that begins so many bytes behind the beginning of a disk.
    pub fn take_from(disk: &Path, offset: u64) -> Result<DiskCopy> {
        let copy = DiskCopy {
            directory: scratch_dir()?,
        };
        let mut command = Command::new("dd");
        command
            .args(["conv=sparse", "bs=1M", "iflag=skip_bytes"])
            .arg(format!("skip={offset}"))
            .arg(format!("if={}", disk.display()))
            .arg(format!("of={}", copy.image().display()));
        run(&mut command)?;
        Ok(copy)
    }

    /// Replays the journal, as a mount would, and then has e2fsck look at everything without changing it;
    /// what it finds is an error. A guest that was not shut down leaves a journal, and without it no ext4 is
    /// consistent.
    pub fn check(&self) -> Result<()> {
        let image = self.image();
        let mut replay = Command::new(tool("e2fsck"));
        let output = replay
            .args(["-y", "-E", "journal_only"])
            .arg(&image)
            .output()
            .context(|| "start e2fsck (Debian package e2fsprogs)".into())?;
        if output.status.code() != Some(CORRECTED) {
            crate::process::check("e2fsck -y -E journal_only".into(), output)?;
        }
        run(Command::new(tool("e2fsck")).arg("-fn").arg(&image)).map(drop)
    }

    /// Takes all files out, for the guest's programs to run on. [`DiskCopy::check`] goes before it.
    pub fn open(&self) -> Result<GuestRoot> {
        let directory = tempfile::tempdir_in(self.directory.path()).context(|| "make a directory".into())?;
        let mut dump = Command::new(tool("debugfs"));
        dump.args(["-R", &format!("rdump / {}", directory.path().display())]);
        run(dump.arg(self.image()))?;
        let root = GuestRoot { directory };
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))
            .context(|| format!("open up {}", root.path().display()))?;
        run(&mut root.command(None, "mknod -m 666 /dev/null c 1 3"))?;
        Ok(root)
    }

    /// The copy.
    pub fn image(&self) -> PathBuf {
        self.directory.path().join("disk")
    }
}

/// The files of a guest's disk.
#[derive(Debug)]
pub struct GuestRoot {
    directory: TempDir,
}

impl GuestRoot {
    /// The files of a disk that no guest has used yet.
    pub fn fresh(disk: &Path) -> Result<(DiskCopy, GuestRoot)> {
        let copy = DiskCopy::take(disk)?;
        let root = copy.open()?;
        Ok((copy, root))
    }

    /// A command for the guest's shell, with the guest's files around it: as root,
    /// in a network namespace if wanted.
    pub fn command(&self, netns: Option<&Netns>, script: &str) -> Command {
        let chroot = tool("chroot");
        let mut command = match netns {
            Some(netns) => netns.command(chroot),
            None => Command::new(chroot),
        };
        command
            .arg(self.path())
            .args(["/bin/sh", "-euc", script])
            .env("PATH", "/bin:/sbin:/usr/bin");
        command
    }

    /// Runs a script of the guest's shell to its end, and returns what it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = run(&mut self.command(None, script))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Adds a file.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        cache::write(&self.path().join(path.trim_start_matches('/')), content)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}
