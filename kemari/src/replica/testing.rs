//! Images for tests, and for how long some are tried.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::image::Image;
use crate::config::{Config, Disk, HostDisk};

/// A configuration with one replicated disk, `blk0`.
const EXAMPLE: &str = include_str!("../../../docs/example.toml");

/// For how long power cuts of recordings are looked at: no longer than a few, unless somebody wants more.
pub(crate) fn replay_time() -> Duration {
    let seconds = std::env::var("KEMARI_REPLAY_SECONDS");
    let seconds = seconds.ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// A directory with the image of a disk.
pub(crate) struct Scratch {
    directory: tempfile::TempDir,
    disk: Disk,
}

impl Scratch {
    /// An image of zeros.
    pub(crate) fn new(bytes: u64) -> Self {
        let text = EXAMPLE
            .replace("shared = true", "")
            .replace("cache = \"direct\"", "");
        let config = Config::parse(&text, "test").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let scratch = Self {
            directory,
            disk: config.disks[0].clone(),
        };
        std::fs::File::create(scratch.path())
            .unwrap()
            .set_len(bytes)
            .unwrap();
        scratch
    }

    /// Where the image is.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    /// Where its record is.
    pub(crate) fn record_path(&self) -> PathBuf {
        self.directory.path().join("disk.img.kemari")
    }

    /// Opens the image of the disk as that of a VM.
    pub(crate) fn open(&self, vm: &str, overwrite: Option<&str>) -> anyhow::Result<Arc<Image>> {
        let disk = HostDisk {
            disk: &self.disk,
            path: self.path(),
        };
        Image::open(vm, &disk, self.directory.path(), overwrite).map(Arc::new)
    }

    /// Opens the image.
    pub(crate) fn image(&self) -> Arc<Image> {
        self.open("vm", None).unwrap()
    }
}
