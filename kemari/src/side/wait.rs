//! Waiting for sockets, a mailbox and a deadline.

use std::hint::spin_loop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use crate::link::Connection;

/// The calling thread does little at a time, and others wait for it: the kernel is asked to let it run soon
/// after it has become runnable, for correspondingly shorter slices. (Linux 6.12 and later: sched_setattr(2),
/// `sched_runtime` of a normal thread. Others ignore it.)
pub fn prefer_latency() {
    /// The shortest that Linux takes.
    const SLICE_NS: u64 = 100_000;
    /// `struct sched_attr` in its first version.
    #[repr(C)]
    #[derive(Default)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: libc::SCHED_OTHER as u32,
        // SAFETY: it reads a number; 0 is the calling thread.
        nice: unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) },
        runtime: SLICE_NS,
        ..Default::default()
    };
    // SAFETY: the structure is as long as it says, and only read.
    // A kernel that refuses leaves the thread as it is.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// What a thread does between two looks at a socket while it polls.
pub struct Poll {
    yielded: Instant,
}

impl Poll {
    /// How often a polling thread lets others have its processor. Not more often: a kernel takes it at its
    /// word, and lets every other thread run first (since Linux 6.18 it even counts the time given up as
    /// used).
    const YIELD_INTERVAL: Duration = Duration::from_micros(50);

    /// Begins to poll.
    pub fn begin() -> Self {
        Self {
            yielded: Instant::now(),
        }
    }

    /// Between two looks.
    pub fn pause(&mut self) {
        if self.yielded.elapsed() < Self::YIELD_INTERVAL {
            return spin_loop();
        }
        // The other end's answer may depend on this very processor.
        yield_now();
        self.yielded = Instant::now();
    }
}

/// Waits until one of `readable` can be read, one of the connections can be read or takes what it wants to
/// write, or `timeout_ms` is over, if there is one.
pub fn wait<'a>(
    readable: &[BorrowedFd<'a>],
    connections: impl IntoIterator<Item = &'a Connection>,
    timeout_ms: Option<u64>,
) {
    let mut fds: Vec<PollFd<'_>> = readable
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    fds.extend(connections.into_iter().map(|connection| {
        let write = if connection.wants_to_write() {
            PollFlags::OUT
        } else {
            PollFlags::empty()
        };
        PollFd::from_borrowed_fd(connection.fd(), PollFlags::IN | write)
    }));
    // An interrupted wait only means another turn of the loop.
    let _ = poll(&mut fds, timeout_ms.map(timespec).as_ref());
}

fn timespec(ms: u64) -> Timespec {
    Timespec {
        tv_sec: (ms / 1000) as i64,
        tv_nsec: (ms % 1000 * 1_000_000) as i64,
    }
}

/// A set of sockets that one thread waits for while another may use, add or close them.
#[derive(Clone)]
pub struct Waiter(Arc<OwnedFd>);

impl Waiter {
    /// Waits for nothing yet.
    pub fn new() -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot create an epoll instance")?;
        Ok(Self(Arc::new(epoll)))
    }

    /// Waits for this one to be readable, too. It leaves the set when it is closed.
    pub fn add(&self, fd: impl AsFd) -> anyhow::Result<()> {
        epoll::add(&*self.0, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
            .context("cannot wait for a socket")
    }

    /// Changes what is waited for: to be readable, to take what is to be written, or nothing for now.
    pub fn set(&self, fd: impl AsFd, readable: bool, writable: bool) {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, readable);
        flags.set(epoll::EventFlags::OUT, writable);
        // It fails only for a socket that was not added: there is nothing to wait for then.
        let _ = epoll::modify(&*self.0, fd, epoll::EventData::new_u64(0), flags);
    }

    /// Waits until something of the set is ready, or the time is over, if there is a limit.
    pub fn wait(&self, timeout_ms: Option<u64>) {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 4];
        // An interrupted wait only means another turn of the loop.
        let _ = epoll::wait(&*self.0, &mut events, timeout_ms.map(timespec).as_ref());
    }
}
