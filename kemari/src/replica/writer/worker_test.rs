//! What a replica's thread does with its image, job by job, without the thread.

use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;

use kemari_sync::wire::CHUNK_BYTES;
use kemari_vmm::disk::{Disk, OnError, Store};

use super::super::super::chunk::checksum;
use super::super::super::record::EXTENT_BYTES;
use super::super::super::testing::Scratch;
use super::*;

/// Two extents.
const IMAGE_BYTES: u64 = 2 * EXTENT_BYTES;

/// An image of zeros to whoever reads it, that may become full,
/// and whose flush may fail and lose what it was for.
struct Troubled {
    /// So many more writes it takes.
    room: AtomicU64,
    flush_fails: AtomicBool,
    /// First bytes of writes: those that no flush has covered, and those that are durable.
    cached: Mutex<Vec<(u64, u8)>>,
    durable: Mutex<Vec<(u64, u8)>>,
}

impl Store for Troubled {
    fn read(&self, _: u64, bytes: &mut [u8]) -> io::Result<()> {
        bytes.fill(0);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let take = |room: u64| room.checked_sub(1);
        if self
            .room
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
            .is_err()
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.cached.lock().unwrap().push((offset, data[0]));
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn flush(&self) -> io::Result<()> {
        let cached = std::mem::take(&mut *self.cached.lock().unwrap());
        if self.flush_fails.swap(false, Ordering::SeqCst) {
            return Err(io::Error::other("written back in vain"));
        }
        self.durable.lock().unwrap().extend(cached);
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(IMAGE_BYTES)
    }
}

/// A worker on such an image.
struct Bench {
    _scratch: Scratch,
    image: Arc<Image>,
    store: Arc<Troubled>,
    queue: Arc<Queue>,
    worker: Worker,
    reports: Receiver<Report>,
}

impl Bench {
    fn new() -> Self {
        let scratch = Scratch::new(IMAGE_BYTES);
        let image = scratch.image();
        image.start(1, false).unwrap();
        let store = Arc::new(Troubled {
            room: AtomicU64::new(u64::MAX),
            flush_fails: AtomicBool::new(false),
            cached: Mutex::default(),
            durable: Mutex::default(),
        });
        let disk = KeptDisk::new(Disk::with_store(store.clone(), OnError::Report).unwrap());
        let (sender, reports) = channel();
        let queue = Arc::new(Queue::new(1 << 20));
        let report = move |report| sender.send(report).unwrap();
        let worker = Worker::new(image.clone(), disk, queue.clone(), Duration::ZERO, report);
        Self {
            _scratch: scratch,
            image,
            store,
            queue,
            worker,
            reports,
        }
    }

    fn give(&mut self, job: Job) {
        self.queue.add(&job);
        self.worker.take(job);
    }

    fn has_room_for(&self, writes: u64) {
        self.store.room.store(writes, Ordering::SeqCst);
    }

    fn cached(&self) -> Vec<(u64, u8)> {
        self.store.cached.lock().unwrap().clone()
    }

    fn durable(&self) -> Vec<(u64, u8)> {
        self.store.durable.lock().unwrap().clone()
    }

    /// The next thing that was reported, if anything was.
    fn reported(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }

    fn failed(&self) -> String {
        match self.reported() {
            Some(Report::Failed(reason)) => reason,
            other => panic!("it has not failed, but {other:?}"),
        }
    }

