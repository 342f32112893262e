//! On the secondary: a thread for each replicated disk that carries out what commits release and what the
//! copy brings, in order.

mod queue;
mod worker;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use kemari_sync::Term;
use kemari_vmm::confine::{self, COMMON, Calls, OPEN_FILES};
use kemari_vmm::disk::{Disk, DiskConfig, KeptDisk, Operation, Overlay};
use kemari_vmm::virtio::block::ZEROS_A_BYTE;

use super::image::Image;
use crate::sandbox::FILES;
use queue::Queue;
use worker::Worker;

/// What a replica's thread asks of the kernel.
pub(crate) const CALLS: Calls = Calls {
    of: "replica",
    parts: &[COMMON, OPEN_FILES, FILES],
};

/// How often it is looked whether a replica is finished.
const FINISH_LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// A point in the order of the work: reported when everything before it is durable,
/// and the record says what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    /// Nothing more.
    Flush,
    /// The first sync of the pair of this term is complete.
    Whole(Term),
    /// The VM is stopped, and this was its last write.
    Stop,
}

/// What a replica tells.
#[derive(Debug)]
pub(crate) enum Report {
    /// These chunks of those compared differ, a bit each.
    Wanted {
        /// The first chunk.
        first: u64,
        /// How many.
        count: u32,
        /// The bits.
        bits: Vec<u8>,
    },
    /// There is room in the queue again.
    Room,
    /// A barrier is reached.
    Reached(Barrier),
    /// So many frames of the copy are durable.
    Stored(u64),
    /// Every output up to this one is durable.
    Flushed(u64),
    /// The image cannot be used any more.
    Failed(String),
}

enum Job {
    Outputs(Arc<Vec<(u64, Arc<Operation>)>>),
    Sums { first: u64, sums: Vec<u8> },
    Blocks { offset: u64, bytes: u64, data: Vec<u8> },
    Barrier(Barrier),
    Retry,
    Recorded,
    Settled(u64),
    Enlarge(u64, Answer),
    Overlay(u64, Overlaid),
}

/// Who wants to know whether the image was made larger.
type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;
/// Who wants to have a layer over the image.
type Overlaid = Box<dyn FnOnce(Arc<Overlay>) + Send>;

impl Job {
    /// How many requests of the guest it consists of.
    fn requests(&self) -> u64 {
        match self {
            Self::Outputs(outputs) => outputs.len() as u64,
            _ => 0,
        }
    }

    /// What it takes of the queue, in bytes.
    fn cost(&self) -> u64 {
        let data = match self {
            Self::Outputs(outputs) => outputs.iter().map(|(_, operation)| data_bytes(operation)).sum(),
            Self::Sums { sums, .. } => sums.len(),
            Self::Blocks { data, .. } => data.len(),
            Self::Barrier(_) | Self::Retry | Self::Recorded | Self::Settled(_) => 0,
            Self::Enlarge(..) | Self::Overlay(..) => 0,
        };
        data as u64 + 64
    }
}

fn data_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Write { data, .. } => data.len() + 64,
        Operation::Zero { bytes, .. } => (bytes / ZEROS_A_BYTE) as usize + 64,
        _ => 64,
    }
}

