//! Where a disk's bytes are: what every format of image can do.

use std::io;

use super::buffer::AlignedBuffer;
use super::raw::RawFile;

/// Zeros are written in steps of so many bytes, where a file system or format cannot make them.
const ZERO_STEP_BYTES: u64 = 1 << 20;

/// A disk's bytes. All methods may be called by several threads at once, and wait until they are done.
pub trait Store: Send + Sync {
    /// Fills the buffer from this byte on.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes the bytes from this byte on. When it returns, they survive the death of this process.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeros; `unmap`: its storage may be given back. As with a write, the death of
    /// this process does not undo it.
    fn zero(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()>;
    /// Makes all that was written before durable: it survives the host's loss of power.
    fn flush(&self) -> io::Result<()>;
    /// The same, after all that a failed flush may have lost was written again.
    fn flush_rewritten(&self) -> io::Result<()> {
        self.flush()
    }
    /// How many bytes there are, now.
    fn bytes(&self) -> io::Result<u64>;
    /// Makes it so many bytes long, more than it has; what is new reads as zeros.
    /// Durable with the next flush.
    fn enlarge(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Whether a range is known to read as zeros, without a look at its bytes: it has no storage.
    fn is_hole(&self, _offset: u64, _bytes: u64) -> bool {
        false
    }
    /// The file, if the disk's bytes are the file's.
    fn raw(&self) -> Option<&RawFile> {
        None
    }
}

/// Writes zeros as data.
pub(crate) fn write_zeros(store: &impl Store, offset: u64, bytes: u64) -> io::Result<()> {
    let zeros = AlignedBuffer::new(bytes.min(ZERO_STEP_BYTES) as usize);
    let mut done = 0;
    while done < bytes {
        let step = (bytes - done).min(ZERO_STEP_BYTES);
        store.write(offset + done, &zeros[..step as usize])?;
        done += step;
    }
    Ok(())
}
