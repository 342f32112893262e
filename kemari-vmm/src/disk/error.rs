//! Images that cannot be used.

use std::io;
use std::path::PathBuf;

/// An image that cannot be used. Nothing was written to it.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened or sized.
    #[error("cannot open the disk image {path}")]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else has it.
    #[error(
        "the disk image {path} is in use by {}; stop that one first",
        user.as_deref().unwrap_or("another process, or mounted or part of a volume on this host")
    )]
    InUse {
        /// The image.
        path: PathBuf,
        /// Another process that has it open, if one is found.
        user: Option<String>,
    },
    /// Neither a file nor a block device.
    #[error("{path} is neither a file nor a block device, so it cannot be a disk")]
    Kind {
        /// What was named.
        path: PathBuf,
    },
    /// Not a whole number of blocks, or empty, or smaller than the guest knows it.
    #[error("the disk image {path} has {found_bytes} bytes, expected {expected_bytes}")]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
        /// The size it must have, at least.
        expected_bytes: u64,
    },
    /// Direct I/O does not work on it.
    #[error(
        "the disk image {path} cannot be read past the page cache (O_DIRECT); put it on a file system that \
         can, or set cache = \"writeback\" if it is not shared"
    )]
    Direct {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not of the format that it is said to have, or damaged.
    #[error("the disk image {path} cannot be used as {format}: {reason}")]
    Format {
        /// The image.
        path: PathBuf,
        /// The format it should have.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Its format is only read, and it was to be written to.
    #[error(
        "the disk image {path} is qcow2, which is only read: a power cut would damage it while it is written \
         to; make a raw image of it with `kemari import {path} --format qcow2 {raw}`, or set read_only = \
         true for this disk"
    )]
    OnlyRead {
        /// The image.
        path: PathBuf,
        /// Where a raw image of it could be.
        raw: PathBuf,
    },
    /// It could not be made larger.
    #[error("the disk image {path} cannot be made larger")]
    Enlarge {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot have that size.
    #[error(
        "the disk image {path} cannot have {wanted_bytes} bytes: it has {found_bytes}, never shrinks, and is \
         a whole number of sectors"
    )]
    NewSize {
        /// The image.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
        /// The size it was to have.
        wanted_bytes: u64,
    },
    /// It grew, and whoever must know of it first cannot take it.
    #[error("the disk image {path} has grown, but the guest cannot be told yet")]
    Grow {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What the host's page cache has of it could not be written.
    #[error("the disk image {path} cannot be closed: what the page cache has of it cannot be written")]
    Close {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel has no io_uring for this process.
    #[error("io_uring cannot be used on this host; set io = \"threads\" or \"auto\" for this disk")]
    Uring(#[source] io::Error),
}
