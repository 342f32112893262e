//! The file of a qcow2 image, whose header can be held back.
//!
//! An image grows by a longer table, written beside the old one, and a header that points to it. The library writes the
//! header while what it points to is in its caches or in the kernel's: a host that loses its power then, or a process
//! that dies, would leave a header without a table. So the header is held back until all else is durable. Until then
//! the old table is whole, and it stays so: its clusters are not given back.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageOpenOptions};

use super::super::buffer::AlignedBuffer;

/// Whether the header is held back, and what it is to be.
#[derive(Debug, Default)]
enum State {
    #[default]
    Passing,
    Holding(Option<AlignedBuffer>),
}

/// The header of an image, held back or not.
#[derive(Clone, Debug, Default)]
pub struct Header(Arc<Mutex<State>>);

impl Header {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on the header is not written.
    pub fn hold(&self) {
        *self.lock() = State::Holding(None);
    }

    /// Writes what was held back. All else that was written is to be durable already.
    pub fn release(&self, file: &File) -> io::Result<()> {
        if let State::Holding(Some(bytes)) = std::mem::take(&mut *self.lock()) {
            file.write_all_at(&bytes, 0)?;
            file.sync_data()?;
        }
        Ok(())
    }

    /// What was held back will not be written.
    pub fn discard(&self) {
        *self.lock() = State::Passing;
    }
}

/// The library's file, and the header in it.
#[derive(Debug)]
pub struct HeldFile {
    file: imago::file::File,
    header: Header,
}

impl HeldFile {
    pub fn new(file: imago::file::File, header: Header) -> Self {
        Self { file, header }
    }
}

impl fmt::Display for HeldFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

// SAFETY (of the unsafe methods): what the caller guarantees is passed on.
impl Storage for HeldFile {
    fn open(options: StorageOpenOptions) -> io::Result<Self> {
        Ok(Self::new(imago::file::File::open(options)?, Header::default()))
    }

    fn mem_align(&self) -> usize {
        self.file.mem_align()
    }

    fn req_align(&self) -> usize {
        self.file.req_align()
    }

    fn zero_align(&self) -> usize {
        self.file.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.file.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        self.file.resolve_relative_path(relative)
    }

    fn get_filename(&self) -> Option<PathBuf> {
        self.file.get_filename()
    }

    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the caller's guarantee.
        unsafe { self.file.pure_readv(buffers, offset) }
    }

    unsafe fn pure_writev(&self, buffers: IoVector<'_>, offset: u64) -> io::Result<()> {
        if offset == 0
            && let State::Holding(held) = &mut *self.header.lock()
        {
            // A whole header each time.
            let mut bytes = AlignedBuffer::new(buffers.len() as usize);
            buffers.copy_into_slice(&mut bytes);
            *held = Some(bytes);
            return Ok(());
        }
        // SAFETY: the caller's guarantee.
        unsafe { self.file.pure_writev(buffers, offset) }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller's guarantee.
        unsafe { self.file.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller's guarantee.
        unsafe { self.file.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller's guarantee.
        unsafe { self.file.pure_discard(offset, length) }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// Asked before clusters are given back. While the header is held back they are not: the one on the disk has them.
    fn settle_writes(&self) -> io::Result<()> {
        match &*self.header.lock() {
            State::Passing => self.file.settle_writes(),
            State::Holding(_) => Err(io::Error::other("the image is growing; they stay as they are")),
        }
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: the caller's guarantee.
        unsafe { self.file.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.get_storage_helper()
    }

    fn resize(&self, bytes: u64, mode: imago::storage::PreallocateMode) -> io::Result<()> {
        self.file.resize(bytes, mode)
    }
}
