//! The kinds of disk that are tried.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use kemari_vmm::disk::{Cache, DiskConfig, Io, Server};

use crate::own_file::{OwnFile, SECTOR_BYTES};
use crate::tools::{output_of, run_quietly};

/// One kind of disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    /// How it is called.
    pub name: &'static str,
    /// How writes reach it.
    pub cache: Cache,
    /// What carries out the I/O.
    pub io: Io,
    /// Whether it is a block device on the file, and of how many bytes its blocks are.
    pub device_block_bytes: Option<u32>,
    /// Whether the file can make zeros without writing them.
    pub makes_holes: bool,
    /// Whether the guest knows no flush.
    pub write_through: bool,
}

const PLAIN: Subject = Subject {
    name: "a raw file",
    cache: Cache::Writeback,
    io: Io::Auto,
    device_block_bytes: None,
    makes_holes: true,
    write_through: false,
};

/// All kinds.
pub(crate) const SUBJECTS: [Subject; 7] = [
    PLAIN,
    Subject {
        name: "a raw file, direct",
        cache: Cache::Direct,
        ..PLAIN
    },
    Subject {
        name: "a raw file without holes, by threads",
        io: Io::Threads,
        makes_holes: false,
        ..PLAIN
    },
    Subject {
        name: "a raw file, written through",
        write_through: true,
        ..PLAIN
    },
    Subject {
        name: "a block device",
        device_block_bytes: Some(512),
        ..PLAIN
    },
    Subject {
        name: "a block device, direct",
        cache: Cache::Direct,
        device_block_bytes: Some(512),
        ..PLAIN
    },
    Subject {
        name: "a block device of large blocks, direct",
        cache: Cache::Direct,
        device_block_bytes: Some(4096),
        ..PLAIN
    },
];

impl Subject {
    /// How it is opened.
    pub(crate) fn config(&self, path: &Path) -> DiskConfig {
        DiskConfig {
            cache: self.cache,
            io: self.io,
            ..DiskConfig::new(path)
        }
    }
}

/// What the disk is opened from.
pub(crate) enum Place {
    /// The file itself.
    File(PathBuf),
    /// A block device on it.
    Device(LoopDevice),
}

impl Place {
    /// Makes what the subject wants of a file.
    pub(crate) fn of(subject: &Subject, file: &OwnFile) -> Result<Self> {
        Ok(match subject.device_block_bytes {
            Some(block_bytes) => Self::Device(LoopDevice::on(file.path(), block_bytes)?),
            None => Self::File(file.path().to_owned()),
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Device(device) => &device.path,
        }
    }

    /// Makes it so many sectors long, durably.
    pub(crate) fn grow(&self, server: &Server, sectors: u64) -> Result<()> {
        let bytes = sectors * SECTOR_BYTES;
        if let Self::Device(device) = self {
            device.grow(bytes)?;
        }
        Ok(server.enlarge(bytes)?)
    }
}

/// A block device on a file.
pub(crate) struct LoopDevice {
    path: PathBuf,
    file: PathBuf,
}

impl LoopDevice {
    fn on(file: &Path, block_bytes: u32) -> Result<Self> {
        let mut make = Command::new("losetup");
        make.args(["--find", "--show", "--sector-size", &block_bytes.to_string()]);
        let path = output_of(make.arg(file))?;
        Ok(Self {
            path: path.trim().into(),
            file: file.to_owned(),
        })
    }

    fn grow(&self, bytes: u64) -> Result<()> {
        let file = std::fs::OpenOptions::new().write(true).open(&self.file)?;
        file.set_len(bytes).context("the file does not grow")?;
        run_quietly(Command::new("losetup").arg("--set-capacity").arg(&self.path))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run_quietly(Command::new("losetup").arg("--detach").arg(&self.path));
    }
}
