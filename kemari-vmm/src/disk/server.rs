//! A disk at work: the order of its jobs, what happens when one fails, and the engine under them.
//!
//! Flushes go one at a time, each for all that wait for one:
//! of two at a time only one would be told that it failed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::engine::{Ended, Ends, Engine, Threads, Uring};
use super::error::DiskError;
use super::operation::{DiskJob, Operation};
use super::order::Order;
use super::store::Store;
use super::unflushed::Unflushed;
use super::watch::{self, DiskWatch, Watched};
use super::{Disk, Io, OnError};

/// Most jobs of a disk that are under way at a time; more wait.
const IN_FLIGHT_MAX: usize = 256;
/// Names the flush under way, which is that of several jobs.
const FLUSH: u64 = u64::MAX - 1;

/// Something that a disk cannot do. The request stays unfinished until [`Server::retry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What failed and why, as a sentence.
    pub reason: String,
    /// Whether another host should go on, if one can.
    pub fail_over: bool,
}

/// Is told of trouble; it must not block.
pub(crate) type TroubleSink = Arc<dyn Fn(Trouble) + Send + Sync>;

/// The end of a job, by its number: the bytes of an [`Operation::Read`] (empty for others), or why it failed.
pub type Outcome = (u64, io::Result<Vec<u8>>);

/// Is told of jobs that have ended, by the disk's own threads.
pub type EndSink = Arc<dyn Fn(Vec<Outcome>) + Send + Sync>;

/// Takes jobs, and tells their ends.
pub struct Server {
    disk: Arc<Disk>,
    engine: OnceLock<Box<dyn Engine>>,
    ends: EndSink,
    trouble: TroubleSink,
    watched: Option<Watched>,
    state: Mutex<Jobs>,
    /// Something that was under way has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Jobs {
    order: Order,
    /// Jobs that wait for others that overlap.
    blocked: HashMap<u64, DiskJob>,
    /// Jobs that may begin.
    ready: VecDeque<DiskJob>,
    in_flight: usize,
    /// Who waits for a flush that has not begun, and for the one under way.
    flushes: Vec<Flush>,
    flushing: Vec<Flush>,
    /// What is written again before the next flush, if the last one has failed.
    unflushed: Unflushed,
    /// All of that is under way, and nothing else may be.
    writes_again: bool,
    /// A flush has failed, and what it was for cannot be written again.
    is_lost: bool,
    /// Jobs that failed, and wait for the operator. They keep their place in the order.
    failed: BTreeMap<u64, DiskJob>,
    /// Writes that are done, and are finished when the flush of the same number is.
    made_durable: HashMap<u64, DiskJob>,
    /// The guest knows no flush: whatever is finished must be durable.
    write_through: bool,
    /// Whatever fails is told, whatever else the image's way of treating errors is.
    always_reports: bool,
    /// Jobs come in a batch; the engine begins at its end.
    batch: bool,
    /// Nothing begins any more.
    is_closed: bool,
}

/// Who wants a flush.
enum Flush {
    Job(DiskJob),
    /// This process itself.
    Own(Sender<io::Result<()>>),
}

impl Server {
    /// Begins to serve an image. `ends` is told the ends of the jobs; `watch`, if there is one, of changes
    /// before they are issued.
    pub fn start(
        disk: Arc<Disk>,
        watch: Option<Arc<dyn DiskWatch>>,
        ends: EndSink,
        trouble: TroubleSink,
    ) -> Result<Arc<Self>, DiskError> {
        let path = disk.path().to_owned();
        if let Some(watch) = &watch {
            // Who takes over may find that it has grown.
            watch.grown(disk.bytes()).map_err(|source| DiskError::Grow {
                path: path.clone(),
                source,
            })?;
        }
        let (watched, unprepared) = watch.map(Watched::new).unzip();
        let server = Arc::new(Self {
            disk,
            engine: OnceLock::new(),
            ends,
            trouble,
            watched,
            state: Mutex::default(),
            ended: Condvar::new(),
        });
        let weak: Weak<Self> = Arc::downgrade(&server);
        let engine = engine(&server.disk, weak.clone())?;
        server.engine.get_or_init(|| engine);
        if let Some(unprepared) = unprepared {
            let prepare = move |jobs| weak.upgrade().is_some_and(|server| server.prepare(jobs));
            watch::start_preparing(unprepared, prepare).map_err(|source| DiskError::Open { path, source })?;
        }
        Ok(server)
    }

