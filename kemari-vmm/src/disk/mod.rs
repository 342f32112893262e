//! Disk images of the host, and how their I/O is carried out.
//!
//! From the guest downwards: a [`Server`] takes jobs, keeps those that overlap in order and decides what a
//! failure means; an engine carries them out side by side, by io_uring or by threads; a [`Store`] is the
//! image itself, a raw file or block device, or qcow2, which is only read.

mod buffer;
mod engine;
mod error;
mod kept;
mod lock;
mod opener;
mod operation;
mod order;
mod overlay;
mod qcow2;
mod raw;
mod server;
mod sticky;
mod store;
mod unflushed;
mod watch;

pub(crate) use engine::{RING_CALLS, THREADS_CALLS};
pub use error::DiskError;
pub use kept::KeptDisk;
pub use opener::{OpenImage, set_opener};
pub(crate) use operation::GuestBuffers;
pub use operation::{DiskJob, Operation};
pub use overlay::Overlay;
pub use qcow2::backing_files;
pub(crate) use server::TroubleSink;
pub use server::{EndSink, Outcome, Server, Trouble};
pub use store::Store;
pub use watch::{CALLS as WATCH_CALLS, DiskWatch, Tell};

use std::fs::{File, FileType, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::Uring;
use qcow2::Qcow2Image;
use raw::RawFile;
use sticky::Sticky;

/// Bytes of a sector: an image has a whole number of them.
pub const SECTOR_BYTES: u64 = 512;

/// How writes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Through the host's page cache; a guest's flush reaches the disk.
    Writeback,
    /// Past the host's page cache (O_DIRECT): nothing completed is lost with this host.
    Direct,
}

/// What the bytes of an image mean. It is never guessed: a guest could write another format's header into a
/// raw disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// They are the disk's.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3: only to be read.
    Qcow2,
}

/// What carries out the I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// io_uring where there is one, for raw images; threads otherwise.
    Auto,
    /// io_uring, or an error. Other formats than raw have threads all the same.
    Uring,
    /// Threads.
    Threads,
}

/// What becomes of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The guest is told.
    Report,
    /// It stays unfinished, and [`Trouble`] is told: the machine is to be paused.
    Pause,
    /// The same, and another host should go on if one can.
    Failover,
}

/// How to open an image.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// File or block device.
    pub path: PathBuf,
    /// What is in it.
    pub format: Format,
    /// How writes reach the disk.
    pub cache: Cache,
    /// What carries out the I/O.
    pub io: Io,
    /// What becomes of a request that failed.
    pub on_error: OnError,
    /// Bytes of the guest's blocks, a multiple of 512: the image counts as so many whole ones, and what is
    /// behind them is left alone.
    pub block_bytes: u32,
    /// Refuse writes.
    pub read_only: bool,
    /// Whether an image that another process has locked is opened all the same:
    /// only after that one was fenced.
    pub ignore_lock: bool,
}

impl DiskConfig {
    /// A raw image, through the page cache, whose errors the guest is told.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: Format::Raw,
            cache: Cache::Writeback,
            io: Io::Auto,
            on_error: OnError::Report,
            block_bytes: SECTOR_BYTES as u32,
            read_only: false,
            ignore_lock: false,
        }
    }
}

/// An open image.
pub struct Disk {
    path: PathBuf,
    store: Arc<Sticky>,
    bytes: AtomicU64,
    io: Io,
    on_error: OnError,
}

impl Disk {
    /// Opens an image and takes its lock. Nothing is written.
    pub fn open(config: &DiskConfig) -> Result<Self, DiskError> {
        check_use(config)?;
        let (file, kind) = open_file(config, true)?;
        lock::take(&file, config)?;
        let path = config.path.clone();
        let store: Arc<dyn Store> = match config.format {
            Format::Raw => raw(file, kind, config)?,
            Format::Qcow2 => Arc::new(Qcow2Image::open(file, config)?),
        };
        let found_bytes = store.bytes().map_err(open_error(&path))?;
        let bytes = whole_blocks(found_bytes, config.block_bytes);
        if bytes == 0 {
            return Err(size_error(&path, found_bytes, config.block_bytes.into()));
        }
        store
            .read(0, &mut [0; SECTOR_BYTES as usize])
            .map_err(open_error(&path))?;
        Ok(Self {
            path,
            store: Sticky::new(store),
            bytes: AtomicU64::new(bytes),
            io: config.io,
            on_error: config.on_error,
        })
    }

