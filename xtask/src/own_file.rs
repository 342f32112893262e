//! A file whose storage is this process, with the file as all that there is.
//!
//! It lies below whatever writes it, be that system calls, io_uring, direct I/O or a block device on it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::io::Errno;

use crate::fuse::{self, Answers, Attributes, Mounted, Request, request};

/// What a power cut leaves as it was or makes whole, in bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Its attributes: a regular file of root's.
const MODE: u32 = 0o100_600;
/// Ways of fallocate(2) that make zeros and keep the size.
const KEEPS_SIZE: u32 = 1;
const MAKES_ZEROS: u32 = 2 | 0x10;

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
    mounted: Option<Mounted>,
    path: PathBuf,
}

impl OwnFile {
    /// Puts it there.
    pub fn mount(path: PathBuf, storage: Arc<dyn Storage>) -> Result<Self> {
        File::create_new(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        let mounted = Mounted::over(path.clone(), MODE, Box::new(Server { storage }))?;
        Ok(Self {
            mounted: Some(mounted),
            path,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        drop(self.mounted.take());
        let _ = fs::remove_file(&self.path);
    }
}

struct Server {
    storage: Arc<dyn Storage>,
}

impl Answers for Server {
    fn answer(&self, asked: &Request<'_>) -> Result<Vec<u8>, Errno> {
        match asked.kind {
            request::GETATTR => Ok(self.attributes()),
            request::SETATTR => {
                if let Some(bytes) = asked.new_size() {
                    self.storage.change(Change::Resize { bytes });
                }
                Ok(self.attributes())
            }
            request::READ => Ok(self.storage.read(asked.long(8), asked.word(16) as usize)),
            request::WRITE => {
                let (offset, data) = (asked.long(8), asked.written());
                let answer = fuse::written(data.len());
                self.storage.change(Change::Write { offset, data });
                Ok(answer)
            }
            request::FSYNC => {
                self.storage.sync();
                Ok(Vec::new())
            }
            request::FALLOCATE => self.make_zeros(asked),
            _ => Err(Errno::NOSYS),
        }
    }
}

impl Server {
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
        Attributes {
            node: fuse::ROOT,
            bytes,
            mode: MODE,
            links: 1,
        }
        .answer()
    }
}
