//! On the secondary: a thread for each replicated disk that carries out what commits release and what the copy brings,
//! in order.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kemari_sync::Term;
use kemari_sync::wire::{CHUNK_BYTES, CHUNK_SUM_BYTES};
use kemari_vmm::disk::{Disk, DiskConfig, KeptDisk, Operation, Overlay};
use kemari_vmm::virtio::budget::BYTES_HELD_MAX;

use super::image::Image;
use super::record::Map;
use super::tracker::MARK_AGE_MIN;

/// Frames of the copy after which what came is made durable.
const STORED_FRAMES: u64 = 64;
/// Longest time that what was carried out stays without a flush. The guest's own flushes come only where it waits for both
/// disks (see `kemari_vmm::watch::DiskWatch::flush_is_output`), and no mark goes before a flush.
const FLUSH_AGE_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether a replica is finished.
const FINISH_LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// A point in the order of the work: reported when everything before it is durable, and the record says what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Nothing more.
    Flush,
    /// The first sync of the pair of this term is complete.
    Whole(Term),
    /// The VM is stopped, and this was its last write.
    Stop,
}

/// What a replica tells.
#[derive(Debug)]
pub enum Report {
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
        _ => 64,
    }
}

/// The image of a replicated disk on the secondary, and the thread that writes it. When this value is dropped the thread
/// first carries out what it was given.
pub struct Replica {
    image: Arc<Image>,
    jobs: Sender<Job>,
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

struct Queue {
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
    /// When one was last done, or came to an empty queue: since then the image has done nothing, if there is a job.
    since: Option<Instant>,
}

impl Queue {
    fn new(bytes_max: u64) -> Self {
        Self {
            is_let_go: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            bytes_max,
            progress: Mutex::default(),
            failed: Mutex::new(None),
        }
    }

    /// Whether there is no room for what one more commit can bring: what comes is counted before it is taken. A small queue
    /// keeps half of itself free for that, and may be over its limit by the rest.
    fn is_full(&self) -> bool {
        let reserved = BYTES_HELD_MAX.min(self.bytes_max / 2);
        self.bytes.load(Ordering::SeqCst) > self.bytes_max - reserved
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, reason: &str) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert_with(|| reason.to_owned());
    }

    /// Nothing more is to be carried out, for good.
    fn let_go(&self, reason: &str) {
        self.fail(reason);
        self.is_let_go.store(true, Ordering::SeqCst);
    }

    /// What failed is tried again; false: it was let go.
    fn heal(&self) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let may_heal = !self.is_let_go.load(Ordering::SeqCst);
        if may_heal {
            *failed = None;
        }
        may_heal
    }

    fn add(&self, job: &Job) {
        self.bytes.fetch_add(job.cost(), Ordering::SeqCst);
        let mut progress = self.progress();
        if progress.jobs == 0 {
            progress.since = Some(Instant::now());
        }
        progress.jobs += 1;
        progress.requests += job.requests();
    }

    /// An image that has failed waits for nothing but to be tried again.
    fn is_stuck(&self, limit: Duration) -> bool {
        let has_failed = self.failure().is_some() && !self.is_let_go.load(Ordering::SeqCst);
        !has_failed && self.progress().since.is_some_and(|since| since.elapsed() > limit)
    }

    /// A request of the guest was carried out.
    fn advance(&self) {
        let mut progress = self.progress();
        progress.since = Some(Instant::now());
        progress.requests -= 1;
    }

    /// A job is done with.
    fn remove(&self, cost: u64) {
        let mut progress = self.progress();
        progress.jobs -= 1;
        progress.since = (progress.jobs > 0).then(Instant::now);
        drop(progress);
        self.bytes.fetch_sub(cost, Ordering::SeqCst);
    }
}

