//! A copy of guest memory as it is at one moment, of which only those pages are made that somebody needs.
//!
//! The original goes on changing: whoever changes a page of it calls [`LazyCopy::keep`] before. What the
//! copy's user touches first is copied at that moment, by a thread that answers the page faults. The original
//! stays as it is: its pages are neither shared nor protected nor taken apart, so nothing stands still and
//! nothing of it has to be locked again. The price is memory for every page that the user of the copy
//! touches, or that changes in the original meanwhile. A page of zeros takes none before it is written, but
//! nobody tells of that: it counts as soon as the user touches it.

mod faults;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Memory, PAGE_BYTES, read_page};
use crate::confine::{self, COMMON, Calls, FAULTS};
use faults::Faults;
pub use faults::hold as hold_faults;

/// Memory that is given back at a time: the process can map memory in between.
const FREED_BYTES: usize = 2 << 20;

/// Whoever changes the original gives at most this part of his time for [`LazyCopy::keep`], beside
/// [`KEEPING_GRACE`].
const KEEPING_SHARE: u32 = 10;
/// So much of his time at any rate: a large change may come at the begin.
const KEEPING_GRACE: Duration = Duration::from_millis(50);

/// What the copying thread asks of the kernel.
pub const CALLS: Calls = Calls {
    of: "lazy-copy",
    parts: &[COMMON, FAULTS],
};

/// A copy of guest memory that is made page by page.
pub struct LazyCopy {
    pages: Arc<Pages>,
    stop: EventFd,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Pages {
    original: Memory,
    copy: Memory,
    faults: Faults,
    /// Which pages are there, a bit each, region by region. Held while a page is copied, so that what is
    /// copied is not changed meanwhile.
    there: Mutex<Vec<Vec<u64>>>,
    copied_bytes: AtomicU64,
    bytes_max: u64,
    begun: Instant,
    /// Processor time that was spent to keep pages, in nanoseconds.
    keeping_ns: AtomicU64,
    /// Why the copy lacks pages.
    failure: OnceLock<String>,
    /// Its user is gone. Changed under the lock of `there`.
    ended: AtomicBool,
}

/// Why a page is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// The copy's user touches it, and waits.
    Fault,
    /// The original's is about to change.
    Change,
}

impl LazyCopy {
    /// `copy`, which nobody has touched, becomes one of `original`, as that is when [`LazyCopy::keep`] is
    /// first called or a page of the copy is first touched. At most `bytes_max` are to be copied: see
    /// [`LazyCopy::is_over`].
    ///
    /// # Errors
    /// If the kernel lets this process answer no page faults, or no thread can be started.
    pub fn begin(original: &Memory, copy: &Memory, bytes_max: u64) -> io::Result<Self> {
        let is_alike = original.iter().map(range_of).eq(copy.iter().map(range_of));
        if !is_alike {
            return Err(io::Error::other("the two memories are of different sizes"));
        }
        Self::start(original, copy, bytes_max)
    }

