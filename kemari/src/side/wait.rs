//! Waiting for sockets, a mailbox and a deadline.

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::link::Connection;

/// Waits until one of `readable` can be read, one of the connections can be read or takes what it wants to write, or
/// `timeout_ms` is over.
pub fn wait<'a>(
    readable: &[BorrowedFd<'a>],
    connections: impl IntoIterator<Item = &'a Connection>,
    timeout_ms: u64,
) {
    let mut fds: Vec<PollFd<'_>> = readable.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    fds.extend(connections.into_iter().map(|connection| {
        let write = if connection.wants_to_write() { PollFlags::OUT } else { PollFlags::empty() };
        PollFd::from_borrowed_fd(connection.fd(), PollFlags::IN | write)
    }));
    let timeout = Timespec { tv_sec: (timeout_ms / 1000) as i64, tv_nsec: (timeout_ms % 1000 * 1_000_000) as i64 };
    // An interrupted wait only means another turn of the loop.
    let _ = poll(&mut fds, Some(&timeout));
}