/// The image of a replicated disk on the secondary, and the thread that writes it. When this value is dropped
/// the thread first carries out what it was given.
pub(crate) struct Replica {
    image: Arc<Image>,
    jobs: Sender<Job>,
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl Replica {
    /// Opens the image, and starts its thread. `bytes_max`: what may wait for it. `delay`: a fault for tests,
    /// see `side/faults.rs`. `report` is called on that thread.
    pub(crate) fn start(
        image: Arc<Image>,
        config: &DiskConfig,
        bytes_max: u64,
        delay: Duration,
        report: impl Fn(Report) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let disk = KeptDisk::new(Disk::open(config)?);
        let queue = Arc::new(Queue::new(bytes_max));
        let (jobs, receiver) = channel();
        let worker = Worker::new(image.clone(), disk, queue.clone(), delay, report);
        let thread = thread::Builder::new()
            .name("replica".into())
            .spawn(move || {
                confine::thread(&CALLS);
                worker.run(&receiver);
            })
            .context("cannot start a replica's thread")?;
        Ok(Self {
            image,
            jobs,
            queue,
            thread,
        })
    }

    /// The image.
    pub(crate) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Whether so much waits that nothing more should be given to it: with what one more commit can bring it
    /// would be over its limit. What is given all the same is taken.
    pub(crate) fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// Why it cannot go on, if it cannot.
    pub(crate) fn failure(&self) -> Option<String> {
        self.queue.failure()
    }

    /// That the image has finished nothing for longer than `limit` although there is something to do,
    /// in words.
    pub(crate) fn stuck(&self, limit: Duration) -> Option<String> {
        self.queue.is_stuck(limit).then(|| stuck(&self.image, limit))
    }

    /// Lets it go without waiting: its thread ends when the image lets it, and carries out nothing more.
    /// Until then the image has a user.
    pub(crate) fn abandon(self, reason: &str) -> Remains {
        self.queue.let_go(reason);
        Remains(Arc::downgrade(&self.queue))
    }

    fn give(&self, job: Job) {
        self.queue.add(&job);
        // The thread lives as long as this sender.
        let _ = self.jobs.send(job);
    }

    /// Outputs that a commit released, with their numbers, in order.
    pub(crate) fn apply(&self, outputs: Vec<(u64, Operation)>) {
        let outputs = outputs.into_iter().map(|(id, output)| (id, Arc::new(output)));
        self.give(Job::Outputs(Arc::new(outputs.collect())));
    }

    /// Checksums of the primary's chunks, to be compared with those here.
    pub(crate) fn compare(&self, first: u64, sums: &[u8]) {
        let sums = sums.to_vec();
        self.give(Job::Sums { first, sums });
    }

    /// Blocks of the primary's image; zeros if there are no bytes.
    pub(crate) fn write_blocks(&self, offset: u64, bytes: u64, data: &[u8]) {
        let data = data.to_vec();
        self.give(Job::Blocks { offset, bytes, data });
    }

    /// Asks for a report when everything given so far is done.
    pub(crate) fn barrier(&self, barrier: Barrier) {
        self.give(Job::Barrier(barrier));
    }

    /// If the image has failed it is tried again with what it has not carried out: outputs are kept, all else
    /// that came since is not.
    pub(crate) fn retry(&self) {
        if self.failure().is_some() {
            self.give(Job::Retry);
        }
    }

    /// The pair whose first sync is complete is recorded.
    pub(crate) fn note_recorded(&self) {
        self.give(Job::Recorded);
    }

    /// All outputs up to this one are durable on both images.
    pub(crate) fn settle(&self, request: u64) {
        self.give(Job::Settled(request));
    }

    /// Makes the image larger. If that fails the replica goes on all the same.
    pub(crate) fn enlarge(&self, bytes: u64, answer: impl FnOnce(Result<(), String>) + Send + 'static) {
        self.give(Job::Enlarge(bytes, Box::new(answer)));
    }

    /// Hands out a throw-away layer of at most `bytes_max` over the image as it is when all that was given so
    /// far is done: a disk at that moment, whatever is given later. There is one at a time. If the image
    /// fails before, `answer` is dropped.
    pub(crate) fn overlay(&self, bytes_max: u64, answer: impl FnOnce(Arc<Overlay>) + Send + 'static) {
        self.give(Job::Overlay(bytes_max, Box::new(answer)));
    }

    /// Requests of the guest that are not carried out, and what waits in all, in bytes.
    pub(crate) fn queued(&self) -> (u64, u64) {
        let bytes = self.queue.bytes();
        (self.queue.requests(), bytes)
    }

    /// Waits until everything given is done, and closes the image.
    pub(crate) fn finish(self) -> Arc<Image> {
        drop(self.jobs);
        // A panic of the thread was reported by the runtime.
        let _ = self.thread.join();
        self.image
    }

    /// The same, unless the image finishes nothing for longer than `limit`: then that, in words,
    /// and it is let go.
    pub(crate) fn finish_within(self, limit: Duration) -> Result<Arc<Image>, (String, Remains)> {
        let Self {
            image,
            jobs,
            queue,
            thread,
        } = self;
        drop(jobs);
        while !thread.is_finished() {
            if queue.is_stuck(limit) {
                let reason = stuck(&image, limit);
                queue.let_go(&reason);
                return Err((reason, Remains(Arc::downgrade(&queue))));
            }
            thread::sleep(FINISH_LOOK_INTERVAL);
        }
        // As in `finish`.
        let _ = thread.join();
        Ok(image)
    }
}

fn stuck(image: &Image, limit: Duration) -> String {
    format!(
        "the image {} of disk {} has not finished a request within {} ms",
        image.path().display(),
        image.disk(),
        limit.as_millis()
    )
}

/// What is left of a replica that was let go while its image did not answer.
pub(crate) struct Remains(Weak<Queue>);

impl Remains {
    /// Why its image cannot be used yet; none: it can.
    pub(crate) fn reason(&self) -> Option<String> {
        // The thread has the other end.
        self.0.upgrade()?.failure()
    }
}

#[cfg(test)]
#[path = "writer_test.rs"]
mod tests;
