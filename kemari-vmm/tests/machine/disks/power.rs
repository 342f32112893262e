//! A loss of power: what a finished flush covered is there, whatever of the rest.

use kemari_vmm::disk::{Disk, OnError};
use kemari_vmm::virtio::block::BlockSpec;

use crate::support::asker::{Asker, FLUSH, IOERR, OK, QUEUE_SLOTS, WRITE, ZEROES};
use crate::support::bench::SECTOR_BYTES;
use crate::support::random::Random;
use crate::support::stores::Forgetful;
use crate::support::watchdog::Watchdog;

const SECTORS: u64 = 64;
const QUEUES: usize = 2;

/// What a guest knows of a sector.
#[derive(Clone, Default)]
struct Known {
    /// Its version when the last finished flush began, and was finished by then.
    flushed: u32,
    /// Versions since then, finished or not.
    newer: Vec<u32>,
}

/// A guest that writes, flushes now and then, and knows what it may rely on.
struct Guest {
    disk: Asker,
    known: Vec<Known>,
    /// Its request in flight, by queue: what it writes, and where.
    version: u32,
}

fn content(version: u32) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    bytes
        .chunks_exact_mut(4)
        .for_each(|word| word.copy_from_slice(&version.to_le_bytes()));
    bytes
}

impl Guest {
    fn new(store: std::sync::Arc<Forgetful>) -> Self {
        let image = Disk::with_store(store, OnError::Report).expect("it has a size");
        let spec = BlockSpec {
            queues: QUEUES as u16,
            ..BlockSpec::new("forgetful", false)
        };
        Self {
            disk: Asker::new(spec, image),
            known: vec![Known::default(); SECTORS as usize],
            version: 0,
        }
    }

    /// Some writes at once, waited for; returns without a flush.
    fn write(&mut self, random: &mut Random) {
        let count = 1 + random.below(u64::from(QUEUE_SLOTS) - 1) as u16;
        let mut asked = [0; QUEUES];
        for slot in 0..count {
            let queue = random.below(QUEUES as u64) as usize;
            let sectors = 1 + random.below(8);
            let first = random.below(SECTORS - sectors + 1);
            self.version += 1;
            let zeroes = random.percent(15);
            let version = if zeroes { 0 } else { self.version };
            match zeroes {
                true => self
                    .disk
                    .ask_zero((queue, slot), ZEROES, first, sectors as u32, 0),
                false => {
                    let data = content(version).repeat(sectors as usize);
                    self.disk.ask((queue, slot), WRITE, first, &data);
                }
            }
            // Kicked one by one, so that the order of what overlaps is known.
            self.disk.kick(queue);
            asked[queue] += 1;
            for known in &mut self.known[first as usize..][..sectors as usize] {
                known.newer.push(version);
            }
        }
        for (queue, count) in asked.into_iter().enumerate() {
            for _ in 0..count {
                assert_eq!(self.disk.wait(queue).1, OK);
            }
        }
    }

    /// What a flush that failed was for may be there or not.
    fn flush(&mut self, may_fail: bool) {
        let status = self.disk.do_one(FLUSH, 0, &[]);
        if may_fail && status == IOERR {
            return;
        }
        assert_eq!(status, OK);
        for known in &mut self.known {
            if let Some(newest) = known.newer.last() {
                known.flushed = *newest;
                known.newer.clear();
            }
        }
    }

    /// The first sector that is not as the guest may rely on.
    fn lost(&self, disk: &[u8]) -> Option<usize> {
        self.known.iter().enumerate().find_map(|(sector, known)| {
            let found = &disk[sector * SECTOR_BYTES..][..SECTOR_BYTES];
            let allowed = known.newer.iter().chain([&known.flushed]);
            (!allowed.into_iter().any(|version| content(*version) == found)).then_some(sector)
        })
    }
}

/// Runs a guest on disks that lose their power again and again; how often it lost what it relied on.
fn losses(flush_works: bool, failures_percent: u64) -> usize {
    let mut random = Random::new(41);
    let mut losses = 0;
    for _ in 0..40 {
        let store = Forgetful::new(SECTORS as usize * SECTOR_BYTES, flush_works);
        let mut guest = Guest::new(store.clone());
        for _ in 0..10 {
            guest.write(&mut random);
            if random.percent(60) {
                let fails = random.percent(failures_percent);
                store.fail_flushes(usize::from(fails));
                guest.flush(fails);
            }
            for _ in 0..4 {
                losses += usize::from(guest.lost(&store.after_power_loss(&mut random)).is_some());
            }
        }
    }
    losses
}

#[test]
fn what_a_flush_covered_survives_a_loss_of_power() {
    let _watchdog = Watchdog::new("losses of power", 60);
    assert_eq!(losses(true, 0), 0);
}

/// The page cache reads well after a failure, and the next flush succeeds:
/// only what is written again is there.
#[test]
fn what_a_flush_covers_survives_also_after_flushes_that_have_failed() {
    let _watchdog = Watchdog::new("losses of power after failed flushes", 60);
    assert_eq!(losses(true, 40), 0);
}

#[test]
fn a_flush_that_does_nothing_is_found_out() {
    let _watchdog = Watchdog::new("losses of power without flushes", 60);
    assert!(losses(false, 0) > 100);
}
