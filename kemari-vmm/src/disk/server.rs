//! A disk at work: the order of its jobs, what happens when one fails, and the engine under them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::engine::{Ended, Ends, Engine, Threads, Uring};
use super::error::DiskError;
use super::operation::{DiskJob, Operation};
use super::order::Order;
use super::{Disk, Io, OnError};
use crate::virtio::Completions;

/// Most jobs of a disk that are under way at a time; more wait.
const IN_FLIGHT_MAX: usize = 256;

/// Something that a disk cannot do. The request stays unfinished until [`Server::retry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What failed and why, as a sentence.
    pub reason: String,
    /// Whether another host should go on, if one can.
    pub fail_over: bool,
}

/// Is told of trouble; it must not block.
pub type TroubleSink = Arc<dyn Fn(Trouble) + Send + Sync>;

/// Takes jobs, and tells their ends.
pub struct Server {
    disk: Arc<Disk>,
    engine: OnceLock<Box<dyn Engine>>,
    completions: Weak<dyn Completions>,
    trouble: TroubleSink,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    order: Order,
    /// Jobs that wait for others that overlap.
    blocked: HashMap<u64, DiskJob>,
    /// Jobs that may begin.
    ready: VecDeque<DiskJob>,
    in_flight: usize,
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
}

impl Server {
    /// Begins to serve an image. `completions` is told the ends of the jobs.
    pub fn start(
        disk: Arc<Disk>,
        completions: Weak<dyn Completions>,
        trouble: TroubleSink,
    ) -> Result<Arc<Self>, DiskError> {
        let server = Arc::new(Self {
            disk,
            engine: OnceLock::new(),
            completions,
            trouble,
            state: Mutex::default(),
        });
        let weak: Weak<Self> = Arc::downgrade(&server);
        let engine = engine(&server.disk, weak)?;
        server.engine.get_or_init(|| engine);
        Ok(server)
    }

    fn engine(&self) -> &dyn Engine {
        &**self.engine.get().expect("a server is started with an engine")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Takes a job.
    pub fn submit(&self, job: DiskJob) {
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
    pub fn batch_begins(&self) {
        self.lock().batch = true;
    }

    /// All jobs of the batch have come.
    pub fn batch_ends(&self) {
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

    fn begin(&self, state: &mut State) {
        while state.in_flight < IN_FLIGHT_MAX
            && let Some(job) = state.ready.pop_front()
        {
            state.in_flight += 1;
            self.engine().submit(job);
        }
        if !state.batch {
            self.engine().start();
        }
    }

    /// Tells what is finished for good, and only then lets begin what overlaps: a request that is on the device's list
    /// is carried out again by a takeover, and must not undo a later one that is not on the list any more.
    fn finish(&self, ended: Vec<Ended>) {
        if ended.is_empty() {
            return;
        }
        let ids: Vec<u64> = ended.iter().map(|ended| ended.job.id).collect();
        if let Some(completions) = self.completions.upgrade() {
            let results = ended.into_iter().map(|ended| (ended.job.id, ended.result));
            completions.complete_all(results.collect());
        }
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
    fn settle(&self, state: &mut State, ended: Ended) -> Option<Ended> {
        let Ended { job, result } = ended;
        let (job, was_flushed) = match state.made_durable.remove(&job.id) {
            Some(change) => (change, true),
            None => (job, false),
        };
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
            Err(error) if self.disk.on_error() != OnError::Report && !state.always_reports => {
                (self.trouble)(Trouble {
                    reason: format!("{}: {error}", self.disk.path().display()),
                    fail_over: self.disk.on_error() == OnError::Failover,
                });
                state.failed.insert(job.id, job);
                None
            }
            result => Some(Ended { job, result }),
        }
    }
}

impl Ends for Server {
    fn ended(&self, jobs: Vec<Ended>) {
        let finished = {
            let mut state = self.lock();
            state.in_flight -= jobs.len();
            let finished = jobs
                .into_iter()
                .filter_map(|ended| self.settle(&mut state, ended))
                .collect();
            self.begin(&mut state);
            finished
        };
        self.finish(finished);
    }
}

fn engine(disk: &Disk, server: Weak<Server>) -> Result<Box<dyn Engine>, DiskError> {
    let ends: Weak<dyn Ends> = server;
    let store = disk.store();
    if disk.io() != Io::Threads
        && let Some(raw) = store.raw()
    {
        match Uring::start(store, raw, &ends) {
            Ok(ring) => return Ok(Box::new(ring)),
            Err(error) if disk.io() == Io::Uring => return Err(DiskError::Uring(error)),
            Err(error) => tracing::info!(
                "threads serve {}, for want of io_uring: {error}",
                disk.path().display()
            ),
        }
    }
    let threads = Threads::start(store, &ends).map_err(|source| DiskError::Open {
        path: disk.path().to_owned(),
        source,
    })?;
    Ok(Box::new(threads))
}
