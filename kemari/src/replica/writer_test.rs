use super::super::testing::Scratch;
use super::worker::FLUSH_AGE_MAX;
use super::*;
use kemari_vmm::disk::{DiskConfig, Store};
use kemari_vmm::virtio::budget::BYTES_HELD_MAX;

/// In the mode where only the primary's disk is waited for no flush of the guest comes here;
/// yet marks must go.
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

/// An image whose storage writes each zero would otherwise be hours behind, and a takeover would wait for it.
#[test]
fn a_queue_is_full_of_zeros_as_well() {
    let queue = Queue::new(64 << 20);
    let zero = Operation::Zero {
        offset: 0,
        bytes: 64 << 20,
        unmap: false,
    };
    let commit = Job::Outputs(Arc::new(vec![(1, Arc::new(zero))]));
    let commits = (0..100).take_while(|_| {
        let has_room = !queue.is_full();
        queue.add(&commit);
        has_room
    });
    assert_eq!(commits.count(), 12);
}

/// Who looks at a moment of the image sees all that was given before, carried out or not,
/// and nothing that is given later.
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
    // With what it takes to know where they belong.
    assert!((1 << 16..2 << 16).contains(&overlay.held_bytes()));
}

#[test]
fn an_image_is_stuck_with_a_job_and_not_after_it() {
    let moment = || std::thread::sleep(Duration::from_millis(1));
    let queue = Queue::new(1 << 20);
    let job = Job::Barrier(Barrier::Flush);
    assert!(!queue.is_stuck(Duration::ZERO), "it had none yet");
    queue.add(&job);
    moment();
    assert!(queue.is_stuck(Duration::ZERO));
    queue.remove(job.cost());
    moment();
    assert!(!queue.is_stuck(Duration::ZERO));
}