    fn marks(&self) -> Vec<u64> {
        self.image.map().iter().collect()
    }
}

fn outputs(outputs: impl IntoIterator<Item = (u64, Operation)>) -> Job {
    let outputs = outputs
        .into_iter()
        .map(|(id, operation)| (id, Arc::new(operation)));
    Job::Outputs(Arc::new(outputs.collect()))
}

fn write_at(offset: u64, byte: u8) -> Operation {
    Operation::Write {
        offset,
        data: vec![byte; 512],
    }
}

/// Each output is its number, at its number's place.
fn commit(ids: RangeInclusive<u64>) -> Job {
    outputs(ids.map(|id| (id, write_at(id * 512, id as u8))))
}

fn written(ids: RangeInclusive<u64>) -> Vec<(u64, u8)> {
    ids.map(|id| (id * 512, id as u8)).collect()
}

/// Nobody else has them: they are committed, and their primary may be dead.
#[test]
fn outputs_that_an_image_did_not_take_are_carried_out_once_and_in_order_when_it_is_tried_again() {
    let mut bench = Bench::new();
    bench.has_room_for(3);
    bench.give(commit(1..=2));
    bench.give(commit(3..=4));
    bench.failed();
    bench.give(commit(5..=6));
    assert!(
        !bench.queue.is_stuck(Duration::ZERO),
        "it waits to be tried again"
    );
    bench.give(Job::Retry);
    bench.failed();
    bench.has_room_for(u64::MAX);
    bench.give(Job::Retry);
    bench.give(Job::Barrier(Barrier::Flush));
    assert!(matches!(bench.reported(), Some(Report::Reached(Barrier::Flush))));
    assert_eq!(bench.durable(), written(1..=6));
    assert_eq!(bench.queue.requests(), 0);
}

/// The page cache proves nothing then: a takeover that took the next flush's word would lose what the old
/// primary said.
#[test]
fn outputs_that_a_failed_flush_has_lost_are_carried_out_again() {
    let mut bench = Bench::new();
    bench.give(commit(1..=3));
    bench.store.flush_fails.store(true, Ordering::SeqCst);
    bench.give(Job::Barrier(Barrier::Flush));
    bench.failed();
    bench.give(commit(4..=4));
    bench.give(Job::Retry);
    bench.give(Job::Barrier(Barrier::Flush));
    assert!(matches!(bench.reported(), Some(Report::Reached(Barrier::Flush))));
    let mut durable = bench.durable();
    durable.sort_unstable();
    // The last one twice: it had come after the failure.
    durable.dedup();
    assert_eq!(durable, written(1..=4));
}

#[test]
fn a_replica_that_was_let_go_carries_out_nothing_more() {
    let mut bench = Bench::new();
    bench.queue.let_go("it did not answer");
    bench.give(commit(1..=1));
    bench.give(Job::Retry);
    bench.queue.fail("the image has gone");
    assert_eq!(bench.queue.failure().as_deref(), Some("it did not answer"));
    assert_eq!(bench.cached(), []);
}

#[test]
fn extents_are_marked_before_they_are_written() {
    let mut bench = Bench::new();
    bench.has_room_for(0);
    bench.give(outputs([(1, write_at(0, 1)), (2, write_at(EXTENT_BYTES, 2))]));
    bench.failed();
    assert_eq!(bench.cached(), []);
    assert_eq!(bench.marks(), [0, 1]);
}

#[test]
fn a_flush_of_the_guest_is_reported_when_what_came_before_it_is_durable() {
    let mut bench = Bench::new();
    bench.give(outputs([
        (1, write_at(512, 1)),
        (2, Operation::Flush),
        (3, write_at(1024, 3)),
    ]));
    assert!(matches!(bench.reported(), Some(Report::Flushed(2))));
    assert_eq!(
        (bench.durable(), bench.cached()),
        (vec![(512, 1)], vec![(1024, 3)])
    );
}

#[test]
fn what_no_flush_of_the_guest_follows_is_durable_when_that_is_reported() {
    let mut bench = Bench::new();
    bench.give(commit(1..=2));
    assert!(bench.worker.unflushed.is_some(), "a flush is owed");
    bench.worker.unflushed = Instant::now().checked_sub(FLUSH_AGE_MAX);
    let (_, nothing_more) = channel();
    assert!(bench.worker.next(&nothing_more).is_none());
    assert!(matches!(bench.reported(), Some(Report::Flushed(2))));
    assert_eq!(bench.durable(), written(1..=2));
}

#[test]
fn frames_of_the_copy_are_reported_when_they_are_durable() {
    let mut bench = Bench::new();
    for frame in 1..=STORED_FRAMES {
        assert!(bench.reported().is_none(), "of {} frames", frame - 1);
        bench.give(Job::Blocks {
            offset: 512 * frame,
            bytes: 512,
            data: vec![frame as u8; 512],
        });
    }
    assert!(matches!(bench.reported(), Some(Report::Stored(STORED_FRAMES))));
    assert_eq!(bench.durable(), written(1..=STORED_FRAMES));
}

#[test]
fn nothing_is_written_beyond_the_end_of_the_disk() {
    for job in [
        outputs([(1, write_at(0, 1)), (2, write_at(IMAGE_BYTES - 256, 2))]),
        Job::Blocks {
            offset: IMAGE_BYTES,
            bytes: 512,
            data: vec![1; 512],
        },
        Job::Blocks {
            offset: u64::MAX - 511,
            bytes: 512,
            data: vec![1; 512],
        },
    ] {
        let mut bench = Bench::new();
        bench.give(job);
        let reason = bench.failed();
        assert!(reason.contains("beyond the end of the disk"), "{reason}");
        assert_eq!((bench.cached(), bench.marks()), (Vec::new(), Vec::new()));
    }
}

#[test]
fn marks_go_when_what_last_touched_them_is_settled_and_old_enough() {
    let mut bench = Bench::new();
    bench.give(outputs([
        (1, write_at(0, 1)),
        (2, write_at(EXTENT_BYTES, 2)),
        (3, write_at(512, 3)),
    ]));
    bench.worker.settle(3, MARK_AGE_MIN).unwrap();
    assert_eq!(bench.marks(), [0, 1], "they may soon be written again");
    bench.worker.settle(1, Duration::ZERO).unwrap();
    assert_eq!(bench.marks(), [0, 1], "the first one was touched again");
    bench.worker.settle(2, Duration::ZERO).unwrap();
    assert_eq!(bench.marks(), [0]);
    bench.worker.settle(3, Duration::ZERO).unwrap();
    assert!(bench.marks().is_empty());
}

#[test]
fn chunks_are_wanted_that_differ() {
    let mut bench = Bench::new();
    let of_zeros = checksum(&[0; CHUNK_BYTES as usize]);
    let of_ones = checksum(&[1; CHUNK_BYTES as usize]);
    let sums = [of_zeros, of_ones, of_zeros, of_ones].concat();
    bench.give(Job::Sums { first: 1, sums });
    match bench.reported() {
        Some(Report::Wanted { first, count, bits }) => assert_eq!((first, count, bits), (1, 4, vec![0b1010])),
        other => panic!("nothing is wanted, but {other:?}"),
    }
}

#[test]
fn that_there_is_room_again_is_told_once() {
    let mut bench = Bench::new();
    let blocks = |kib: usize| Job::Blocks {
        offset: 0,
        bytes: 0,
        data: vec![1; kib << 10],
    };
    bench.give(blocks(100));
    assert!(bench.reported().is_none(), "there was room all the time");
    let (large, small) = (blocks(600), blocks(100));
    bench.queue.add(&large);
    assert!(bench.queue.is_full());
    bench.give(small);
    assert!(bench.reported().is_none(), "it is full still");
    bench.worker.take(large);
    assert!(matches!(bench.reported(), Some(Report::Room)));
}
