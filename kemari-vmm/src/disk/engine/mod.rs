//! What carries out the jobs of a disk: io_uring, or threads.

mod threads;
mod uring;

pub(crate) use threads::{CALLS as THREADS_CALLS, Threads};
pub(crate) use uring::{CALLS as RING_CALLS, Uring};

use std::io;

use super::operation::DiskJob;

/// Carries out jobs, side by side and in any order: whoever submits them knows which may be under way
/// together.
pub(crate) trait Engine: Send + Sync {
    /// Takes a job. It begins at once or at the next [`Engine::start`]. Its end is told by [`Ends::ended`].
    fn submit(&self, job: DiskJob);
    /// Begins all that was submitted.
    fn start(&self);
}

/// A job that has ended.
pub(crate) struct Ended {
    /// The job.
    pub job: DiskJob,
    /// The bytes of a [`super::Operation::Read`] (empty for others), or why it failed.
    pub result: io::Result<Vec<u8>>,
}

/// Is told of jobs that have ended, by the engine's own threads.
pub(crate) trait Ends: Send + Sync {
    /// These have ended.
    fn ended(&self, jobs: Vec<Ended>);
}