    /// Looks whether [`Disk::open`] would succeed, taking no lock: also of an image that somebody uses. Of a
    /// qcow2 image its header and those of its backing files are looked at, not all of their tables. Returns
    /// what its files are: itself, and its backing files from the first down.
    pub fn examine(config: &DiskConfig) -> Result<Vec<Metadata>, DiskError> {
        check_use(config)?;
        let (file, kind) = open_file(config, false)?;
        let path = &config.path;
        let mut files = vec![file.metadata().map_err(open_error(path))?];
        if config.format == Format::Qcow2 {
            files.extend(qcow2::examine(&file, config)?);
            return Ok(files);
        }
        let store = raw(file, kind, config)?;
        let found_bytes = store.bytes().map_err(open_error(path))?;
        if whole_blocks(found_bytes, config.block_bytes) == 0 {
            return Err(size_error(path, found_bytes, config.block_bytes.into()));
        }
        Ok(files)
    }

    /// An image of another kind, as tests have them, whose errors are treated so.
    pub fn with_store(store: Arc<dyn Store>, on_error: OnError) -> io::Result<Self> {
        Ok(Self {
            path: "(a store)".into(),
            bytes: AtomicU64::new(store.bytes()?),
            store: Sticky::new(store),
            io: Io::Auto,
            on_error,
        })
    }

    /// Size in bytes: when it was opened, or as [`Disk::note_grown`] has said since.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// So many bytes of it are in use from here on.
    pub(crate) fn note_grown(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::SeqCst);
    }

    /// Size in bytes, now.
    pub fn bytes_now(&self) -> io::Result<u64> {
        self.store.bytes()
    }

    /// Makes the image larger. The guest does not know of it yet. Durable with the next flush.
    ///
    /// # Errors
    /// Also if it is larger already: it never shrinks.
    pub fn enlarge(&self, bytes: u64) -> Result<(), DiskError> {
        let failed = |source| DiskError::Enlarge {
            path: self.path.clone(),
            source,
        };
        let found_bytes = self.bytes_now().map_err(failed)?;
        if bytes < found_bytes || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(DiskError::NewSize {
                path: self.path.clone(),
                found_bytes,
                wanted_bytes: bytes,
            });
        }
        match bytes == found_bytes {
            true => Ok(()),
            false => self.store.enlarge(bytes).map_err(failed),
        }
    }

    /// Where the image is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes all that was written durable. An image that a [`Server`] serves is flushed by [`Server::flush`]:
    /// of two flushes of one file at a time only one is told that it failed.
    ///
    /// # Errors
    /// From the first failure on always: what was written since the last good flush may be lost.
    pub fn flush(&self) -> io::Result<()> {
        self.store.flush()
    }

    /// Whether a range is known to read as zeros, without a look at its bytes.
    pub fn is_hole(&self, range: &Range<u64>) -> bool {
        self.store.is_hole(range.start, range.end - range.start)
    }

    /// Makes what the host's page cache holds of it durable, and lets the host forget it: what is read next
    /// comes from the disk itself. After a write-back that has failed, in this process or an earlier one,
    /// only that proves anything.
    ///
    /// # Errors
    /// If it cannot be made durable: then nobody knows what is on the disk.
    pub fn forget_cached(&self) -> io::Result<()> {
        self.flush()?;
        self.store.raw().map_or(Ok(()), RawFile::forget_cached)
    }

    /// Carries out one operation; returns the bytes of a [`Operation::Read`] (none for others).
    pub fn carry_out(&self, operation: &Operation) -> io::Result<Vec<u8>> {
        operation.carry_out(&*self.store)
    }

    /// Whether the kernel may have in its page cache what it has not written yet.
    fn is_cached(&self) -> bool {
        self.store.raw().is_none_or(RawFile::is_cached)
    }

    fn store(&self) -> &Arc<Sticky> {
        &self.store
    }

    fn io(&self) -> Io {
        self.io
    }

    fn on_error(&self) -> OnError {
        self.on_error
    }
}

