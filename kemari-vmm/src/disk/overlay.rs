//! A throw-away layer over an image that others go on writing: a disk as it is at one moment.
//!
//! Whoever changes the image calls [`Overlay::keep`] before. What is written here goes into the layer, and
//! with it to nothing.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use super::Disk;
use super::store::Store;

/// Bytes of a block of the layer.
const BLOCK_BYTES: u64 = 4096;

/// What a block of the layer takes beside its bytes: its place in the table, half empty as that may be, and
/// what the allocator adds.
const ENTRY_BYTES: u64 = 64;

/// Most that is kept under one lock, in blocks: whoever reads meanwhile waits for no more.
const KEPT_BLOCKS_AT_ONCE: u64 = (256 << 10) / BLOCK_BYTES;

/// The layer and what it lies over.
pub struct Overlay {
    /// Closed by whoever it belongs to at any time: then there is nothing more to read.
    image: Weak<Disk>,
    bytes: u64,
    /// The blocks in which the disk differs from the image, by number. Held for writing while the image
    /// changes under it or a block is made.
    layer: RwLock<HashMap<u64, LayerBlock>>,
    /// What the layer holds.
    held_bytes: AtomicU64,
    bytes_max: u64,
    is_over: AtomicBool,
    reads: AtomicU64,
    written_bytes: AtomicU64,
    failures: AtomicU64,
}

/// A block of the layer; the last of an image may be shorter.
enum LayerBlock {
    Zeros,
    Bytes(Box<[u8]>),
}

impl LayerBlock {
    fn held_bytes(&self) -> u64 {
        match self {
            Self::Zeros => ENTRY_BYTES,
            Self::Bytes(bytes) => ENTRY_BYTES + bytes.len() as u64,
        }
    }
}

