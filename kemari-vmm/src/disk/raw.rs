//! Raw images: files and block devices whose bytes are the disk's.
//!
//! Direct I/O takes whole blocks of the disk only. A guest may have smaller ones: then a block is read, and,
//! for a write, changed and written back.

mod turns;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use self::turns::Turns;
use super::buffer::{AlignedBuffer, DIRECT_ALIGNMENT};
use super::store::{Store, write_zeros};

/// A file whose bytes are the disk's.
pub struct RawFile {
    file: File,
    direct: Option<Alignment>,
    /// The same file through the page cache, for what lies behind its last whole block: direct I/O would
    /// write a whole one, and make the file longer.
    cached: Option<File>,
    turns: Turns,
}

/// What direct I/O demands, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Alignment {
    /// Of a buffer's address.
    pub memory: usize,
    /// Of offsets and lengths.
    pub offset: usize,
}

impl Alignment {
    /// Whether direct I/O takes these bytes of the disk as they are.
    pub fn fits(self, offset: u64, bytes: usize) -> bool {
        offset.is_multiple_of(self.offset as u64) && bytes.is_multiple_of(self.offset)
    }

    /// The whole blocks that some bytes of the disk lie in.
    fn around(self, offset: u64, bytes: usize) -> Range<u64> {
        let block = self.offset as u64;
        offset - offset % block..(offset + bytes as u64).next_multiple_of(block)
    }
}

impl RawFile {
    /// An open file, through the page cache.
    pub fn cached(file: File) -> Self {
        Self {
            file,
            direct: None,
            cached: None,
            turns: Turns::default(),
        }
    }

