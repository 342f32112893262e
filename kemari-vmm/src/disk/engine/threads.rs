//! Threads that wait for the disk: for every format of image, and where io_uring is missing.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Ended, Ends, Engine};
use crate::confine::{self, COMMON, Calls, DEVICES, OPEN_FILES};
use crate::disk::operation::DiskJob;
use crate::disk::store::Store;
use crate::threads;

/// Threads of a disk, and so the most jobs under way at a time.
const THREADS: usize = 4;

/// Threads that carry out jobs. They end when this is dropped and nothing is left to do.
pub(crate) struct Threads {
    jobs: Sender<DiskJob>,
}

impl Threads {
    /// Starts them.
    pub(crate) fn start(store: &Arc<dyn Store>, ends: &Weak<dyn Ends>) -> io::Result<Self> {
        let (jobs, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let (store, receiver, ends) = (store.clone(), receiver.clone(), ends.clone());
            threads::start("disk", move || work(&*store, &receiver, &ends))?;
        }
        Ok(Self { jobs })
    }
}

impl Engine for Threads {
    fn submit(&self, job: DiskJob) {
        // The threads end only after this sender is gone.
        let _ = self.jobs.send(job);
    }

    fn start(&self) {}
}

/// What a thread of a disk asks of the kernel.
pub(crate) const CALLS: Calls = Calls {
    of: "disk",
    parts: &[COMMON, DEVICES, OPEN_FILES],
};

fn work(store: &dyn Store, jobs: &Mutex<Receiver<DiskJob>>, ends: &Weak<dyn Ends>) {
    confine::thread(&CALLS);
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        let result = job.operation.carry_out(store);
        let Some(ends) = ends.upgrade() else { return };
        ends.ended(vec![Ended { job, result }]);
    }
}
