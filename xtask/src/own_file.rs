//! A file whose storage is this process: the kernel's FUSE, spoken directly, with the file as all that there is.
//!
//! It lies below whatever writes it, be that system calls, io_uring, direct I/O or a block device on it. One thread
//! carries out one request at a time, so what happens to it has one order. The layout of requests is that of Linux'
//! include/uapi/linux/fuse.h.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// What a power cut leaves as it was or makes whole, in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Most bytes of one write.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Bytes before the body of a request, and before what is written.
const HEADER_BYTES: usize = 40;
const WRITE_HEADER_BYTES: usize = 40;
/// The protocol's version that is spoken.
const VERSION: (u32, u32) = (7, 31);
/// Kernel's flags at the beginning: writes of more than a page, many pages at a time, direct I/O side by side.
const BIG_WRITES: u32 = 1 << 5;
const ASYNC_DIO: u32 = 1 << 15;
const MAX_PAGES: u32 = 1 << 22;
const PAGE_BYTES: usize = 4096;
/// Of a change of attributes: the size.
const SIZE_CHANGES: u32 = 1 << 3;
/// Its attributes: a regular file of root's.
const MODE: u32 = 0o100_600;
/// Ways of fallocate(2) that make zeros and keep the size.
const KEEPS_SIZE: u32 = 1;
const MAKES_ZEROS: u32 = 2 | 0x10;

/// Requests, by their numbers.
mod request {
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
}

/// A change of the file.
#[derive(Clone, Debug)]
pub enum Change {
    /// These bytes were written.
    Write {
        /// From this byte on.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// A range was made zeros.
    Zero {
        /// From this byte on.
        offset: u64,
        /// So many.
        bytes: u64,
    },
    /// It has another length.
    Resize {
        /// In bytes.
        bytes: u64,
    },
}

impl Change {
    /// Makes it in a copy of the file.
    pub fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(data);
            }
            Self::Zero { offset, bytes } => {
                let end = content.len().min((offset + bytes) as usize);
                content[end.min(*offset as usize)..end].fill(0);
            }
            Self::Resize { bytes } => content.resize(*bytes as usize, 0),
        }
    }

    /// Makes it in part: of each write some sectors, of all else the whole or nothing.
    pub fn apply_torn(&self, content: &mut Vec<u8>, mut is_kept: impl FnMut() -> bool) {
        let Self::Write { offset, data } = self else {
            if is_kept() {
                self.apply(content);
            }
            return;
        };
        let (mut offset, mut rest) = (*offset, &data[..]);
        while !rest.is_empty() {
            let length = (SECTOR_BYTES - offset % SECTOR_BYTES).min(rest.len() as u64);
            let (part, behind) = rest.split_at(length as usize);
            if is_kept() {
                let data = part.to_vec();
                Self::Write { offset, data }.apply(content);
            }
            (offset, rest) = (offset + length, behind);
        }
    }
}

/// Some of a file's bytes, fewer at its end.
pub fn part_of(content: &[u8], offset: u64, bytes: usize) -> Vec<u8> {
    let start = content.len().min(offset as usize);
    let end = content.len().min(start + bytes);
    content[start..end].to_vec()
}

/// What a file consists of.
pub trait Storage: Send + Sync {
    /// Its length in bytes.
    fn bytes(&self) -> u64;
    /// Some of its bytes, fewer at its end.
    fn read(&self, offset: u64, bytes: usize) -> Vec<u8>;
    /// It is changed.
    fn change(&self, change: Change);
    /// All changes are to be durable.
    fn sync(&self);
    /// Whether it can make zeros without writing them.
    fn makes_holes(&self) -> bool {
        true
    }
}

