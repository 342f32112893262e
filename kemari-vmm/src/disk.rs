//! Disk images of the host: raw files and block devices, and the thread that carries out their I/O.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Weak};
use std::thread;

use crate::virtio::Completions;
use crate::virtio::block::SECTOR_BYTES;

/// Alignment of buffers for direct I/O, in bytes: enough for every disk in use.
const DIRECT_ALIGNMENT: usize = 4096;

/// Zeros are written in steps of so many bytes.
const ZERO_STEP_BYTES: usize = 1 << 20;

/// How writes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Through the host's page cache; a guest's flush reaches the disk.
    Writeback,
    /// Past the host's page cache (O_DIRECT): nothing completed is lost with this host.
    Direct,
}

/// How to open an image.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Raw file or block device.
    pub path: PathBuf,
    /// How writes reach the disk.
    pub cache: Cache,
    /// Refuse writes.
    pub read_only: bool,
    /// Whether an image that another process has locked is opened all the same: only after that one was fenced.
    pub ignore_lock: bool,
}

/// An image that cannot be used.
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
    /// Another process has it.
    #[error("the disk image {path} is in use by another process; stop that one first")]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// Neither a file nor a block device.
    #[error("{path} is neither a file nor a block device, so it cannot be a disk")]
    Kind {
        /// What was named.
        path: PathBuf,
    },
    /// Not a whole number of sectors, or empty, or of another size than the guest knows.
    #[error("the disk image {path} has {found_bytes} bytes, expected {expected_bytes}")]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
        /// The size it must have.
        expected_bytes: u64,
    },
    /// Direct I/O does not work on it.
    #[error(
        "the disk image {path} cannot be read past the page cache (O_DIRECT); put it on a file system that can, or set cache = \"writeback\" if it is not shared"
    )]
    Direct {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An open image.
pub struct Disk {
    path: PathBuf,
    file: File,
    bytes: u64,
    direct: bool,
}

/// One piece of work for a disk's thread.
pub struct DiskJob {
    /// The request it belongs to.
    pub id: u64,
    /// What is to be done.
    pub operation: Operation,
}

/// What a disk can do.
pub enum Operation {
    /// Read so many bytes.
    Read {
        /// From this byte on.
        offset: u64,
        /// So many.
        bytes: usize,
    },
    /// Write these bytes.
    Write {
        /// From this byte on.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Make a range read as zeros.
    Zero {
        /// From this byte on.
        offset: u64,
        /// So many.
        bytes: u64,
        /// Whether its storage may be given back.
        unmap: bool,
    },
    /// Make all that was written durable.
    Flush,
}

impl Operation {
    /// The bytes of the image that it changes; none for a read or a flush.
    pub fn changes(&self) -> Option<Range<u64>> {
        match self {
            Self::Write { offset, data } => Some(*offset..*offset + data.len() as u64),
            Self::Zero { offset, bytes, .. } => Some(*offset..offset + bytes),
            Self::Read { .. } | Self::Flush => None,
        }
    }
}

impl Disk {
    /// Opens an image and takes its lock.
    pub fn open(config: &DiskConfig) -> Result<Self, DiskError> {
        let path = config.path.clone();
        let open_error = |source| DiskError::Open {
            path: path.clone(),
            source,
        };
        let direct = config.cache == Cache::Direct;
        let mut file = OpenOptions::new()
            .read(true)
            .write(!config.read_only)
            .custom_flags(if direct { libc::O_DIRECT } else { 0 })
            .open(&path)
            .map_err(|source| match (direct, source.raw_os_error()) {
                (true, Some(libc::EINVAL)) => DiskError::Direct {
                    path: path.clone(),
                    source,
                },
                _ => open_error(source),
            })?;
        let kind = file.metadata().map_err(open_error)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind { path });
        }
        lock(&file, config)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(open_error)?;
        if bytes == 0 || bytes % SECTOR_BYTES != 0 {
            let expected_bytes = bytes.next_multiple_of(SECTOR_BYTES).max(SECTOR_BYTES);
            return Err(DiskError::Size {
                path,
                found_bytes: bytes,
                expected_bytes,
            });
        }
        let disk = Self {
            path,
            file,
            bytes,
            direct,
        };
        // A first read tells whether the image takes direct I/O in units of a sector.
        disk.read(0, SECTOR_BYTES as usize)
            .map_err(|source| DiskError::Direct {
                path: disk.path.clone(),
                source,
            })?;
        Ok(disk)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the image is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the thread that carries out the jobs, one after the other, so that overlapping writes keep their order
    /// and a flush covers what came before it. It ends when the sender of the jobs is gone.
    pub fn serve(
        self: Arc<Self>,
        jobs: Receiver<DiskJob>,
        completions: Weak<dyn Completions>,
    ) -> Result<(), DiskError> {
        let path = self.path.clone();
        thread::Builder::new()
            .name("disk".into())
            .spawn(move || {
                for DiskJob { id, operation } in jobs {
                    let completion = self.carry_out(operation);
                    let Some(device) = completions.upgrade() else {
                        return;
                    };
                    device.complete(id, completion);
                }
            })
            .map_err(|source| DiskError::Open { path, source })?;
        Ok(())
    }

    /// Makes all that was written durable.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Carries out one operation; returns the bytes read (none for others).
    pub fn carry_out(&self, operation: Operation) -> io::Result<Vec<u8>> {
        match operation {
            Operation::Read { offset, bytes } => self.read(offset, bytes),
            Operation::Write { offset, data } => self.write(offset, data).map(|()| Vec::new()),
            Operation::Zero { offset, bytes, .. } => self.zero(offset, bytes).map(|()| Vec::new()),
            Operation::Flush => self.flush().map(|()| Vec::new()),
        }
    }

    fn read(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        if !self.direct {
            let mut data = vec![0; bytes];
            self.file.read_exact_at(&mut data, offset)?;
            return Ok(data);
        }
        let mut buffer = AlignedBuffer::new(bytes);
        self.file.read_exact_at(buffer.bytes(), offset)?;
        Ok(buffer.bytes().to_vec())
    }

    fn write(&self, offset: u64, data: Vec<u8>) -> io::Result<()> {
        if !self.direct {
            return self.file.write_all_at(&data, offset);
        }
        let mut buffer = AlignedBuffer::new(data.len());
        buffer.bytes().copy_from_slice(&data);
        self.file.write_all_at(buffer.bytes(), offset)
    }
}

impl Disk {
    /// Makes a range read as zeros.
    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let zeros = vec![0; ZERO_STEP_BYTES];
        let mut done = 0;
        while done < bytes {
            let step = (bytes - done).min(ZERO_STEP_BYTES as u64);
            self.write(offset + done, zeros[..step as usize].to_vec())?;
            done += step;
        }
        Ok(())
    }
}

