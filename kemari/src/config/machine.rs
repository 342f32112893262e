//! The machine: what the guest sees, the same on every host.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Mac, Rate};

/// `[machine]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Memory of the guest in MiB: 64 to 1,048,576.
    pub memory_mib: u32,
    /// Number of vCPUs: 1 to 8.
    #[serde(default = "one")]
    pub vcpus: u8,
    /// The kernel: a bzImage, a vmlinux with a PVH note, or a bare guest.
    #[serde(default)]
    pub kernel: Option<PathBuf>,
    /// Instead of a kernel: firmware that boots a disk. A path, or [`BIOS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// The initial RAM disk.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
}

/// What stands for [`BIOS_PATH`] in a configuration.
pub(super) const BIOS: &str = "bios";
/// SeaBIOS, of Debian's package `seabios`.
pub(crate) const BIOS_PATH: &str = "/usr/share/seabios/bios-microvm.bin";

impl Machine {
    /// The file that the guest begins with: a kernel, or firmware.
    pub(crate) fn begins_with(&self) -> &Path {
        let file = self.kernel.as_deref().or_else(|| self.firmware_path());
        file.unwrap_or(Path::new(""))
    }

    /// The file of the firmware, if there is one.
    pub(crate) fn firmware_path(&self) -> Option<&Path> {
        let path = self.firmware.as_deref()?;
        Some(if path == Path::new(BIOS) {
            Path::new(BIOS_PATH)
        } else {
            path
        })
    }
}

fn one() -> u8 {
    1
}

fn sector() -> u32 {
    512
}

fn one_queue() -> u16 {
    1
}

fn yes() -> bool {
    true
}

/// How a disk is opened on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Through the host's page cache; a flush of the guest is an fdatasync.
    #[default]
    Writeback,
    /// O_DIRECT: past the page cache. Needed for disks that two hosts share.
    Direct,
}

/// What the bytes of an image mean. Never guessed: a guest could write another format's header into a raw
/// disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// They are the disk's.
    #[default]
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// What carries out a disk's I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    /// io_uring for raw images where the kernel has it, threads otherwise.
    #[default]
    Auto,
    /// io_uring, or the disk is refused.
    IoUring,
    /// Threads.
    Threads,
}

/// What becomes of a request that the host's disk cannot carry out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The guest is told of an I/O error.
    #[default]
    Report,
    /// The VM stands still until `kemari resume`, which tries again.
    Pause,
    /// The other host goes on with the VM, if it is protected; otherwise as `pause`.
    Failover,
}

/// `[[disk]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Name of the disk and of its event channel, as `blk0`.
    pub id: String,
    /// The image or block device, unless each host names its own in `[hosts.NAME.disks]`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// What is in it.
    #[serde(default)]
    pub format: Format,
    /// How it is opened.
    #[serde(default)]
    pub cache: Cache,
    /// What carries out its I/O.
    #[serde(default)]
    pub io: Io,
    /// What becomes of a request that the host's disk cannot carry out.
    #[serde(default)]
    pub on_error: OnError,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Serial number that the guest can read, at most 20 bytes; the id if absent.
    #[serde(default)]
    pub serial: Option<String>,
    /// Bytes of a logical block that the guest sees: 512 or 4096.
    #[serde(default = "sector")]
    pub(crate) block_size: u32,
    /// Number of queues, 1 to 8: one a vCPU serves guests that write from many.
    #[serde(default = "one_queue")]
    pub queues: u16,
    /// Whether the hosts see one and the same disk.
    #[serde(default)]
    pub shared: bool,
    /// Whether each host has an image of its own, and Kemari keeps them equal. So it is if neither is said.
    #[serde(default)]
    pub(crate) replicate: Option<bool>,
    /// When a guest's flush of a replicated disk is done.
    #[serde(default)]
    pub flush: Flush,
    /// What it carries out at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

/// When a guest's flush of a replicated disk is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    /// When the primary's disk and the secondary's memory have what was written.
    #[default]
    Memory,
    /// When both disks have it.
    Both,
}

impl Disk {
    /// The serial number that the guest reads.
    pub fn serial(&self) -> &str {
        self.serial.as_deref().unwrap_or(&self.id)
    }

    /// Whether each host has an image of its own, which Kemari keeps equal to the other's while the VM is
    /// protected.
    pub(crate) fn is_replicated(&self) -> bool {
        !self.read_only && self.replicate.unwrap_or(!self.shared)
    }
}

/// `[[net]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Name of the card and, with `.rx` and `.tx`, of its event channels, as `net0`.
    pub id: String,
    /// The card's address, the same on every host.
    pub mac: Mac,
    /// The TAP device, unless each host names its own in `[hosts.NAME.taps]`.
    #[serde(default)]
    pub tap: Option<String>,
    /// Whether checksum and segmentation offloads are offered to the guest where the TAP can carry them.
    #[serde(default = "yes")]
    pub(crate) offload: bool,
    /// What it receives, and what it transmits, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}
