//! io_uring: reads and writes go straight between the file and the guest's memory, with one system call for
//! all that is there to do.
//!
//! One thread submits and waits. The vCPUs' threads must not submit themselves: the kernel ends a request in
//! the thread that submitted it, and would throw that vCPU out of the guest each time.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Ended, Ends, Engine, Threads};
use crate::confine::{self, COMMON, Calls, DEVICES, OPEN_FILES, RINGS};
use crate::disk::buffer::AlignedBuffer;
use crate::disk::operation::{DiskJob, GuestBuffers, Operation};
use crate::disk::raw::{Alignment, RawFile};
use crate::disk::store::Store;
use crate::threads;

/// Entries of the ring's submission queue; the completion queue has twice as many.
const ENTRIES: u32 = 256;
/// Most bytes that the page cache may copy in the thread that has the others to serve.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// For so long a thread that had a ring believes that it could have another.
const PROBE_HOLDS: Duration = Duration::from_secs(10);
/// IORING_REGISTER_ENABLE_RINGS of <linux/io_uring.h>: the only registration that is left to do.
const REGISTER_ENABLE_RINGS: u8 = 12;
/// Names the entry that waits for the bell.
const BELL: u64 = u64::MAX;

/// What the ring's thread asks of the kernel.
pub(crate) const CALLS: Calls = Calls {
    of: "disk ring",
    parts: &[COMMON, DEVICES, OPEN_FILES, RINGS],
};

/// A ring, and its thread. What it cannot do is done by other threads. It ends when this is dropped and
/// nothing is under way any more.
pub(crate) struct Uring {
    inbox: Arc<Inbox>,
    direct: Option<Alignment>,
    helpers: Threads,
}

/// Where jobs wait for the ring's thread.
struct Inbox {
    flights: Mutex<Vec<Flight>>,
    bell: EventFd,
    /// The bell was rung, and not heard yet.
    rung: AtomicBool,
    ends: AtomicBool,
}

/// A job for the kernel, and what it works with.
struct Flight {
    job: DiskJob,
    /// What `iovecs` points to, where that is not the job's own or the guest's memory.
    _buffer: Option<AlignedBuffer>,
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the pointers in `iovecs` lead into `_buffer`, or into the bytes or the guest's memory that `job`
// keeps; only the kernel follows them.
unsafe impl Send for Flight {}

impl Uring {
    /// Looks whether this process may have a ring, by making one.
    ///
    /// # Errors
    /// As those of [`Uring::start`].
    pub(crate) fn probe() -> io::Result<()> {
        thread_local!(static HAD_ONE: Cell<Option<Instant>> = const { Cell::new(None) });
        if HAD_ONE.get().is_none_or(|at| at.elapsed() > PROBE_HOLDS) {
            make()?;
            HAD_ONE.set(Some(Instant::now()));
        }
        Ok(())
    }

    /// Makes a ring for a raw image.
    ///
    /// # Errors
    /// If the kernel has no io_uring for this process.
    pub(crate) fn start(store: &Arc<dyn Store>, raw: &RawFile, ends: &Weak<dyn Ends>) -> io::Result<Self> {
        let inbox = Arc::new(Inbox {
            flights: Mutex::default(),
            bell: EventFd::new(EFD_NONBLOCK)?,
            rung: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let helpers = Threads::start(store, ends)?;
        let (result, started) = channel();
        let (file, direct) = (raw.file().as_raw_fd(), raw.alignment());
        let (thread_inbox, ends, store) = (inbox.clone(), ends.clone(), store.clone());
        threads::start("disk ring", move || {
            let ring = RingThread {
                inbox: thread_inbox,
                ends,
                store,
                file,
                is_cached: direct.is_none(),
                under_way: HashMap::new(),
            };
            ring.run(&result);
        })?;
        started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the ring's thread ended")))?;
        Ok(Self {
            inbox,
            direct,
            helpers,
        })
    }

    /// What the kernel is to work with; the job itself if it is one for the helpers.
    fn flight(&self, job: DiskJob) -> Result<Flight, DiskJob> {
        let parts = match &job.operation {
            _ if !self.takes(&job.operation) => None,
            Operation::ReadInto { target, .. } => self.in_guest(target),
            Operation::WriteFrom { source, .. } => self.in_guest(source),
            Operation::Write { data, .. } => {
                let buffer = self.direct.map(|_| AlignedBuffer::of(data));
                let bytes: &[u8] = buffer.as_deref().unwrap_or(data);
                let part = libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                };
                Some((buffer, vec![part]))
            }
            Operation::Flush => Some((None, Vec::new())),
            Operation::Read { .. } | Operation::Zero { .. } | Operation::FlushAgain(_) => None,
        };
        match parts {
            Some((buffer, iovecs)) if iovecs.len() <= libc::UIO_MAXIOV as usize => Ok(Flight {
                job,
                _buffer: buffer,
                iovecs,
            }),
            _ => Err(job),
        }
    }

    /// Whether direct I/O takes what it touches of the disk as it is.
    fn takes(&self, operation: &Operation) -> bool {
        let touched = self.direct.zip(operation.access());
        touched
            .is_none_or(|(direct, (range, _))| direct.fits(range.start, (range.end - range.start) as usize))
    }

    /// The guest's buffers, if direct I/O takes them as they lie.
    fn in_guest(&self, buffers: &GuestBuffers) -> Option<(Option<AlignedBuffer>, Vec<libc::iovec>)> {
        let iovecs = buffers.segments.iovecs(&buffers.memory).ok()?;
        let is_aligned = self.direct.is_none_or(|direct| {
            iovecs.iter().all(|part| {
                (part.iov_base as usize).is_multiple_of(direct.memory)
                    && part.iov_len.is_multiple_of(direct.offset)
            })
        });
        is_aligned.then_some((None, iovecs))
    }
}

impl Engine for Uring {
    fn submit(&self, job: DiskJob) {
        match self.flight(job) {
            Ok(flight) => self.inbox.lock().push(flight),
            Err(job) => self.helpers.submit(job),
        }
    }

