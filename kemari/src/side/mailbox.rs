//! Where other threads put what a side's loop must know.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use rustix::event::{EventfdFlags, eventfd};

/// A queue that wakes its reader's poll.
pub struct Mailbox<T> {
    queue: Mutex<VecDeque<T>>,
    bell: OwnedFd,
}

impl<T> Mailbox<T> {
    pub fn new() -> anyhow::Result<Arc<Self>> {
        let bell =
            eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).context("cannot create an eventfd")?;
        Ok(Arc::new(Self {
            queue: Mutex::default(),
            bell,
        }))
    }

    /// Puts something in and wakes the reader. What is put in is bounded by who does it: each sender waits
    /// for an answer, or is deduplicated, before it sends again.
    pub fn post(&self, item: T) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(item);
        if queue.len() == 1 {
            // A full counter would wake the reader too.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// Takes everything out.
    pub fn take(&self) -> VecDeque<T> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.is_empty() {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
        std::mem::take(&mut *queue)
    }

    /// Readable while something is in it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