    fn start(original: &Memory, copy: &Memory, bytes_max: u64) -> io::Result<Self> {
        let faults = Faults::open()?;
        faults.take(copy)?;
        let words = |pages: u64| vec![0u64; (pages as usize).div_ceil(64)];
        let there = original
            .iter()
            .map(|region| words(region.len() / PAGE_BYTES as u64));
        let pages = Arc::new(Pages {
            original: original.clone(),
            copy: copy.clone(),
            faults,
            there: Mutex::new(there.collect()),
            copied_bytes: AtomicU64::new(0),
            bytes_max,
            begun: Instant::now(),
            keeping_ns: AtomicU64::new(0),
            failure: OnceLock::new(),
            ended: AtomicBool::new(false),
        });
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let (answering, stopped) = (pages.clone(), stop.try_clone()?);
        let thread = thread::Builder::new().name("lazy-copy".into()).spawn(move || {
            confine::thread(&CALLS);
            answering.answer_until(&stopped);
        })?;
        Ok(Self {
            pages,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The original's page `gfn` is about to change: the copy gets it as it is, if it has not got it yet. A
    /// page frame that the guest does not have is none of the copy. If this comes to take too much of the
    /// caller's time, the copy fails instead.
    pub fn keep(&self, gfn: u64) {
        if let Some((region, page)) = self.pages.place(gfn)
            && !self.has_failed()
        {
            let begin = processor_time();
            self.pages.give(region, page, For::Change);
            self.pages.note_keeping(processor_time().saturating_sub(begin));
        }
    }

    /// Nobody needs the copy any more: nothing is copied from here on, and its memory is given back,
    /// which takes time.
    pub fn end(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        let there = self.pages.there();
        self.pages.ended.store(true, Ordering::Relaxed);
        drop(there);
        // The counter cannot overflow: it is written once.
        let _ = self.stop.write(1);
        // A panic of the thread was reported by the runtime.
        let _ = thread.join();
        self.pages.leave();
        self.pages.free();
    }

    /// Bytes that were copied so far, or may have become the user's own.
    pub fn copied_bytes(&self) -> u64 {
        self.pages.copied_bytes.load(Ordering::Relaxed)
    }

    /// Whether more was copied than there was to be, or the copy is of no use: its user is to be stopped.
    pub fn is_over(&self) -> bool {
        self.copied_bytes() > self.pages.bytes_max || self.has_failed()
    }

    /// Whether the copy lacks pages, so that what its user has seen says nothing.
    pub fn has_failed(&self) -> bool {
        self.failure().is_some()
    }

    /// Why it lacks pages, if it does.
    pub fn failure(&self) -> Option<&str> {
        self.pages.failure.get().map(String::as_str)
    }
}

impl Drop for LazyCopy {
    fn drop(&mut self) {
        self.end();
    }
}

impl Pages {
    fn there(&self) -> MutexGuard<'_, Vec<Vec<u64>>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of the region and, in it, of the page.
    fn place(&self, gfn: u64) -> Option<(usize, u64)> {
        self.original.iter().enumerate().find_map(|(index, region)| {
            let (first, bytes) = range_of(region);
            let page = gfn.checked_sub(first / PAGE_BYTES as u64)?;
            (page < bytes / PAGE_BYTES as u64).then_some((index, page))
        })
    }

    /// The same for an address in the copy's mapping.
    fn place_of(&self, address: u64) -> Option<(usize, u64)> {
        self.copy.iter().enumerate().find_map(|(index, region)| {
            let offset = address.checked_sub(region.as_ptr() as u64)?;
            (offset < region.len()).then_some((index, offset / PAGE_BYTES as u64))
        })
    }

    /// Copies a page, unless it is there.
    fn give(&self, region: usize, page: u64, why: For) {
        let (Some(from), Some(to)) = (self.original.iter().nth(region), self.copy.iter().nth(region)) else {
            return;
        };
        let address = to.as_ptr() as u64 + page * PAGE_BYTES as u64;
        let mut there = self.there();
        if self.ended.load(Ordering::Relaxed) || self.failure.get().is_some() {
            return;
        }
        let (word, bit) = (&mut there[region][(page / 64) as usize], 1u64 << (page % 64));
        let result = match (*word & bit != 0, why) {
            (true, For::Change) => return,
            // It has come between the fault and now.
            (true, For::Fault) => self.faults.wake(address),
            (false, _) => {
                *word |= bit;
                let gfn = range_of(from).0 / PAGE_BYTES as u64 + page;
                self.fill(gfn, address, why)
            }
        };
        if let Err(error) = result {
            self.fail(&error);
        }
    }

    fn fill(&self, gfn: u64, address: u64, why: For) -> io::Result<()> {
        let mut content = [0; PAGE_BYTES];
        read_page(&self.original, gfn, &mut content).map_err(io::Error::other)?;
        let is_zero = content.iter().all(|byte| *byte == 0);
        if !is_zero || why == For::Fault {
            self.copied_bytes.fetch_add(PAGE_BYTES as u64, Ordering::Relaxed);
        }
        match is_zero {
            true => self.faults.fill_zero(address),
            false => self.faults.fill(address, &content),
        }
    }

    /// The copy is of no use any more: nobody is to wait for its pages.
    fn fail(&self, why: &dyn fmt::Display) {
        if self.failure.set(why.to_string()).is_ok() {
            tracing::warn!("a lazy copy of the guest's memory cannot go on: {why}");
            self.leave();
        }
    }

    fn note_keeping(&self, took: Duration) {
        let took_ns = took.as_nanos() as u64;
        let keeping_ns = self.keeping_ns.fetch_add(took_ns, Ordering::Relaxed) + took_ns;
        if is_too_much(Duration::from_nanos(keeping_ns), self.begun.elapsed()) {
            self.fail(&"the guest changes so much of its memory that keeping it would slow it down");
        }
    }

    /// No page fault is answered from here on, and who waits for a page goes on with zeros.
    fn leave(&self) {
        if let Err(error) = self.faults.leave(&self.copy) {
            tracing::warn!("page faults of a lazy copy cannot be left to the kernel: {error}");
        }
    }

    fn answer_until(&self, stop: &EventFd) {
        let mut waits = [self.faults.as_fd().as_raw_fd(), stop.as_raw_fd()].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        loop {
            // SAFETY: the kernel reads and writes as many structures as there are at the pointer.
            let result = unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, -1) };
            if waits[1].revents != 0 || (result < 0 && !was_interrupted()) {
                return;
            }
            while let Some(address) = self.faults.next().unwrap_or_else(|error| {
                self.fail(&error);
                None
            }) {
                if let Some((region, page)) = self.place_of(address) {
                    self.give(region, page, For::Fault);
                }
            }
        }
    }

    /// Gives the copy's memory back, piece by piece.
    fn free(&self) {
        for region in self.copy.iter() {
            for start in (0..region.size()).step_by(FREED_BYTES) {
                let bytes = FREED_BYTES.min(region.size() - start);
                // SAFETY: the range lies in a live mapping of a guest's memory, to whose bytes there are no
                // references. Who looks there all the same finds zeros: its page faults were left to the
                // kernel.
                unsafe { libc::madvise(region.as_ptr().add(start).cast(), bytes, libc::MADV_DONTNEED) };
            }
        }
    }
}

/// Whether so much time was spent to keep pages, of so much that has passed,
/// that their keeper is slowed down.
fn is_too_much(keeping: Duration, passed: Duration) -> bool {
    keeping > KEEPING_GRACE + passed / KEEPING_SHARE
}

/// Time that this thread was on a processor: what others on this host do must not count.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Guest physical address and size of a region, in bytes.
fn range_of(region: &impl GuestMemoryRegion) -> (u64, u64) {
    (region.start_addr().0, region.len())
}

fn was_interrupted() -> bool {
    io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
}

#[cfg(test)]
#[path = "lazy_test.rs"]
mod tests;
