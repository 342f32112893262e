//! What can be wrong with a kernel.

use std::io;
use std::path::{Path, PathBuf};

use crate::arch::layout;
use crate::memory::DoesNotFit;

/// A guest that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, a device, a pipe.
    #[error("{} is not a regular file; name a kernel or initrd file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Larger than any kernel or initrd.
    #[error("{} is larger than {bytes_max} bytes; is it really a kernel or an initrd?", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// Of no known kind.
    #[error(
        "{} is not a kernel that Kemari can boot: {reason}; give a 64-bit Linux bzImage, an uncompressed \
         vmlinux with PVH entry, or Kemari's bare guest",
        path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        reason: &'static str,
    },
    /// What should be firmware is none.
    #[error(
        "{} is no firmware that Kemari can run: {reason}; name a PC's BIOS of at most 256 KiB, as SeaBIOS's \
         bios-microvm.bin",
        path.display()
    )]
    NotFirmware {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        reason: &'static str,
    },
    /// The command line is too long.
    #[error("the command line has {bytes} bytes, this kernel takes {bytes_max}; shorten it")]
    CmdlineTooLong {
        /// Its length.
        bytes: usize,
        /// The kernel's limit.
        bytes_max: usize,
    },
    /// The command line would end early.
    #[error("the command line contains a zero byte; remove it")]
    CmdlineZero,
    /// A bare guest takes no initrd.
    #[error(
        "{} is a bare guest, which takes no initrd; remove the initrd from the configuration",
        path.display()
    )]
    BareInitrd {
        /// The kernel.
        path: PathBuf,
    },
    /// More devices than places.
    #[error(
        "the machine has {count} devices, at most {} are possible; remove some",
        layout::VIRTIO_MMIO_DEVICES_MAX
    )]
    TooManyDevices {
        /// How many.
        count: usize,
    },
    /// Something does not fit into guest memory where it must lie.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
    /// There is no place for something anywhere.
    #[error(
        "the {what} needs {bytes} bytes, and the guest's memory has no room for it; give the machine more \
         memory"
    )]
    NoRoom {
        /// What.
        what: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// Loading a kernel failed.
    #[error("cannot load {}", path.display())]
    Load {
        /// The kernel.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<BootError>,
    },
}

impl BootError {
    /// Says which kernel it was.
    pub(super) fn of_kernel(self, path: &Path) -> Self {
        Self::Load {
            path: path.to_path_buf(),
            source: Box::new(self),
        }
    }
}
