//! The kernel's FUSE, spoken directly: a mount whose storage is this process.
//!
//! One thread carries out one request at a time, so what happens has one order. The layout of requests is
//! that of Linux' include/uapi/linux/fuse.h.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Most bytes of one write.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Bytes before the body of a request, and before what is written.
const HEADER_BYTES: usize = 40;
const WRITE_HEADER_BYTES: usize = 40;
/// The protocol's version that is spoken.
const VERSION: (u32, u32) = (7, 31);
/// Kernel's flags at the beginning: writes of more than a page, many pages at a time,
/// direct I/O side by side.
const BIG_WRITES: u32 = 1 << 5;
const ASYNC_DIO: u32 = 1 << 15;
const MAX_PAGES: u32 = 1 << 22;
/// Bytes of a page, and of a block, as files say it.
const PAGE_BYTES: usize = 4096;
/// Of a change of attributes: the size.
const SIZE_CHANGES: u32 = 1 << 3;
/// The mount itself.
pub(crate) const ROOT: u64 = 1;

/// Requests, by their numbers.
pub(crate) mod request {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
}

/// What the kernel asks.
pub(crate) struct Request<'a> {
    /// See [`request`].
    pub kind: u32,
    /// Of which file.
    pub node: u64,
    unique: u64,
    body: &'a [u8],
}

impl Request<'_> {
    /// A number at this byte of its body.
    pub(crate) fn word(&self, at: usize) -> u32 {
        let bytes = self.body.get(at..at + 4);
        bytes.map_or(0, |bytes| {
            u32::from_ne_bytes(bytes.try_into().expect("four bytes"))
        })
    }

    /// A longer one.
    pub(crate) fn long(&self, at: usize) -> u64 {
        let bytes = self.body.get(at..at + 8);
        bytes.map_or(0, |bytes| {
            u64::from_ne_bytes(bytes.try_into().expect("eight bytes"))
        })
    }

    /// A name, which is the last of the body.
    pub(crate) fn name(&self, at: usize) -> String {
        let bytes = self.body.get(at..).unwrap_or_default();
        let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }

    /// What is to be written.
    pub(crate) fn written(&self) -> Vec<u8> {
        let data = self.body.get(WRITE_HEADER_BYTES..).unwrap_or_default();
        data[..data.len().min(self.word(16) as usize)].to_vec()
    }

    /// The size that the file is to have, if that is to change.
    pub(crate) fn new_size(&self) -> Option<u64> {
        (self.word(0) & SIZE_CHANGES != 0).then(|| self.long(16))
    }
}

/// Who carries requests out.
pub(crate) trait Answers: Send {
    /// Does what is asked. What every mount says alike is not asked here.
    fn answer(&self, asked: &Request<'_>) -> Result<Vec<u8>, Errno>;
}

/// Opens the kernel's end of mounts.
pub(crate) fn open() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .context(
            "/dev/fuse cannot be opened, by which tests record what reaches a disk; load the module fuse, as \
         root, and try again",
        )
}

/// A mount, there as long as this.
#[derive(Debug)]
pub(crate) struct Mounted {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Mounted {
    /// Mounts it over a file or directory that is there; `mode` says which of them it is.
    pub(crate) fn over(path: PathBuf, mode: u32, answers: Box<dyn Answers>) -> Result<Self> {
        let device = open()?;
        let options = format!("fd={},rootmode={mode:o},user_id=0,group_id=0", device.as_raw_fd());
        mount(
            "kemari",
            &path,
            "fuse",
            MountFlags::NOSUID | MountFlags::NODEV,
            &*CString::new(options)?,
        )
        .with_context(|| format!("{} cannot be mounted; this needs root", path.display()))?;
        let server = Server { device, answers };
        let thread = thread::Builder::new()
            .name("own file".into())
            .spawn(move || server.serve())?;
        Ok(Self {
            path,
            thread: Some(thread),
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever has it open gets errors from now on.
        let unmounted = unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::FORCE);
        if let (Ok(()), Some(thread)) = (unmounted, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

struct Server {
    device: File,
    answers: Box<dyn Answers>,
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
                node: 0,
                unique: 0,
                body: header,
            };
            let request = Request {
                kind: header.word(4),
                node: header.long(16),
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
            request::OPEN | request::OPENDIR => Ok(opened()),
            request::STATFS => Ok(vec![0; 80]),
            request::FLUSH | request::RELEASE | request::RELEASEDIR | request::DESTROY => Ok(Vec::new()),
            _ => self.answers.answer(asked),
        })
    }
}

/// That a file was opened.
pub(crate) fn opened() -> Vec<u8> {
    vec![0; 16]
}

/// That so many bytes were written.
pub(crate) fn written(bytes: usize) -> Vec<u8> {
    longs(&[bytes as u64])
}

/// What a file is.
pub(crate) struct Attributes {
    /// Its number.
    pub node: u64,
    /// Its length.
    pub bytes: u64,
    /// Its kind and who may use it.
    pub mode: u32,
    /// How many names it has.
    pub links: u32,
}

impl Attributes {
    fn encode(&self) -> Vec<u8> {
        let Self {
            node,
            bytes,
            mode,
            links,
        } = *self;
        // Number, size, blocks, times.
        let mut answer = longs(&[node, bytes, bytes / 512, 0, 0, 0]);
        answer.extend(words(&[0, 0, 0, mode, links, 0, 0, 0, PAGE_BYTES as u32, 0]));
        answer
    }

    /// The answer to who asks for them. There is no time for which they hold.
    pub(crate) fn answer(&self) -> Vec<u8> {
        [longs(&[0, 0]), self.encode()].concat()
    }

    /// The answer to who asks for a name.
    pub(crate) fn entry(&self) -> Vec<u8> {
        [longs(&[self.node, 0, 0, 0, 0]), self.encode()].concat()
    }
}

/// The names of a directory from the `skipped`th on, as many as have room.
pub(crate) fn listing<'a>(
    names: impl Iterator<Item = (&'a String, u64)>,
    skipped: u64,
    bytes_max: usize,
) -> Vec<u8> {
    /// A regular file, as readdir(3) says it.
    const REGULAR: u32 = 8;
    let mut answer = Vec::new();
    for (place, (name, node)) in (1..).zip(names).skip(skipped as usize) {
        let mut entry = longs(&[node, place]);
        entry.extend(words(&[name.len() as u32, REGULAR]));
        entry.extend(name.as_bytes());
        entry.resize(entry.len().next_multiple_of(8), 0);
        if answer.len() + entry.len() > bytes_max {
            break;
        }
        answer.extend(entry);
    }
    answer
}

fn init(asked: &Request<'_>) -> Vec<u8> {
    let flags = BIG_WRITES | ASYNC_DIO | MAX_PAGES;
    // How many requests may wait: two numbers of 16 bits. Then the most bytes, the unit of times,
    // the most pages.
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