/// A file with such a storage, there as long as this.
#[derive(Debug)]
pub struct OwnFile {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl OwnFile {
    /// Puts it there.
    pub fn mount(path: PathBuf, storage: Arc<dyn Storage>) -> Result<Self> {
        File::create_new(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .context("/dev/fuse cannot be opened")?;
        let options = format!("fd={},rootmode={MODE:o},user_id=0,group_id=0", device.as_raw_fd());
        mount(
            "kemari",
            &path,
            "fuse",
            MountFlags::NOSUID | MountFlags::NODEV,
            &*CString::new(options)?,
        )
        .with_context(|| format!("{} cannot be mounted; this needs root", path.display()))?;
        let server = Server { device, storage };
        let thread = thread::Builder::new()
            .name("own file".into())
            .spawn(move || server.serve())?;
        Ok(Self {
            path,
            thread: Some(thread),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        // Whoever has it open gets errors from now on.
        let unmounted = unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::FORCE);
        if let (Ok(()), Some(thread)) = (unmounted, self.thread.take()) {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// What the kernel asks.
struct Request<'a> {
    kind: u32,
    unique: u64,
    body: &'a [u8],
}

impl Request<'_> {
    fn word(&self, at: usize) -> u32 {
        let bytes = self.body.get(at..at + 4);
        bytes.map_or(0, |bytes| {
            u32::from_ne_bytes(bytes.try_into().expect("four bytes"))
        })
    }

    fn long(&self, at: usize) -> u64 {
        let bytes = self.body.get(at..at + 8);
        bytes.map_or(0, |bytes| {
            u64::from_ne_bytes(bytes.try_into().expect("eight bytes"))
        })
    }
}

struct Server {
    device: File,
    storage: Arc<dyn Storage>,
}

impl Server {
    fn serve(&self) {
        let mut buffer = vec![0; HEADER_BYTES + WRITE_HEADER_BYTES + WRITE_BYTES_MAX + PAGE_BYTES];
        loop {
            let length = match (&self.device).read(&mut buffer) {
                Ok(length) => length,
                // The request was withdrawn.
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // It is not mounted any more.
                Err(_) => return,
            };
            let Some((header, body)) = buffer[..length].split_at_checked(HEADER_BYTES) else {
                return;
            };
            let header = Request {
                kind: 0,
                unique: 0,
                body: header,
            };
            let request = Request {
                kind: header.word(4),
                unique: header.long(8),
                body,
            };
            if let Some(result) = self.answer(&request) {
                self.send(request.unique, result);
            }
        }
    }

    fn send(&self, unique: u64, result: Result<Vec<u8>, Errno>) {
        let (error, body) = match result {
            Ok(body) => (0, body),
            Err(error) => (-error.raw_os_error(), Vec::new()),
        };
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend((16 + body.len() as u32).to_ne_bytes());
        message.extend(error.to_ne_bytes());
        message.extend(unique.to_ne_bytes());
        message.extend(body);
        // Whoever asked may be gone.
        let _ = (&self.device).write(&message);
    }

    /// None: no answer is wanted.
    fn answer(&self, asked: &Request<'_>) -> Option<Result<Vec<u8>, Errno>> {
        Some(match asked.kind {
            request::FORGET | request::BATCH_FORGET | request::INTERRUPT => return None,
            request::INIT => Ok(init(asked)),
            request::GETATTR => Ok(self.attributes()),
            request::SETATTR => {
                if asked.word(0) & SIZE_CHANGES != 0 {
                    let bytes = asked.long(16);
                    self.storage.change(Change::Resize { bytes });
                }
                Ok(self.attributes())
            }
            request::OPEN => Ok(vec![0; 16]),
            request::READ => Ok(self.storage.read(asked.long(8), asked.word(16) as usize)),
            request::WRITE => Ok(self.write(asked)),
            request::FSYNC => {
                self.storage.sync();
                Ok(Vec::new())
            }
            request::FALLOCATE => self.make_zeros(asked),
            request::STATFS => Ok(vec![0; 80]),
            request::FLUSH | request::RELEASE | request::DESTROY => Ok(Vec::new()),
            _ => Err(Errno::NOSYS),
        })
    }

    fn write(&self, asked: &Request<'_>) -> Vec<u8> {
        let (offset, bytes) = (asked.long(8), asked.word(16));
        let data = asked.body.get(WRITE_HEADER_BYTES..).unwrap_or_default();
        let data = data[..data.len().min(bytes as usize)].to_vec();
        self.storage.change(Change::Write { offset, data });
        longs(&[u64::from(bytes)])
    }

    fn make_zeros(&self, asked: &Request<'_>) -> Result<Vec<u8>, Errno> {
        let mode = asked.word(24);
        let is_known = mode & MAKES_ZEROS != 0 && mode & !MAKES_ZEROS == KEEPS_SIZE;
        if !is_known || !self.storage.makes_holes() {
            return Err(Errno::OPNOTSUPP);
        }
        let (offset, bytes) = (asked.long(8), asked.long(16));
        self.storage.change(Change::Zero { offset, bytes });
        Ok(Vec::new())
    }

    fn attributes(&self) -> Vec<u8> {
        let bytes = self.storage.bytes();
        // No time for which they hold; number, size, blocks, times.
        let mut answer = longs(&[0, 0, 1, bytes, bytes / 512, 0, 0, 0]);
        answer.extend(words(&[0, 0, 0, MODE, 1, 0, 0, 0, PAGE_BYTES as u32, 0]));
        answer
    }
}

fn init(asked: &Request<'_>) -> Vec<u8> {
    let flags = BIG_WRITES | ASYNC_DIO | MAX_PAGES;
    // How many requests may wait: two numbers of 16 bits. Then the most bytes, the unit of times, the most pages.
    let waiting = 64 | 48 << 16;
    let pages = (WRITE_BYTES_MAX / PAGE_BYTES) as u32;
    let mut answer = words(&[VERSION.0, VERSION.1, asked.word(8), flags, waiting]);
    answer.extend(words(&[WRITE_BYTES_MAX as u32, 1, pages]));
    answer.resize(64, 0);
    answer
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}