/// Two users of one image destroy it, so it is locked; the kernel drops the lock with the process.
fn lock(file: &File, config: &DiskConfig) -> Result<(), DiskError> {
    let result = if config.read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    match result {
        Ok(()) => Ok(()),
        Err(_) if config.ignore_lock => {
            tracing::warn!(
                "the disk image {} is still locked by its fenced user",
                config.path.display()
            );
            Ok(())
        }
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse {
            path: config.path.clone(),
        }),
        Err(TryLockError::Error(source)) => Err(DiskError::Open {
            path: config.path.clone(),
            source,
        }),
    }
}

/// A buffer at an address that direct I/O takes.
struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    fn new(length: usize) -> Self {
        let storage = vec![0; length + DIRECT_ALIGNMENT];
        let start = storage.as_ptr().align_offset(DIRECT_ALIGNMENT);
        Self {
            storage,
            start,
            length,
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn config(path: &Path, cache: Cache) -> DiskConfig {
        DiskConfig {
            path: path.into(),
            cache,
            read_only: false,
            ignore_lock: false,
        }
    }

    #[test]
    fn what_is_written_is_read_with_and_without_the_page_cache() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        for cache in [Cache::Writeback, Cache::Direct] {
            let disk = Disk::open(&config(file.path(), cache)).unwrap();
            let data: Vec<u8> = (0..1536u32).map(|i| i as u8 ^ cache as u8).collect();
            disk.write(1024, data.clone()).unwrap();
            disk.carry_out(Operation::Flush).unwrap();
            assert_eq!(disk.read(1024, 1536).unwrap(), data);
        }
    }

    #[test]
    fn an_image_has_one_user() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let first = Disk::open(&config(file.path(), Cache::Writeback)).unwrap();
        assert!(matches!(
            Disk::open(&config(file.path(), Cache::Writeback)),
            Err(DiskError::InUse { .. })
        ));
        let fenced = DiskConfig {
            ignore_lock: true,
            ..config(file.path(), Cache::Writeback)
        };
        assert!(Disk::open(&fenced).is_ok());
        drop(first);
        assert!(Disk::open(&config(file.path(), Cache::Writeback)).is_ok());
    }

    #[test]
    fn odd_sizes_and_odd_files_are_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            Disk::open(&config(file.path(), Cache::Writeback)),
            Err(DiskError::Size { .. })
        ));
        file.write_all(&[0; 700]).unwrap();
        assert!(matches!(
            Disk::open(&config(file.path(), Cache::Writeback)),
            Err(DiskError::Size { .. })
        ));
        assert!(matches!(
            Disk::open(&config(Path::new("/dev/null"), Cache::Writeback)),
            Err(DiskError::Kind { .. })
        ));
        assert!(matches!(
            Disk::open(&config(Path::new("/nonexistent"), Cache::Writeback)),
            Err(DiskError::Open { .. })
        ));
    }
}
