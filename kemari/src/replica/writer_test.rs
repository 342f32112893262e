use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use super::super::testing::Scratch;
use super::worker::FLUSH_AGE_MAX;
use super::*;
use kemari_vmm::disk::{DiskConfig, OnError, Store};
use kemari_vmm::virtio::budget::BYTES_HELD_MAX;

/// In the mode where only the primary's disk is waited for no flush of the guest comes here; yet marks must go.
#[test]
fn what_was_carried_out_is_flushed_in_time_without_a_flush_of_the_guest() {
    let scratch = Scratch::new(8 << 20);
    let (reports, received) = channel();
    let config = DiskConfig::new(scratch.path());
    let image = scratch.image();
    image.start(1, false).unwrap();
    let replica = Replica::start(image, &config, 1 << 20, Duration::ZERO, move |report| {
        let _ = reports.send(report);
    });
    let replica = replica.unwrap();
    let write = |id| {
        let data = vec![1; 512];
        replica.apply(vec![(id, Operation::Write { offset: 0, data })]);
    };
    let flushed = || match received.recv_timeout(2 * FLUSH_AGE_MAX) {
        Ok(Report::Flushed(request)) => request,
        other => panic!("no flush, but {other:?}"),
    };
    write(3);
    write(5);
    assert_eq!(flushed(), 5);
    replica.apply(vec![(6, Operation::Flush)]);
    assert_eq!(flushed(), 6, "one of the guest is carried out at once");
    let quiet = received.recv_timeout(FLUSH_AGE_MAX + Duration::from_secs(1));
    assert!(quiet.is_err(), "nothing is left to be flushed: {quiet:?}");
}

/// What a commit can bring is known before it comes: with it the queue is not over its limit.
#[test]
fn a_queue_is_full_before_the_commit_that_would_overfill_it() {
    let bytes_max = 4 * BYTES_HELD_MAX;
    let queue = Queue::new(bytes_max);
    let data = vec![0; BYTES_HELD_MAX as usize];
    let commit = Job::Outputs(Arc::new(vec![(
        1,
        Arc::new(Operation::Write { offset: 0, data }),
    )]));
    let mut commits = 0;
    while !queue.is_full() {
        queue.add(&commit);
        commits += 1;
    }
    assert_eq!(commits, 3);
    assert!(queue.bytes() <= bytes_max);
    queue.remove(commit.cost());
    assert!(!queue.is_full());
}

/// Who looks at a moment of the image sees all that was given before, carried out or not, and nothing that is given later.
#[test]
fn a_layer_over_the_image_is_of_the_moment_at_which_it_was_asked_for() {
    let scratch = Scratch::new(8 << 20);
    let image = scratch.image();
    image.start(1, false).unwrap();
    let delay = Duration::from_millis(20);
    let config = DiskConfig::new(scratch.path());
    let replica = Replica::start(image, &config, 1 << 20, delay, |_| {}).unwrap();
    let write = |id, offset, byte| {
        let data = vec![byte; 4096];
        replica.apply(vec![(id, Operation::Write { offset, data })]);
    };
    write(1, 0, 1);
    let (given, overlays) = channel();
    replica.overlay(1 << 20, move |overlay| given.send(overlay).unwrap());
    write(2, 0, 2);
    write(3, 8192, 3);
    let unmap = true;
    replica.apply(vec![(
        4,
        Operation::Zero {
            offset: 0,
            bytes: 1 << 16,
            unmap,
        },
    )]);
    let overlay = overlays.recv().unwrap();
    replica.finish();
    // The image is closed: what the layer does not have it cannot read.
    let block = |offset| {
        let mut block = [9; 4096];
        overlay.read(offset, &mut block).map(|()| block[0]).ok()
    };
    assert_eq!((block(0), block(8192)), (Some(1), Some(0)));
    assert_eq!(block(1 << 17), None, "nobody has changed this one");
    assert_eq!(overlay.held_bytes(), 1 << 16);
}

/// An image that takes nothing while it is full, and whose flush may fail and lose what it was for.
#[derive(Default)]
struct Troubled {
    is_full: AtomicBool,
    flush_fails: AtomicBool,
    /// First bytes of writes: those that no flush has covered, and those that are durable.
    cached: Mutex<Vec<(u64, u8)>>,
    durable: Mutex<Vec<(u64, u8)>>,
}