impl Overlay {
    /// A layer over the image as it is now. It holds at most `bytes_max`: see [`Overlay::is_over`].
    pub fn over(image: &Arc<Disk>, bytes_max: u64) -> Self {
        Self {
            image: Arc::downgrade(image),
            bytes: image.bytes(),
            layer: RwLock::default(),
            held_bytes: AtomicU64::new(0),
            bytes_max,
            is_over: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// The image is about to change here: the layer gets what it lacks of that. If it cannot, it is over.
    pub fn keep(&self, range: &Range<u64>) {
        let end = range.end.min(self.bytes).div_ceil(BLOCK_BYTES);
        for first in (range.start / BLOCK_BYTES..end).step_by(KEPT_BLOCKS_AT_ONCE as usize) {
            if self.is_over() {
                return;
            }
            if self
                .keep_blocks(first..end.min(first + KEPT_BLOCKS_AT_ONCE))
                .is_err()
            {
                // From here on the image is another moment's.
                self.is_over.store(true, Ordering::SeqCst);
            }
        }
    }

    /// Of these blocks those that the layer lacks, each run of them read in one piece.
    fn keep_blocks(&self, numbers: Range<u64>) -> io::Result<()> {
        let mut layer = self.layer_mut();
        let mut number = numbers.start;
        while number < numbers.end {
            let run = number..numbers.end;
            let end = run
                .clone()
                .find(|number| layer.contains_key(number))
                .unwrap_or(run.end);
            if end > number {
                let bytes = self.read_image(self.range_of(number).start..self.range_of(end - 1).end)?;
                for (number, block) in (number..).zip(bytes.chunks(BLOCK_BYTES as usize)) {
                    self.put(&mut layer, number, LayerBlock::Bytes(block.into()))?;
                }
            }
            // The block there is in the layer already.
            number = end + 1;
        }
        Ok(())
    }

    /// Whether the layer would hold more than it may, or lacks something:
    /// what is read and written since fails.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// What the layer holds, in bytes.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Reads that were answered.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// What was written here, in bytes, zeros included.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Reads and writes that failed while the layer was not over.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    fn layer(&self) -> RwLockReadGuard<'_, HashMap<u64, LayerBlock>> {
        self.layer.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn layer_mut(&self) -> RwLockWriteGuard<'_, HashMap<u64, LayerBlock>> {
        self.layer.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn image(&self) -> io::Result<Arc<Disk>> {
        let gone = || io::Error::other("the image below was closed");
        self.image.upgrade().ok_or_else(gone)
    }

    fn range_of(&self, number: u64) -> Range<u64> {
        let start = number * BLOCK_BYTES;
        start..(start + BLOCK_BYTES).min(self.bytes)
    }

    fn read_image(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.image()?.store().read(range.start, &mut bytes)?;
        Ok(bytes)
    }

    fn put(&self, layer: &mut HashMap<u64, LayerBlock>, number: u64, block: LayerBlock) -> io::Result<()> {
        let old = layer.get(&number).map_or(0, LayerBlock::held_bytes);
        let held = self.held_bytes() - old + block.held_bytes();
        if held > self.bytes_max {
            self.is_over.store(true, Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.held_bytes.store(held, Ordering::Relaxed);
        layer.insert(number, block);
        Ok(())
    }

    fn check(&self, offset: u64, bytes: u64) -> io::Result<Range<u64>> {
        let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes);
        let range = offset..end.ok_or_else(|| io::Error::other("beyond the end of the disk"))?;
        match self.is_over() {
            true => Err(io::Error::other("the throw-away layer is over")),
            false => Ok(range),
        }
    }

    /// What a failure says, unless it only says that the layer is over.
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() && !self.is_over() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn note_written(&self, result: io::Result<()>, bytes: u64) -> io::Result<()> {
        if result.is_ok() {
            self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.note(result)
    }

    fn read_range(&self, range: Range<u64>, buffer: &mut [u8]) -> io::Result<()> {
        let layer = self.layer();
        let mut at = range.start;
        while at < range.end {
            let (number, rest) = (at / BLOCK_BYTES, &mut buffer[(at - range.start) as usize..]);
            let mut end = self.range_of(number).end.min(range.end);
            match layer.get(&number) {
                Some(LayerBlock::Zeros) => rest[..(end - at) as usize].fill(0),
                Some(LayerBlock::Bytes(bytes)) => {
                    let start = (at - number * BLOCK_BYTES) as usize;
                    let length = (end - at) as usize;
                    rest[..length].copy_from_slice(&bytes[start..start + length]);
                }
                None => {
                    // As much as the image has in one piece.
                    while end < range.end && !layer.contains_key(&(end / BLOCK_BYTES)) {
                        end = self.range_of(end / BLOCK_BYTES).end.min(range.end);
                    }
                    self.image()?.store().read(at, &mut rest[..(end - at) as usize])?;
                }
            }
            at = end;
        }
        Ok(())
    }

    /// Changes a range, block by block: `change` gets a block's bytes and where in the range it begins.
    fn change(&self, range: Range<u64>, change: impl Fn(&mut [u8], usize)) -> io::Result<()> {
        let mut layer = self.layer_mut();
        let mut at = range.start;
        while at < range.end {
            let number = at / BLOCK_BYTES;
            let whole = self.range_of(number);
            let end = whole.end.min(range.end);
            let mut bytes = match layer.get(&number) {
                Some(LayerBlock::Bytes(bytes)) => bytes.clone(),
                None if (at..end) != whole => self.read_image(whole.clone())?.into(),
                _ => vec![0; (whole.end - whole.start) as usize].into_boxed_slice(),
            };
            let part = (at - whole.start) as usize..(end - whole.start) as usize;
            change(&mut bytes[part], (at - range.start) as usize);
            self.put(&mut layer, number, LayerBlock::Bytes(bytes))?;
            at = end;
        }
        Ok(())
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        let whole = range.start.div_ceil(BLOCK_BYTES)..range.end / BLOCK_BYTES;
        if whole.is_empty() {
            return self.change(range, |bytes, _| bytes.fill(0));
        }
        let blocks = whole.start * BLOCK_BYTES..whole.end * BLOCK_BYTES;
        {
            let mut layer = self.layer_mut();
            whole
                .into_iter()
                .try_for_each(|number| self.put(&mut layer, number, LayerBlock::Zeros))?;
        }
        self.change(range.start..blocks.start, |bytes, _| bytes.fill(0))?;
        self.change(blocks.end..range.end, |bytes, _| bytes.fill(0))
    }
}

impl Store for Overlay {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = self.check(offset, buffer.len() as u64);
        let result = range.and_then(|range| self.read_range(range, buffer));
        if result.is_ok() {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        self.note(result)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let range = self.check(offset, data.len() as u64);
        let result = range.and_then(|range| {
            self.change(range, |bytes, at| {
                bytes.copy_from_slice(&data[at..at + bytes.len()])
            })
        });
        self.note_written(result, data.len() as u64)
    }

    fn zero(&self, offset: u64, bytes: u64, _: bool) -> io::Result<()> {
        let range = self.check(offset, bytes);
        self.note_written(range.and_then(|range| self.zero_range(range)), bytes)
    }

    /// What is thrown away need not last.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }
}

#[cfg(test)]
#[path = "overlay_test.rs"]
mod tests;