    /// A file that is open with O_DIRECT. `again` opens it without.
    ///
    /// # Errors
    /// Also if it cannot be read past the page cache.
    pub fn direct(file: File, again: impl FnOnce() -> io::Result<File>) -> io::Result<Self> {
        let mut raw = Self::cached(file);
        let direct = raw.find_alignment()?;
        let found = raw.file.metadata()?;
        if found.is_file() && direct.offset > 512 {
            let cached = again()?;
            let other = cached.metadata()?;
            if (found.dev(), found.ino()) != (other.dev(), other.ino()) {
                return Err(io::Error::other("it was replaced while it was opened"));
            }
            raw.cached = Some(cached);
        }
        raw.direct = Some(direct);
        Ok(raw)
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What direct I/O demands; none where there is none.
    pub fn alignment(&self) -> Option<Alignment> {
        self.direct
    }

    /// Whether any of it passes through the page cache.
    pub(crate) fn is_cached(&self) -> bool {
        self.direct.is_none() || self.cached.is_some()
    }

    /// Asks the kernel, or tries it out where that does not know.
    fn find_alignment(&self) -> io::Result<Alignment> {
        let told = self.told_alignment();
        let steps = [512, 1024, 2048, DIRECT_ALIGNMENT];
        let mut last = Err(io::ErrorKind::InvalidInput.into());
        for offset in steps
            .into_iter()
            .filter(|step| told.is_none_or(|told| *step >= told.offset))
        {
            let mut buffer = AlignedBuffer::new(offset);
            last = self.read_at_least(0, &mut buffer, 1).map(|()| Alignment {
                memory: told.map_or(DIRECT_ALIGNMENT, |told| told.memory),
                offset,
            });
            if last.is_ok() {
                break;
            }
        }
        last
    }

    fn told_alignment(&self) -> Option<Alignment> {
        // SAFETY: a statx of zeros is a valid one.
        let mut found: libc::statx = unsafe { std::mem::zeroed() };
        // SAFETY: the path is a terminated string, and the kernel writes one statx at the pointer.
        let result = unsafe {
            libc::statx(
                self.file.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                libc::STATX_DIOALIGN,
                &raw mut found,
            )
        };
        let is_told = result == 0
            && found.stx_mask & libc::STATX_DIOALIGN != 0
            && found.stx_dio_mem_align > 0
            && found.stx_dio_offset_align > 0;
        is_told.then_some(Alignment {
            memory: found.stx_dio_mem_align as usize,
            offset: found.stx_dio_offset_align as usize,
        })
    }

    /// Lets the page cache forget what it holds of the file and has written.
    pub fn forget_cached(&self) -> io::Result<()> {
        forget_pages(&self.file)
    }

    /// Whether a buffer lies where the file can be read into it, or written from it.
    fn takes(&self, address: usize) -> bool {
        self.direct
            .is_none_or(|direct| address.is_multiple_of(direct.memory))
    }

    /// The blocks around these bytes, if direct I/O takes no less.
    fn blocks_around(&self, offset: u64, bytes: usize) -> Option<(Alignment, Range<u64>)> {
        let direct = self.direct.filter(|direct| !direct.fits(offset, bytes))?;
        Some((direct, direct.around(offset, bytes)))
    }

    /// Fills the buffer from this byte on, so many bytes at least: the file may end within the last block.
    fn read_at_least(&self, offset: u64, buffer: &mut [u8], least: usize) -> io::Result<()> {
        let mut done = 0;
        while done < least {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes what begins or ends within a block.
    fn write_parts(&self, direct: Alignment, offset: u64, data: &[u8]) -> io::Result<()> {
        let blocks = direct.around(offset, data.len());
        let _turn = self.turns.take([blocks.start, blocks.end - direct.offset as u64]);
        let (data, tail) = match &self.cached {
            // So much of it lies before the end of the last whole block.
            Some(_) => {
                let end = self.bytes()? / direct.offset as u64 * direct.offset as u64;
                data.split_at(data.len().min(end.saturating_sub(offset) as usize))
            }
            None => (data, &data[data.len()..]),
        };
        if !tail.is_empty() {
            self.write_tail(offset + data.len() as u64, tail)?;
        }
        match data.is_empty() {
            true => Ok(()),
            false => self.rewrite(direct, offset, data),
        }
    }

    /// Writes what lies behind the last whole block.
    fn write_tail(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let cached = self.cached.as_ref().unwrap_or(&self.file);
        cached.write_all_at(data, offset)?;
        // As direct I/O does: nothing that is done is in the page cache only,
        // and no page outlasts what others write there.
        cached.sync_data()?;
        forget_pages(cached)
    }

    /// Reads the blocks in which the data begin and end, and writes all blocks that they lie in.
    fn rewrite(&self, direct: Alignment, offset: u64, data: &[u8]) -> io::Result<()> {
        let (block, blocks) = (direct.offset, direct.around(offset, data.len()));
        let mut bytes = AlignedBuffer::new((blocks.end - blocks.start) as usize);
        let start = (offset - blocks.start) as usize;
        let end = start + data.len();
        let last = bytes.len() - block;
        if start > 0 {
            self.read_at_least(blocks.start, &mut bytes[..block], block)?;
        }
        if end < bytes.len() && (last > 0 || start == 0) {
            self.read_at_least(blocks.start + last as u64, &mut bytes[last..], block)?;
        }
        bytes[start..end].copy_from_slice(data);
        self.file.write_all_at(&bytes, blocks.start)
    }

    /// Makes whole blocks zeros.
    fn zero_blocks(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        let modes = [libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE];
        for mode in &modes[usize::from(!unmap)..] {
            // Whatever the reason is not to do it: not every file system and disk says EOPNOTSUPP, and some
            // do no range that is not made of their own blocks. What is wrong with the disk itself is wrong
            // with the writes, too.
            if self.fallocate(*mode, offset, bytes).is_ok() {
                return Ok(());
            }
        }
        write_zeros(self, offset, bytes)
    }

    fn fallocate(&self, mode: libc::c_int, offset: u64, bytes: u64) -> io::Result<()> {
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        loop {
            // SAFETY: no memory is passed.
            let result = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, bytes as i64) };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// Lets the page cache forget what it holds of a file and has written.
fn forget_pages(file: &File) -> io::Result<()> {
    // SAFETY: no memory is passed.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

impl Store for RawFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let around = self.blocks_around(offset, buffer.len());
        if around.is_none() && self.takes(buffer.as_ptr() as usize) {
            return self.file.read_exact_at(buffer, offset);
        }
        let whole = around.map_or(offset..offset + buffer.len() as u64, |(_, around)| around);
        let start = (offset - whole.start) as usize;
        let end = start + buffer.len();
        let mut aligned = AlignedBuffer::new((whole.end - whole.start) as usize);
        self.read_at_least(whole.start, &mut aligned, end)?;
        buffer.copy_from_slice(&aligned[start..end]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.blocks_around(offset, data.len()) {
            Some((direct, _)) => self.write_parts(direct, offset, data),
            None if self.takes(data.as_ptr() as usize) => self.file.write_all_at(data, offset),
            None => self.file.write_all_at(&AlignedBuffer::of(data), offset),
        }
    }

    fn zero(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        let block = self.direct.map_or(1, |direct| direct.offset as u64);
        let (start, end) = (offset.next_multiple_of(block), (offset + bytes) / block * block);
        if start >= end {
            return write_zeros(self, offset, bytes);
        }
        // The kernel would make parts of blocks zeros in its page cache, beside what is written to others.
        write_zeros(self, offset, start - offset)?;
        self.zero_blocks(start, end - start, unmap)?;
        write_zeros(self, end, offset + bytes - end)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn bytes(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    fn enlarge(&self, bytes: u64) -> io::Result<()> {
        if !self.file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a block device is made larger by whoever made it, as with `lvextend`",
            ));
        }
        self.file.set_len(bytes)
    }

    /// As lseek(2) knows it: a file system that does not, and a block device, say that all is data.
    fn is_hole(&self, offset: u64, bytes: u64) -> bool {
        // SAFETY: no memory is passed. Nobody relies on where the file stands.
        let data = unsafe { libc::lseek(self.file.as_raw_fd(), offset as i64, libc::SEEK_DATA) };
        match u64::try_from(data) {
            Ok(data) => data >= offset.saturating_add(bytes),
            // No data from there on to the end of the file.
            Err(_) => io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO),
        }
    }

    fn raw(&self) -> Option<&RawFile> {
        Some(self)
    }
}