impl Replica {
    /// Opens the image, and starts its thread. `bytes_max`: what may wait for it. `delay`: a fault for tests, see
    /// `side/faults.rs`. `report` is called on that thread.
    pub fn start(
        image: Arc<Image>,
        config: &DiskConfig,
        bytes_max: u64,
        delay: Duration,
        report: impl Fn(Report) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let disk = KeptDisk::new(Disk::open(config)?);
        let queue = Arc::new(Queue::new(bytes_max));
        let (jobs, receiver) = channel();
        let worker = Worker {
            image: image.clone(),
            disk,
            queue: queue.clone(),
            report: Box::new(report),
            outputs: None,
            left: VecDeque::new(),
            unflushed: None,
            last: BTreeMap::new(),
            delay,
            copied: 0,
            stored: 0,
            overlay: Weak::new(),
        };
        let thread = thread::Builder::new()
            .name("replica".into())
            .spawn(move || worker.run(&receiver))
            .context("cannot start a replica's thread")?;
        Ok(Self {
            image,
            jobs,
            queue,
            thread,
        })
    }

    /// The image.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Whether so much waits that nothing more should be given to it: with what one more commit can bring it would be over
    /// its limit. What is given all the same is taken.
    pub fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// Why it cannot go on, if it cannot.
    pub fn failure(&self) -> Option<String> {
        self.queue.failure()
    }

    /// That the image has finished nothing for longer than `limit` although there is something to do, in words.
    pub fn stuck(&self, limit: Duration) -> Option<String> {
        self.queue.is_stuck(limit).then(|| stuck(&self.image, limit))
    }

    /// Lets it go without waiting: its thread ends when the image lets it, and carries out nothing more. Until then the
    /// image has a user.
    pub fn abandon(self, reason: &str) -> Remains {
        self.queue.let_go(reason);
        Remains(Arc::downgrade(&self.queue))
    }

    fn give(&self, job: Job) {
        self.queue.add(&job);
        // The thread lives as long as this sender.
        let _ = self.jobs.send(job);
    }

    /// Outputs that a commit released, with their numbers, in order.
    pub fn apply(&self, outputs: Vec<(u64, Operation)>) {
        let outputs = outputs.into_iter().map(|(id, output)| (id, Arc::new(output)));
        self.give(Job::Outputs(Arc::new(outputs.collect())));
    }

    /// Checksums of the primary's chunks, to be compared with those here.
    pub fn compare(&self, first: u64, sums: &[u8]) {
        let sums = sums.to_vec();
        self.give(Job::Sums { first, sums });
    }

    /// Blocks of the primary's image; zeros if there are no bytes.
    pub fn write_blocks(&self, offset: u64, bytes: u64, data: &[u8]) {
        let data = data.to_vec();
        self.give(Job::Blocks { offset, bytes, data });
    }

    /// Asks for a report when everything given so far is done.
    pub fn barrier(&self, barrier: Barrier) {
        self.give(Job::Barrier(barrier));
    }

    /// If the image has failed it is tried again with what it has not carried out: outputs are kept, all else that came
    /// since is not.
    pub fn retry(&self) {
        if self.failure().is_some() {
            self.give(Job::Retry);
        }
    }

    /// The pair whose first sync is complete is recorded.
    pub fn note_recorded(&self) {
        self.give(Job::Recorded);
    }

    /// All outputs up to this one are durable on both images.
    pub fn settle(&self, request: u64) {
        self.give(Job::Settled(request));
    }

    /// Makes the image larger. If that fails the replica goes on all the same.
    pub fn enlarge(&self, bytes: u64, answer: impl FnOnce(Result<(), String>) + Send + 'static) {
        self.give(Job::Enlarge(bytes, Box::new(answer)));
    }

    /// Hands out a throw-away layer of at most `bytes_max` over the image as it is when all that was given so far is done:
    /// a disk at that moment, whatever is given later. There is one at a time. If the image fails before, `answer` is
    /// dropped.
    pub fn overlay(&self, bytes_max: u64, answer: impl FnOnce(Arc<Overlay>) + Send + 'static) {
        self.give(Job::Overlay(bytes_max, Box::new(answer)));
    }

