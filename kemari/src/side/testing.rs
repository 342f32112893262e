//! What tests of sides have in common: a machine with one disk, an arbiter that is watched, and waiting.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Phase};
use kemari_vmm::dirty::DirtySource;
use kemari_vmm::machine::{DiskSpec, MachineSpec};
use kemari_vmm::virtio::block::BlockSpec;
use kemari_vmm::virtio::rate::RateSpec;

use super::board::Board;
use super::capture_test;
use crate::arbiter::{ArbiterWatch, Deadline, Prober, testing};

/// Size of the disk's image.
pub const IMAGE_BYTES: u64 = 32 << 20;
/// What is waited for comes sooner, or never.
pub const LIMIT: Duration = Duration::from_secs(30);
const MEMORY_MIB: u64 = 64;

/// The bare guest with the disk `blk0`.
pub fn spec() -> MachineSpec {
    let mut spec = capture_test::spec(MEMORY_MIB, DirtySource::Best);
    spec.disks.push(DiskSpec {
        id: "blk0".into(),
        block: BlockSpec::new("rig", false),
        rate: RateSpec::default(),
    });
    spec
}

/// Waits until it is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An arbiter that answers, or not.
struct Watched(Arc<Mutex<bool>>);

impl Arbiter for Watched {
    fn execute(&mut self, _: &ArbiterRequest) -> ArbiterAnswer {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *answers {
            true => ArbiterAnswer::Record(Some(testing::record(1, Phase::Acting))),
            false => ArbiterAnswer::Unavailable("it is away".into()),
        }
    }
}

/// Has an arbiter watched that answers, and waits for the first look. None ends while somebody has the lock,
/// which says whether it answers.
pub fn watch_arbiter(board: &Board) -> Arc<Mutex<bool>> {
    let answers = Arc::new(Mutex::new(true));
    let way = Deadline::new(Box::new(Watched(answers.clone())), LIMIT).expect("a thread");
    let prober = Prober::File {
        way: Arc::new(Mutex::new(way)),
        seen: Arc::default(),
    };
    let watch = ArbiterWatch::start(prober, LIMIT, |_, _| {}).expect("a thread");
    board.watch_arbiter(watch);
    until("the arbiter is looked at", || board.has_looked_at_arbiter(1));
    answers
}
