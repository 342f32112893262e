//! What waits for the image of a replica, counted, and whether the image gets on with it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kemari_vmm::virtio::budget::BYTES_HELD_MAX;

use super::Job;

/// How much waits for an image, and how it gets on.
pub(crate) struct Queue {
    /// Nothing more is to be carried out, for good.
    is_let_go: AtomicBool,
    bytes: AtomicU64,
    bytes_max: u64,
    progress: Mutex<Progress>,
    failed: Mutex<Option<String>>,
}

#[derive(Default)]
struct Progress {
    /// Requests of the guest that are not carried out.
    requests: u64,
    /// Jobs that are not done.
    jobs: u64,
    /// When one was last done, or came to an empty queue: since then the image has done nothing,
    /// if there is a job.
    since: Option<Instant>,
}

impl Queue {
    /// An empty one, for an image that works.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            is_let_go: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            bytes_max,
            progress: Mutex::default(),
            failed: Mutex::new(None),
        }
    }

    /// Whether there is no room for what one more commit can bring: what comes is counted before it is taken.
    /// A small queue keeps half of itself free for that, and may be over its limit by the rest.
    pub(crate) fn is_full(&self) -> bool {
        let reserved = BYTES_HELD_MAX.min(self.bytes_max / 2);
        self.bytes.load(Ordering::SeqCst) > self.bytes_max - reserved
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Requests of the guest that are not carried out.
    pub(super) fn requests(&self) -> u64 {
        self.progress().requests
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the image cannot be used, if it cannot.
    pub(super) fn failure(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The image cannot be used; the first reason stands.
    pub(super) fn fail(&self, reason: &str) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert_with(|| reason.to_owned());
    }

    /// Nothing more is to be carried out, for good.
    pub(super) fn let_go(&self, reason: &str) {
        self.is_let_go.store(true, Ordering::SeqCst);
        self.fail(reason);
    }

    /// What failed is tried again; false: it was let go.
    pub(crate) fn heal(&self) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let may_heal = !self.is_let_go.load(Ordering::SeqCst);
        if may_heal {
            *failed = None;
        }
        may_heal
    }

    /// A job is about to be given.
    pub(super) fn add(&self, job: &Job) {
        self.bytes.fetch_add(job.cost(), Ordering::SeqCst);
        let mut progress = self.progress();
        if progress.jobs == 0 {
            progress.since = Some(Instant::now());
        }
        progress.jobs += 1;
        progress.requests += job.requests();
    }

    /// An image that has failed waits for nothing but to be tried again.
    pub(crate) fn is_stuck(&self, limit: Duration) -> bool {
        let has_failed = self.failure().is_some() && !self.is_let_go.load(Ordering::SeqCst);
        !has_failed && self.progress().since.is_some_and(|since| since.elapsed() > limit)
    }

    /// A request of the guest was carried out.
    pub(crate) fn advance(&self) {
        let mut progress = self.progress();
        progress.since = Some(Instant::now());
        progress.requests -= 1;
    }

    /// A job is done with.
    pub(super) fn remove(&self, cost: u64) {
        let mut progress = self.progress();
        progress.jobs -= 1;
        progress.since = (progress.jobs > 0).then(Instant::now);
        drop(progress);
        self.bytes.fetch_sub(cost, Ordering::SeqCst);
    }
}