    /// Requests of the guest that are not carried out, and what waits in all, in bytes.
    pub fn queued(&self) -> (u64, u64) {
        let bytes = self.queue.bytes.load(Ordering::SeqCst);
        (self.queue.progress().requests, bytes)
    }

    /// Waits until everything given is done, and closes the image.
    pub fn finish(self) -> Arc<Image> {
        drop(self.jobs);
        // A panic of the thread was reported by the runtime.
        let _ = self.thread.join();
        self.image
    }

    /// The same, unless the image finishes nothing for longer than `limit`: then that, in words, and it is let go.
    pub fn finish_within(self, limit: Duration) -> Result<Arc<Image>, (String, Remains)> {
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
pub struct Remains(Weak<Queue>);

impl Remains {
    /// Why its image cannot be used yet; none: it can.
    pub fn reason(&self) -> Option<String> {
        // The thread has the other end.
        self.0.upgrade()?.failure()
    }
}

struct Worker {
    image: Arc<Image>,
    disk: KeptDisk,
    queue: Arc<Queue>,
    report: Box<dyn Fn(Report) + Send>,
    /// The last output that was carried out.
    outputs: Option<u64>,
    /// What could not be carried out when the image failed, and outputs that came since, in order.
    left: VecDeque<Job>,
    /// When the first of them was that no flush has followed.
    unflushed: Option<Instant>,
    /// The last output that touched each marked extent, and when.
    last: BTreeMap<u64, (u64, Instant)>,
    /// A fault for tests: so long it takes to carry out a job.
    delay: Duration,
    /// Frames of the copy that were carried out, and those of them that are durable.
    copied: u64,
    stored: u64,
    /// Shows the image as it was at one moment, to somebody who needs that still.
    overlay: Weak<Overlay>,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Some(job) = self.next(jobs) {
            thread::sleep(self.delay);
            self.take(job);
        }
    }

    /// Carries a job out. Outputs that cannot be are kept: they are committed, and nobody else has them.
    fn take(&mut self, job: Job) {
        let cost = job.cost();
        match (self.queue.failure(), job) {
            (Some(_), job @ Job::Outputs(_)) => return self.left.push_back(job),
            (Some(reason), Job::Enlarge(_, answer)) => answer(Err(reason)),
            (Some(_), job) if !matches!(job, Job::Retry) => {}
            (_, job) => {
                let outputs = match &job {
                    Job::Outputs(outputs) => Some(outputs.clone()),
                    _ => None,
                };
                if let Err(error) = self.carry_out(job) {
                    self.fail(&error);
                    if let Some(outputs) = outputs {
                        return self.left.push_back(Job::Outputs(outputs));
                    }
                }
            }
        }
        let was_full = self.queue.is_full();
        self.queue.remove(cost);
        if was_full && !self.queue.is_full() {
            (self.report)(Report::Room);
        }
    }

    /// Tries again what was left when the image failed.
    fn retry(&mut self) {
        if !self.queue.heal() {
            return;
        }
        for job in std::mem::take(&mut self.left) {
            self.take(job);
        }
    }

    /// The next job; none: there will be no more. While there is none what was carried out is flushed in time.
    fn next(&mut self, jobs: &Receiver<Job>) -> Option<Job> {
        while let Some(unflushed) = self.unflushed {
            let left = FLUSH_AGE_MAX.saturating_sub(unflushed.elapsed());
            if !left.is_zero() {
                match jobs.recv_timeout(left) {
                    Err(RecvTimeoutError::Timeout) => {}
                    received => return received.ok(),
                }
            }
            // Also if it cannot be: then nothing more is carried out.
            self.unflushed = None;
            if self.queue.failure().is_some() {
                continue;
            }
            match (self.flush(), self.outputs) {
                (Err(error), _) => self.fail(&error.into()),
                (Ok(()), Some(request)) => (self.report)(Report::Flushed(request)),
                (Ok(()), None) => {}
            }
        }
        jobs.recv().ok()
    }

    /// Makes durable what was carried out.
    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()?;
        self.unflushed = None;
        Ok(())
    }

