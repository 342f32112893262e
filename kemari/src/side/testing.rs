//! What tests of sides have in common: a machine with one disk, and waiting.

use std::time::{Duration, Instant};

use kemari_vmm::dirty::DirtySource;
use kemari_vmm::machine::{DiskSpec, MachineSpec};
use kemari_vmm::virtio::block::BlockSpec;
use kemari_vmm::virtio::rate::RateSpec;

use super::capture_test;

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