/// Opens an image, whatever is in it, and locks it as one that is read, or written to.
/// The locks go with the file.
pub fn hold(path: &Path, write: bool) -> Result<File, DiskError> {
    let config = DiskConfig {
        read_only: !write,
        ..DiskConfig::new(path)
    };
    let (file, _) = open_file(&config, true)?;
    lock::take(&file, &config)?;
    Ok(file)
}

/// So many bytes of an image are in use, of those that it has.
pub fn whole_blocks(bytes: u64, block_bytes: u32) -> u64 {
    bytes - bytes % u64::from(block_bytes)
}

fn open_error(path: &Path) -> impl Fn(io::Error) -> DiskError + Copy {
    move |source| match source.raw_os_error() {
        Some(libc::EBUSY) => DiskError::InUse {
            path: path.into(),
            user: None,
        },
        _ => DiskError::Open {
            path: path.into(),
            source,
        },
    }
}

/// Whether its format can be used so, and there is what is to carry out the I/O. Said here, and not only when
/// a [`Server`] starts: that is too late for a host that takes a VM over.
fn check_use(config: &DiskConfig) -> Result<(), DiskError> {
    match (config.format, config.io) {
        (Format::Qcow2, _) if !config.read_only => {
            let path = config.path.clone();
            // A name of its own, also where the image itself is called so.
            let raw = ["img", "raw"].map(|extension| path.with_extension(extension));
            let raw = raw.into_iter().find(|raw| *raw != path).unwrap_or_default();
            Err(DiskError::OnlyRead { path, raw })
        }
        (Format::Raw, Io::Uring) => Uring::probe().map_err(DiskError::Uring),
        _ => Ok(()),
    }
}

/// Opens the file or the block device. `exclusive`: a block device that this host has mounted,
/// or in a volume, is refused.
fn open_file(config: &DiskConfig, exclusive: bool) -> Result<(File, FileType), DiskError> {
    let path = config.path.clone();
    let kind = std::fs::metadata(&path).map_err(open_error(&path))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::Kind { path });
    }
    let direct = config.cache == Cache::Direct;
    let how = OpenImage {
        write: !config.read_only,
        direct,
        exclusive: kind.is_block_device() && !config.read_only && exclusive,
    };
    let file = how
        .open(&path)
        .map_err(|source| match (direct, source.raw_os_error()) {
            (true, Some(libc::EINVAL)) => DiskError::Direct {
                path: path.clone(),
                source,
            },
            _ => open_error(&path)(source),
        })?;
    Ok((file, kind))
}

fn raw(file: File, kind: FileType, config: &DiskConfig) -> Result<Arc<RawFile>, DiskError> {
    let path = &config.path;
    let length = file.metadata().map_err(open_error(path))?;
    if kind.is_file() && length.len() == 0 {
        return Err(size_error(path, 0, SECTOR_BYTES));
    }
    if config.cache == Cache::Writeback {
        return Ok(Arc::new(RawFile::cached(file)));
    }
    let how = OpenImage {
        write: !config.read_only,
        ..OpenImage::default()
    };
    let again = || how.open(path);
    let raw = RawFile::direct(file, again).map_err(|source| DiskError::Direct {
        path: path.clone(),
        source,
    })?;
    Ok(Arc::new(raw))
}

fn size_error(path: &Path, found_bytes: u64, expected_bytes: u64) -> DiskError {
    DiskError::Size {
        path: path.to_owned(),
        found_bytes,
        expected_bytes,
    }
}

#[cfg(test)]
#[path = "open_test.rs"]
mod tests;