    fn fail(&self, error: &anyhow::Error) {
        let reason = format!(
            "the image {} of disk {} cannot be written: {error:#}",
            self.image.path().display(),
            self.image.disk()
        );
        self.queue.fail(&reason);
        (self.report)(Report::Failed(reason));
    }

    fn carry_out(&mut self, job: Job) -> anyhow::Result<()> {
        match job {
            Job::Outputs(outputs) => self.outputs(&outputs),
            Job::Retry => {
                self.retry();
                Ok(())
            }
            Job::Sums { first, sums } => {
                let (count, bits) = self.compare(first, &sums)?;
                self.copied += 1;
                (self.report)(Report::Wanted { first, count, bits });
                self.store_now_and_then()
            }
            Job::Blocks { offset, bytes, data } => {
                let bytes = if data.is_empty() { bytes } else { data.len() as u64 };
                if offset
                    .checked_add(bytes)
                    .is_none_or(|end| end > self.disk.disk().bytes())
                {
                    bail!("the primary sent a block beyond the end of the disk");
                }
                // What has no storage at the primary needs none here.
                let block = match data.is_empty() {
                    true => Operation::Zero {
                        offset,
                        bytes,
                        unmap: true,
                    },
                    false => Operation::Write { offset, data },
                };
                // The primary has it, and what is half copied is copied again.
                self.disk.copy(&block)?;
                self.copied += 1;
                self.store_now_and_then()
            }
            Job::Barrier(barrier) => self.barrier(barrier),
            Job::Recorded => self.image.note_recorded(),
            Job::Settled(request) => self.settle(request),
            Job::Overlay(bytes_max, answer) => {
                let overlay = Arc::new(Overlay::over(self.disk.disk(), bytes_max));
                self.overlay = Arc::downgrade(&overlay);
                answer(overlay);
                Ok(())
            }
            Job::Enlarge(bytes, answer) => self.enlarge(bytes, answer),
        }
    }

    /// An image that does not grow goes on as it is; one that cannot be flushed is not to be relied on any more.
    fn enlarge(&mut self, bytes: u64, answer: Answer) -> anyhow::Result<()> {
        if let Err(error) = self.disk.disk().enlarge(bytes) {
            answer(Err(format!("{:#}", anyhow::Error::from(error))));
            return Ok(());
        }
        let flushed = self.flush();
        answer(flushed.as_ref().copied().map_err(io::Error::to_string));
        Ok(flushed?)
    }

    /// Everything is marked before any of it is written.
    fn outputs(&mut self, outputs: &[(u64, Arc<Operation>)]) -> anyhow::Result<()> {
        let ranges: Vec<Range<u64>> = outputs
            .iter()
            .filter_map(|(_, output)| output.changes())
            .collect();
        if ranges.iter().any(|range| range.end > self.disk.disk().bytes()) {
            bail!("an output lies beyond the end of the disk");
        }
        self.image.mark_ranges(&ranges)?;
        for (id, operation) in outputs {
            let id = *id;
            if self.outputs.is_some_and(|done| id <= done) {
                // It was carried out before the image failed.
                continue;
            }
            let is_flush = matches!(**operation, Operation::Flush);
            for extent in operation.changes().iter().flat_map(Map::touched) {
                self.last.insert(extent, (id, Instant::now()));
            }
            if let (Some(overlay), Some(range)) = (self.overlay.upgrade(), operation.changes()) {
                overlay.keep(&range);
            }
            match is_flush {
                true => self.disk.flush()?,
                false => self.disk.change(operation)?,
            }
            self.outputs = Some(id);
            self.queue.advance();
            if let Some(reason) = self.queue.failure() {
                // It was let go while this one did not end.
                bail!(reason);
            }
            if is_flush {
                self.unflushed = None;
                (self.report)(Report::Flushed(id));
            } else {
                self.unflushed.get_or_insert_with(Instant::now);
            }
        }
        Ok(())
    }