impl Store for Troubled {
    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.is_full.load(Ordering::SeqCst) {
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
        Ok(8 << 20)
    }
}

/// A worker without its thread, on such an image.
struct Bench {
    _scratch: Scratch,
    store: Arc<Troubled>,
    queue: Arc<Queue>,
    worker: Worker,
    reports: Receiver<Report>,
}

impl Bench {
    fn give(&mut self, job: Job) {
        self.queue.add(&job);
        self.worker.take(job);
    }
}

fn troubled() -> Bench {
    let scratch = Scratch::new(8 << 20);
    let image = scratch.image();
    image.start(1, false).unwrap();
    let store = Arc::<Troubled>::default();
    let disk = Disk::with_store(store.clone(), OnError::Report).unwrap();
    let (sender, reports) = channel();
    let queue = Arc::new(Queue::new(1 << 20));
    let report = move |report| sender.send(report).unwrap();
    let worker = Worker::new(image, KeptDisk::new(disk), queue.clone(), Duration::ZERO, report);
    Bench {
        _scratch: scratch,
        store,
        queue,
        worker,
        reports,
    }
}

/// Each output is its number, at its number's place.
fn commit(ids: std::ops::RangeInclusive<u64>) -> Job {
    let output = |id: u64| {
        let data = vec![id as u8; 512];
        let offset = id * 512;
        (id, Arc::new(Operation::Write { offset, data }))
    };
    Job::Outputs(Arc::new(ids.map(output).collect()))
}

fn written(ids: std::ops::RangeInclusive<u64>) -> Vec<(u64, u8)> {
    ids.map(|id| (id * 512, id as u8)).collect()
}

/// Nobody else has them: they are committed, and their primary may be dead.
#[test]
fn outputs_that_an_image_did_not_take_are_carried_out_once_and_in_order_when_it_is_tried_again() {
    let mut bench = troubled();
    bench.give(commit(1..=2));
    bench.store.is_full.store(true, Ordering::SeqCst);
    bench.give(commit(3..=4));
    assert!(matches!(bench.reports.try_recv(), Ok(Report::Failed(_))));
    bench.give(commit(5..=6));
    assert!(
        !bench.queue.is_stuck(Duration::ZERO),
        "it waits to be tried again"
    );
    bench.give(Job::Retry);
    assert!(
        matches!(bench.reports.try_recv(), Ok(Report::Failed(_))),
        "it is full still"
    );
    bench.store.is_full.store(false, Ordering::SeqCst);
    bench.give(Job::Retry);
    bench.give(Job::Barrier(Barrier::Flush));
    assert!(matches!(
        bench.reports.try_recv(),
        Ok(Report::Reached(Barrier::Flush))
    ));
    assert_eq!(*bench.store.durable.lock().unwrap(), written(1..=6));
    assert_eq!(bench.queue.requests(), 0);
}

/// The page cache proves nothing then: a takeover that took the next flush's word would lose what the old primary said.
#[test]
fn outputs_that_a_failed_flush_has_lost_are_carried_out_again() {
    let mut bench = troubled();
    bench.give(commit(1..=3));
    bench.store.flush_fails.store(true, Ordering::SeqCst);
    bench.give(Job::Barrier(Barrier::Flush));
    assert!(matches!(bench.reports.try_recv(), Ok(Report::Failed(_))));
    bench.give(commit(4..=4));
    bench.give(Job::Retry);
    bench.give(Job::Barrier(Barrier::Flush));
    assert!(matches!(
        bench.reports.try_recv(),
        Ok(Report::Reached(Barrier::Flush))
    ));
    let mut durable = bench.store.durable.lock().unwrap().clone();
    durable.sort_unstable();
    // The last one twice: it had come after the failure.
    durable.dedup();
    assert_eq!(durable, written(1..=4));
}

#[test]
fn a_replica_that_was_let_go_carries_out_nothing_more() {
    let mut bench = troubled();
    bench.queue.let_go("it did not answer");
    bench.give(commit(1..=1));
    bench.give(Job::Retry);
    assert!(bench.queue.failure().is_some(), "its image has a user still");
    assert_eq!(*bench.store.cached.lock().unwrap(), []);
}