    fn engine(&self) -> &dyn Engine {
        &**self.engine.get().expect("a server is started with an engine")
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Takes a job: of a disk that is watched, when the watch is prepared for it.
    pub fn submit(&self, job: DiskJob) {
        match &self.watched {
            Some(watched) => watched.submit(job, |job| self.take(job)),
            None => self.take(job),
        }
    }

    /// Prepares the watch for jobs that wait; whether there is one.
    fn prepare(&self, jobs: Vec<DiskJob>) -> bool {
        let Some(watched) = &self.watched else {
            return false;
        };
        self.tell(watched.prepare(jobs, |job| self.take(job)));
        true
    }

    /// Tells ends, but for those that the watch will tell.
    fn tell(&self, mut ended: Vec<Outcome>) {
        if let Some(watched) = &self.watched {
            ended = ended
                .into_iter()
                .filter_map(|outcome| watched.ended(outcome, &self.ends))
                .collect();
        }
        if !ended.is_empty() {
            (self.ends)(ended);
        }
    }

    fn take(&self, job: DiskJob) {
        let mut state = self.lock();
        let may_begin = match job.operation.access() {
            Some((range, access)) => state.order.push(job.id, range, access),
            None => true,
        };
        match may_begin {
            true => state.ready.push_back(job),
            false => drop(state.blocked.insert(job.id, job)),
        }
        self.begin(&mut state);
    }

    /// More jobs are about to come: the engine begins with them at [`Server::batch_ends`].
    pub(crate) fn batch_begins(&self) {
        self.lock().batch = true;
    }

    /// All jobs of the batch have come.
    pub(crate) fn batch_ends(&self) {
        let mut state = self.lock();
        state.batch = false;
        self.begin(&mut state);
    }

    /// Whether writes must be durable when they are finished: the guest knows no flush.
    pub fn set_write_through(&self, write_through: bool) {
        self.lock().write_through = write_through;
    }

    /// Whether something failed and waits to be tried again.
    pub fn has_failed(&self) -> bool {
        !self.lock().failed.is_empty()
    }

    /// Tries again what failed. Returns how much that was.
    pub fn retry(&self) -> usize {
        let mut state = self.lock();
        let failed = std::mem::take(&mut state.failed);
        let count = failed.len();
        state.ready.extend(failed.into_values());
        self.begin(&mut state);
        count
    }

    /// Whether whatever fails is told, as when nobody will try it again. What had failed is tried once more.
    pub fn set_always_reports(&self, always: bool) {
        self.lock().always_reports = always;
        if always {
            self.retry();
        }
    }

    /// Makes all that has ended durable, and waits for it.
    ///
    /// # Errors
    /// What the guest was told to be written may be lost; the next flush writes it again first, if it is
    /// known still.
    pub fn flush(&self) -> io::Result<()> {
        let (sender, ended) = channel();
        let mut state = self.lock();
        state.flushes.push(Flush::Own(sender));
        self.begin(&mut state);
        self.engine().start();
        drop(state);
        ended
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the disk is not served any more")))
    }

    /// Begins nothing more, and waits until what is under way has ended: this process then does nothing to
    /// the image any more. What has not begun, or has failed, is left undone, without a word.
    ///
    /// # Errors
    /// If the kernel may yet write what its page cache has of the image.
    pub fn close(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.is_closed = true;
        self.begin(&mut state);
        while state.in_flight > 0 {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        match self.disk.is_cached() {
            true => self.disk.flush(),
            false => Ok(()),
        }
    }

    /// Makes the image larger, durably. See [`Disk::enlarge`].
    pub fn enlarge(&self, bytes: u64) -> Result<(), DiskError> {
        self.disk.enlarge(bytes)?;
        self.flush().map_err(|source| DiskError::Enlarge {
            path: self.disk.path().to_owned(),
            source,
        })
    }

    fn begin(&self, state: &mut Jobs) {
        if state.is_closed {
            // Who waits for a flush of these learns it from the end of the channel.
            (state.ready, state.flushes) = Default::default();
        }
        while !self.must_wait(state)
            && let Some(job) = state.ready.pop_front()
        {
            match job.operation {
                Operation::Flush => state.flushes.push(Flush::Job(job)),
                _ => self.begin_one(state, job),
            }
        }
        if state.flushing.is_empty() && !state.flushes.is_empty() {
            self.begin_flush(state);
        }
        if !state.batch {
            self.engine().start();
        }
    }

    /// Whether nothing may begin at present.
    fn must_wait(&self, state: &Jobs) -> bool {
        let is_to_be_rewritten = !state.flushes.is_empty() && self.disk.store().has_failed();
        state.in_flight >= IN_FLIGHT_MAX || state.writes_again || is_to_be_rewritten
    }

    fn begin_one(&self, state: &mut Jobs, job: DiskJob) {
        state.in_flight += 1;
        self.engine().submit(job);
    }

    /// One flush for all that wait for one.
    fn begin_flush(&self, state: &mut Jobs) {
        let has_failed = self.disk.store().has_failed();
        if has_failed && state.in_flight > 0 {
            // It begins when the last of them has ended.
            return;
        }
        state.flushing = std::mem::take(&mut state.flushes);
        state.unflushed.flush_begins();
        state.writes_again = has_failed;
        let operation = match has_failed {
            true => Operation::FlushAgain(state.unflushed.changes()),
            false => Operation::Flush,
        };
        self.begin_one(state, DiskJob { id: FLUSH, operation });
    }

    /// The flush has ended, for all who waited for it. Returns the jobs among them.
    fn flush_ended(&self, state: &mut Jobs, result: &io::Result<Vec<u8>>) -> Vec<Ended> {
        state.writes_again = false;
        // Somebody else may have been told of what this one was not.
        let failure = match result {
            Err(error) => Some((error.kind(), error.to_string())),
            Ok(_) if self.disk.store().has_failed() => {
                Some((io::ErrorKind::Other, "another flush has failed".to_owned()))
            }
            Ok(_) => None,
        };
        match &failure {
            None => state.unflushed.flushed(),
            Some(_) => self.disk.store().note_failed(),
        }
        let result = || match &failure {
            None => Ok(()),
            Some((kind, reason)) => Err(io::Error::new(*kind, reason.clone())),
        };
        let mut ended = Vec::new();
        for flush in std::mem::take(&mut state.flushing) {
            match flush {
                Flush::Job(job) => ended.push(Ended {
                    job,
                    result: result().map(|()| Vec::new()),
                }),
                // Whoever asked may have gone.
                Flush::Own(sender) => drop(sender.send(result())),
            }
        }
        ended
    }

    /// Tells what is finished for good, and only then lets begin what overlaps: a request that is on the
    /// device's list is carried out again by a takeover, and must not undo a later one that is not on the
    /// list any more.
    fn finish(&self, finished: Vec<Outcome>) {
        if finished.is_empty() {
            return;
        }
        let ids: Vec<u64> = finished.iter().map(|(id, _)| *id).collect();
        self.tell(finished);
        let mut state = self.lock();
        for id in ids {
            for id in state.order.finish(id) {
                let freed = state.blocked.remove(&id);
                state.ready.extend(freed);
            }
        }
        self.begin(&mut state);
    }

    /// What becomes of a job that the engine is done with. None: it is not finished yet.
    fn settle(&self, state: &mut Jobs, ended: Ended) -> Option<Outcome> {
        let Ended { job, result } = ended;
        let (job, was_flushed) = match state.made_durable.remove(&job.id) {
            Some(change) => (change, true),
            None => (job, false),
        };
        let is_flush = was_flushed || matches!(job.operation, Operation::Flush);
        match result {
            Ok(_) if state.write_through && !was_flushed && job.operation.changes().is_some() => {
                let id = job.id;
                state.made_durable.insert(id, job);
                state.ready.push_front(DiskJob {
                    id,
                    operation: Operation::Flush,
                });
                None
            }
            Err(error) if self.is_to_wait(state, is_flush) => {
                let is_lost = is_flush && state.unflushed.changes().is_none();
                state.is_lost |= is_lost;
                (self.trouble)(Trouble {
                    reason: format!("{}: {error}", self.disk.path().display()),
                    fail_over: is_lost || self.disk.on_error() == OnError::Failover,
                });
                state.failed.insert(job.id, job);
                None
            }
            result => {
                let id = job.id;
                if result.is_ok() && !was_flushed && job.operation.changes().is_some() {
                    let bytes = job.operation.data_bytes();
                    state
                        .unflushed
                        .note(bytes, || job.operation.into_kept().map(Arc::new));
                }
                Some((id, result))
            }
        }
    }

    /// Whether what has failed waits for the operator, or for another host to go on, instead of being told to
    /// the guest. What can never be made good waits only once: the operator's next word is that the guest is
    /// to be told.
    fn is_to_wait(&self, state: &Jobs, is_flush: bool) -> bool {
        let may_wait = self.disk.on_error() != OnError::Report && !state.always_reports && !state.is_closed;
        may_wait && !(is_flush && state.is_lost)
    }
}

impl Ends for Server {
    fn ended(&self, jobs: Vec<Ended>) {
        let finished = {
            let mut state = self.lock();
            state.in_flight -= jobs.len();
            let mut finished = Vec::new();
            for ended in jobs {
                match ended.job.id {
                    FLUSH => {
                        let waited = self.flush_ended(&mut state, &ended.result);
                        finished.extend(
                            waited
                                .into_iter()
                                .filter_map(|ended| self.settle(&mut state, ended)),
                        );
                    }
                    _ => finished.extend(self.settle(&mut state, ended)),
                }
            }
            self.begin(&mut state);
            finished
        };
        self.ended.notify_all();
        self.finish(finished);
    }
}

fn engine(disk: &Disk, server: Weak<Server>) -> Result<Box<dyn Engine>, DiskError> {
    let ends: Weak<dyn Ends> = server;
    let store: Arc<dyn Store> = disk.store().clone();
    if disk.io() != Io::Threads
        && let Some(raw) = store.raw()
    {
        match Uring::start(&store, raw, &ends) {
            Ok(ring) => return Ok(Box::new(ring)),
            Err(error) if disk.io() == Io::Uring => return Err(DiskError::Uring(error)),
            Err(error) => tracing::info!(
                "threads serve {}, for want of io_uring: {error}",
                disk.path().display()
            ),
        }
    }
    let threads = Threads::start(&store, &ends).map_err(|source| DiskError::Open {
        path: disk.path().to_owned(),
        source,
    })?;
    Ok(Box::new(threads))
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