    /// Takes the marks of what is durable on both images, and was not written for a while.
    fn settle(&mut self, request: u64) -> anyhow::Result<()> {
        let now = Instant::now();
        let settled: Vec<u64> = self
            .last
            .iter()
            .filter(|(_, (id, at))| *id <= request && now.duration_since(*at) >= MARK_AGE_MIN)
            .map(|(extent, _)| *extent)
            .collect();
        settled.iter().for_each(|extent| {
            self.last.remove(extent);
        });
        self.image.clear(&settled)
    }

    /// Which chunks differ from those with these checksums.
    fn compare(&self, first: u64, sums: &[u8]) -> anyhow::Result<(u32, Vec<u8>)> {
        let count = sums.len() / CHUNK_SUM_BYTES;
        let mut bits = vec![0; count.div_ceil(8)];
        for (index, sum) in sums.chunks_exact(CHUNK_SUM_BYTES).enumerate() {
            let (found, _) = chunk_sum(self.disk.disk(), first.saturating_add(index as u64))?;
            if found != sum {
                bits[index / 8] |= 1 << (index % 8);
            }
        }
        Ok((count as u32, bits))
    }

    /// From time to time what was copied is made durable, so that it need not be copied again after a break.
    fn store_now_and_then(&mut self) -> anyhow::Result<()> {
        if self.copied - self.stored >= STORED_FRAMES {
            self.flush()?;
            self.stored = self.copied;
            (self.report)(Report::Stored(self.stored));
        }
        Ok(())
    }

    fn barrier(&mut self, barrier: Barrier) -> anyhow::Result<()> {
        self.flush()?;
        match barrier {
            Barrier::Flush => {}
            Barrier::Whole(term) => self.image.become_whole(term)?,
            Barrier::Stop => self.image.stop()?,
        }
        (self.report)(Report::Reached(barrier));
        Ok(())
    }
}

/// The bytes of a chunk; the last one of an image may be shorter.
fn chunk_range(disk: &Disk, chunk: u64) -> io::Result<Range<u64>> {
    let start = chunk
        .checked_mul(CHUNK_BYTES)
        .filter(|start| *start < disk.bytes())
        .ok_or_else(|| io::Error::other("a chunk beyond the end of the disk"))?;
    Ok(start..disk.bytes().min(start.saturating_add(CHUNK_BYTES)))
}

/// Reads a chunk.
pub(super) fn read_chunk(disk: &Disk, chunk: u64) -> io::Result<Vec<u8>> {
    let range = chunk_range(disk, chunk)?;
    disk.carry_out(&Operation::Read {
        offset: range.start,
        bytes: (range.end - range.start) as usize,
    })
}

/// The checksum of a chunk, and how many bytes were read for it: none of a hole.
pub(super) fn chunk_sum(disk: &Disk, chunk: u64) -> io::Result<([u8; CHUNK_SUM_BYTES], usize)> {
    static OF_ZEROS: LazyLock<[u8; CHUNK_SUM_BYTES]> = LazyLock::new(|| checksum(&[0; CHUNK_BYTES as usize]));
    let range = chunk_range(disk, chunk)?;
    if range.end - range.start == CHUNK_BYTES && disk.is_hole(&range) {
        return Ok((*OF_ZEROS, 0));
    }
    let data = read_chunk(disk, chunk)?;
    Ok((checksum(&data), data.len()))
}

/// A checksum that no guest can make collide.
pub(super) fn checksum(data: &[u8]) -> [u8; CHUNK_SUM_BYTES] {
    let mut sum = [0; CHUNK_SUM_BYTES];
    sum.copy_from_slice(&blake3::hash(data).as_bytes()[..CHUNK_SUM_BYTES]);
    sum
}

#[cfg(test)]
#[path = "writer_test.rs"]
mod tests;
