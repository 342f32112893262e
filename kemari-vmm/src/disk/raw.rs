//! Raw images: files and block devices whose bytes are the disk's.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::buffer::{AlignedBuffer, DIRECT_ALIGNMENT};
use super::store::{Store, write_zeros};

/// A file whose bytes are the disk's.
pub struct RawFile {
    file: File,
    direct: Option<Alignment>,
}

/// What direct I/O demands, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Alignment {
    /// Of a buffer's address.
    pub memory: usize,
    /// Of offsets and lengths.
    pub offset: usize,
}

impl RawFile {
    /// An open file. `direct`: it is open with O_DIRECT, and must be readable that way.
    pub fn new(file: File, direct: bool) -> io::Result<Self> {
        let mut raw = Self { file, direct: None };
        if direct {
            raw.direct = Some(raw.find_alignment()?);
        }
        Ok(raw)
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What direct I/O demands; none where there is none.
    pub fn direct(&self) -> Option<Alignment> {
        self.direct
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
            last = self.file.read_exact_at(&mut buffer, 0).map(|()| Alignment {
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
        // SAFETY: no memory is passed.
        match unsafe { libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    fn is_aligned(&self, address: usize, length: usize) -> bool {
        self.direct.is_none_or(|direct| {
            address.is_multiple_of(direct.memory) && length.is_multiple_of(direct.offset)
        })
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

impl Store for RawFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.is_aligned(buffer.as_ptr() as usize, buffer.len()) {
            return self.file.read_exact_at(buffer, offset);
        }
        let mut aligned = AlignedBuffer::new(buffer.len());
        self.file.read_exact_at(&mut aligned, offset)?;
        buffer.copy_from_slice(&aligned);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.is_aligned(data.as_ptr() as usize, data.len()) {
            true => self.file.write_all_at(data, offset),
            false => self.file.write_all_at(&AlignedBuffer::of(data), offset),
        }
    }

    fn zero(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let modes = [libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE];
        for mode in &modes[usize::from(!unmap)..] {
            // Whatever the reason is not to do it: not every file system and disk says EOPNOTSUPP, and some do no range that
            // is not made of their own blocks. What is wrong with the disk itself is wrong with the writes, too.
            if self.fallocate(*mode, offset, bytes).is_ok() {
                return Ok(());
            }
        }
        write_zeros(self, offset, bytes)
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

    fn block_bytes(&self) -> u32 {
        self.direct.map_or(512, |direct| direct.offset.max(512) as u32)
    }

    fn raw(&self) -> Option<&RawFile> {
        Some(self)
    }
}
