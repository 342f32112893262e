//! The bare guest's test of its own disk, beside the clients: patterned blocks, written by requests that
//! overlap and come back out of order, and each read again and compared. It does not notice that its host
//! dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::cut::ORDER_MAX;
use crate::proof::client::ask;
use crate::proof::load::Load;

/// Writes of one test.
const WRITES: &str = "300";
/// Most requests at a time, as the guest has it.
const DEPTH_MAX: u32 = 32;

/// Tests that follow each other.
pub(crate) struct BlockTests {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl BlockTests {
    /// Begins the first; each has another number of requests at a time.
    pub(crate) fn start(load: Load, seed: u64) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let told = enough.clone();
        let thread = thread::spawn(move || {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut tests = 0;
            while !told.load(Ordering::Relaxed) {
                let depth = random.random_range(1..=DEPTH_MAX).to_string();
                ask(&load, &["BLKTEST", WRITES, &depth], ORDER_MAX)
                    .with_context(|| format!("the guest's test of its disk, {depth} requests at a time"))?;
                tests += 1;
            }
            Ok(tests)
        });
        Self { enough, thread }
    }

    /// Waits for the end of the one under way. How many there were;
    /// an error is also what one of them has found.
    pub(crate) fn finish(self) -> Result<u64> {
        self.enough.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the thread of the disk's tests panicked"))?
    }
}
