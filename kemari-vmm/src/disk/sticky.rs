//! A flush that failed is not forgotten.
//!
//! Linux tells a failed write-back once for each open file, and marks the pages clean: from then on the page
//! cache of that file proves nothing, and the next flush succeeds without what was lost
//! (Documentation/filesystems/vfs.rst, "Handling errors during writeback"). So after a flush that failed each
//! later one fails, too, until all that has changed since the last good flush was written again.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::raw::RawFile;
use super::store::Store;

/// An image whose flushes tell the truth.
pub(crate) struct Sticky {
    store: Arc<dyn Store>,
    failed: AtomicBool,
    /// Held while something makes the image durable: of two at a time only one would be told that it failed.
    turn: Mutex<()>,
}

impl Sticky {
    /// An image that was just opened: no flush of it has failed.
    pub(crate) fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            failed: AtomicBool::new(false),
            turn: Mutex::default(),
        })
    }

    /// A flush of it has failed, and what was lost with it was not written again.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A flush that somebody else has made of the file has failed.
    pub(crate) fn note_failed(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }
}

impl Store for Sticky {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.store.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.store.write(offset, data)
    }

    fn zero(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        self.store.zero(offset, bytes, unmap)
    }

    fn flush(&self) -> io::Result<()> {
        let _turn = self.turn();
        if self.has_failed() {
            return Err(io::Error::other(
                "an earlier flush has failed, and what it was for may be lost",
            ));
        }
        self.store.flush().inspect_err(|_| self.note_failed())
    }

    fn flush_rewritten(&self) -> io::Result<()> {
        let _turn = self.turn();
        self.store.flush()?;
        self.failed.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        self.store.bytes()
    }

    fn enlarge(&self, bytes: u64) -> io::Result<()> {
        self.store.enlarge(bytes)
    }

    fn is_hole(&self, offset: u64, bytes: u64) -> bool {
        self.store.is_hole(offset, bytes)
    }

    fn raw(&self) -> Option<&RawFile> {
        self.store.raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store whose flushes fail while it says so.
    #[derive(Default)]
    struct Failing(AtomicBool);

    impl Store for Failing {
        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }

        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            match self.0.load(Ordering::SeqCst) {
                true => Err(io::Error::from_raw_os_error(libc::EIO)),
                false => Ok(()),
            }
        }

        fn bytes(&self) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn a_flush_that_failed_is_remembered_until_all_was_written_again_and_flushed() {
        let failing = Arc::new(Failing::default());
        let store = Sticky::new(failing.clone());
        store.flush().unwrap();
        failing.0.store(true, Ordering::SeqCst);
        assert!(store.flush().is_err() && store.has_failed());
        assert!(store.flush_rewritten().is_err());
        failing.0.store(false, Ordering::SeqCst);
        assert!(store.flush().is_err(), "Linux tells it once, this for ever");
        store.flush_rewritten().unwrap();
        store.flush().unwrap();
    }
}