    fn start(&self) {
        if !self.inbox.lock().is_empty() {
            self.inbox.ring();
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.inbox.ends.store(true, Ordering::SeqCst);
        self.inbox.ring();
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Vec<Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            // The counter cannot overflow: it is written once until it is read.
            let _ = self.bell.write(1);
        }
    }
}

/// What the ring's thread has.
struct RingThread {
    inbox: Arc<Inbox>,
    ends: Weak<dyn Ends>,
    /// Keeps the file open, and does what must be done twice.
    store: Arc<dyn Store>,
    file: RawFd,
    is_cached: bool,
    under_way: HashMap<u64, Flight>,
}

impl RingThread {
    fn run(mut self, started: &Sender<io::Result<()>>) {
        confine::thread(&CALLS);
        let made = make();
        let told = made
            .as_ref()
            .map(|_| ())
            .map_err(|error| io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::ENOSYS)));
        let (Ok(mut ring), Ok(())) = (made, started.send(told)) else {
            return;
        };
        let bell = opcode::PollAdd::new(types::Fd(self.inbox.bell.as_raw_fd()), libc::POLLIN as u32)
            .build()
            .user_data(BELL);
        push(&mut ring, &bell);
        loop {
            self.inbox.rung.store(false, Ordering::SeqCst);
            let flights = std::mem::take(&mut *self.inbox.lock());
            for flight in flights {
                let entry = self.entry(&flight);
                // The iovecs lie on the heap: they stay where they are.
                self.under_way.insert(flight.job.id, flight);
                push(&mut ring, &entry);
            }
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => return tracing::error!("io_uring serves a disk no longer: {error}"),
            }
            let mut ended = Vec::new();
            let mut was_rung = false;
            for completion in ring.completion() {
                match self.under_way.remove(&completion.user_data()) {
                    Some(flight) => ended.push(self.outcome(flight, completion.result())),
                    None => was_rung = true,
                }
            }
            if was_rung {
                // What it was rung for is looked at next.
                let _ = self.inbox.bell.read();
                push(&mut ring, &bell);
            }
            if !ended.is_empty()
                && let Some(ends) = self.ends.upgrade()
            {
                ends.ended(ended);
            }
            if self.inbox.ends.load(Ordering::SeqCst)
                && self.under_way.is_empty()
                && self.inbox.lock().is_empty()
            {
                return;
            }
        }
    }

    fn entry(&self, flight: &Flight) -> squeue::Entry {
        let file = types::Fd(self.file);
        let (parts, count) = (flight.iovecs.as_ptr(), flight.iovecs.len() as u32);
        let bytes: usize = flight.iovecs.iter().map(|part| part.iov_len).sum();
        let flags = match self.is_cached && bytes > INLINE_BYTES_MAX {
            true => squeue::Flags::ASYNC,
            false => squeue::Flags::empty(),
        };
        match &flight.job.operation {
            Operation::ReadInto { offset, .. } | Operation::Read { offset, .. } => {
                opcode::Readv::new(file, parts, count).offset(*offset).build()
            }
            Operation::Write { offset, .. }
            | Operation::WriteFrom { offset, .. }
            | Operation::Zero { offset, .. } => {
                opcode::Writev::new(file, parts, count).offset(*offset).build()
            }
            Operation::Flush | Operation::FlushAgain(_) => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        }
        .user_data(flight.job.id)
        .flags(flags)
    }

    fn outcome(&self, flight: Flight, result: i32) -> Ended {
        let length: usize = flight.iovecs.iter().map(|part| part.iov_len).sum();
        let result = match usize::try_from(result) {
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
            Ok(done) if done >= length => Ok(Vec::new()),
            // Only a part was done, as at the end of a file that is too short: once more,
            // so that the reason shows.
            Ok(_) => flight.job.operation.carry_out(&*self.store),
        };
        Ended {
            job: flight.job,
            result,
        }
    }
}

/// A ring that ends requests only when its thread waits for them, where the kernel can do that (Linux 6.1).
fn make() -> io::Result<IoUring> {
    let mut modern = IoUring::builder();
    modern
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_r_disabled();
    let ring = modern
        .build(ENTRIES)
        .or_else(|_| IoUring::builder().setup_r_disabled().build(ENTRIES))?;
    let submitter = ring.submitter();
    submitter.register_restrictions(&mut restrictions())?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

/// All that a ring may be used for (io_uring_register(2), IORING_REGISTER_RESTRICTIONS): seccomp does not see
/// what is asked of it. It opens, connects and starts nothing.
fn restrictions() -> Vec<Restriction> {
    let operations = [
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::PollAdd::CODE,
    ];
    let mut restrictions: Vec<_> = operations.into_iter().map(Restriction::sqe_op).collect();
    restrictions.push(Restriction::sqe_flags_allowed(squeue::Flags::ASYNC.bits()));
    restrictions.push(Restriction::register_op(REGISTER_ENABLE_RINGS));
    restrictions
}

/// Puts an entry into the submission queue; if that is full, lets the kernel take what is in it.
fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    loop {
        // SAFETY: what the entry points to lives in the table of what is under way until the kernel has said
        // that it is done, and the files as long as the ring.
        if unsafe { ring.submission().push(entry) }.is_ok() {
            return;
        }
        match ring.submit() {
            Err(error) if !is_passing(&error) => {
                return tracing::error!("io_uring takes no work any more: {error}");
            }
            Ok(_) | Err(_) => yield_now(),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}
