//! Marks before writes, while a copy is made, and after both images have what was written.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::replica::record::EXTENT_BYTES;
use crate::replica::testing::Scratch;

fn extent(number: u64) -> Range<u64> {
    number * EXTENT_BYTES..number * EXTENT_BYTES + 4096
}

fn tracker(both: bool) -> (Scratch, Arc<Tracker>) {
    let scratch = Scratch::new(8 * EXTENT_BYTES);
    let image = scratch.image();
    image.start(1, false).unwrap();
    (scratch, Tracker::new(image, both))
}

/// A write that ends well.
fn write(tracker: &Tracker, id: u64, number: u64) {
    if !tracker.may_change(&extent(number)) {
        tracker.prepare(&[extent(number)]).unwrap();
    }
    tracker.changed(id, &extent(number), true);
}

fn marks(tracker: &Tracker) -> Vec<u64> {
    tracker.image().map().iter().collect()
}

#[test]
fn an_extent_is_marked_before_it_is_written_and_then_for_long() {
    let (scratch, tracker) = tracker(false);
    assert!(!tracker.may_change(&extent(3)), "its mark is not there");
    tracker.prepare(&[extent(3)]).unwrap();
    assert_eq!(marks(&tracker), [3]);
    assert!(tracker.may_change(&extent(3)));
    let end = 4 * EXTENT_BYTES;
    assert!(
        !tracker.may_change(&(end - 512..end + 512)),
        "it reaches into the next extent"
    );
    drop(tracker);
    assert_eq!(
        scratch.image().map().iter().collect::<Vec<_>>(),
        [3],
        "after the end of the process"
    );
}

#[test]
fn what_was_written_while_it_was_copied_keeps_its_mark() {
    let (_scratch, tracker) = tracker(false);
    (0..4).for_each(|number| write(&tracker, number, number));
    // Under way when the copy begins, and ends after its extent was compared.
    assert!(tracker.may_change(&extent(0)));
    let copy = tracker.begin_copy();
    write(&tracker, 9, 1);
    assert_eq!(tracker.take_changed(9), [EXTENT_BYTES / CHUNK_BYTES]);
    tracker.clear_copied(copy, &[0, 1, 2]);
    assert_eq!(marks(&tracker), [0, 1, 2, 3], "it may not be durable here");
    tracker.note_flushed(copy);
    tracker.clear_copied(copy, &[0, 1, 2]);
    assert_eq!(marks(&tracker), [0, 1, 3]);
    tracker.changed(10, &extent(0), false);
    assert_eq!(tracker.take_changed(9), [0], "nobody knows what it has left");
}

/// Its thread may stand still between two steps, while the next copy begins.
#[test]
fn a_copy_that_is_over_says_nothing_of_the_next_one() {
    let (_scratch, tracker) = tracker(false);
    write(&tracker, 0, 0);
    let old = tracker.begin_copy();
    tracker.note_flushed(old);
    // After it was compared, so that only the next copy knows it.
    write(&tracker, 1, 0);
    tracker.end_copy();
    tracker.clear_copied(old, &[0]);
    let new = tracker.begin_copy();
    tracker.note_flushed(old);
    tracker.clear_copied(new, &[0]);
    assert_eq!(marks(&tracker), [0], "it may not be durable here");
    tracker.note_flushed(new);
    tracker.clear_copied(old, &[0]);
    assert_eq!(marks(&tracker), [0], "the other image has what was there before");
    tracker.clear_copied(new, &[0]);
    assert!(marks(&tracker).is_empty());
}

#[test]
fn a_pair_begins_with_the_marks_of_what_was_written_since_the_last_block() {
    let (_scratch, tracker) = tracker(false);
    (0..4).for_each(|number| write(&tracker, number, number));
    tracker.begin_copy();
    write(&tracker, 9, 1);
    tracker.note_copied();
    write(&tracker, 10, 2);
    tracker.begin_pair();
    assert_eq!(marks(&tracker), [2]);
}

/// The page cache here may lack durably what the other host has.
#[test]
fn marks_stay_at_the_beginning_of_a_pair_if_the_image_was_not_flushed() {
    let (_scratch, tracker) = tracker(false);
    write(&tracker, 0, 3);
    tracker.note_copied();
    tracker.begin_copy();
    tracker.begin_pair();
    assert_eq!(marks(&tracker), [3]);
}

/// A flush that begins when everything up to `ended` has ended; counts when the guest is told.
fn flush(tracker: &Tracker, id: u64, ended: Option<u64>, told: &Arc<AtomicU64>) {
    let told = told.clone();
    tracker.flush_begins(id, ended);
    tracker.flushed(
        id,
        Box::new(move || {
            told.fetch_add(1, Ordering::SeqCst);
        }),
    );
}

#[test]
fn marks_go_when_both_images_have_it_durably_and_not_before() {
    let told = Arc::default();
    let none = Duration::ZERO;
    let (_scratch, tracker) = tracker(false);
    tracker.begin_pair();
    (0..3).for_each(|number| write(&tracker, number, number));
    assert_eq!(tracker.settle(none), None, "nothing was flushed anywhere");
    // Write 2 was under way when the flush began.
    flush(&tracker, 3, Some(1), &told);
    assert_eq!(tracker.settle(none), None, "the secondary's image may lack it");
    tracker.note_peer_flushed(0);
    assert_eq!((tracker.settle(none), marks(&tracker)), (Some(0), vec![1, 2]));
    tracker.note_peer_flushed(3);
    assert_eq!((tracker.settle(none), marks(&tracker)), (Some(1), vec![2]));
    // Written again: the mark is set anew.
    write(&tracker, 5, 0);
    assert_eq!(marks(&tracker), [0, 2]);
    flush(&tracker, 6, Some(5), &told);
    tracker.note_peer_flushed(6);
    assert_eq!(tracker.settle(Duration::from_secs(3600)), Some(5));
    assert_eq!(marks(&tracker), [0, 2], "they were written a moment ago");
    assert!(tracker.may_change(&extent(0)), "a write is under way");
    tracker.settle(none);
    assert_eq!(marks(&tracker), [0]);
}

#[test]
fn what_a_failed_write_has_left_stays_marked() {
    let told = Arc::default();
    let (_scratch, tracker) = tracker(false);
    tracker.begin_pair();
    tracker.prepare(&[extent(1)]).unwrap();
    tracker.changed(0, &extent(1), false);
    flush(&tracker, 1, Some(0), &told);
    tracker.note_peer_flushed(1);
    tracker.settle(Duration::ZERO);
    assert_eq!(marks(&tracker), [1]);
}

/// The secondary has carried it out all the same, and only its mark says that the images differ.
#[test]
fn what_could_not_even_be_marked_keeps_the_marks_of_the_secondary() {
    let told = Arc::default();
    // Without a record nothing can be marked.
    let scratch = Scratch::new(8 * EXTENT_BYTES);
    let tracker = Tracker::new(scratch.image(), false);
    tracker.begin_pair();
    assert!(tracker.prepare(&[extent(1)]).is_err());
    tracker.changed(3, &extent(1), false);
    flush(&tracker, 4, Some(4), &told);
    tracker.note_peer_flushed(4);
    assert_eq!(tracker.settle(Duration::ZERO), Some(2));
    // The next secondary is copied to, whatever differs.
    tracker.begin_copy();
    tracker.note_copied();
    tracker.begin_pair();
    flush(&tracker, 5, Some(5), &told);
    tracker.note_peer_flushed(5);
    assert_eq!(tracker.settle(Duration::ZERO), Some(5));
}

#[test]
fn a_flush_waits_for_both_disks_only_where_it_is_said_and_only_in_a_pair() {
    let told = Arc::<AtomicU64>::default();
    let count = || told.load(Ordering::SeqCst);
    let (_scratch, memory) = tracker(false);
    memory.begin_pair();
    flush(&memory, 1, None, &told);
    assert_eq!(count(), 1);
    let (_scratch, both) = tracker(true);
    flush(&both, 1, None, &told);
    assert_eq!(count(), 2, "alone there is nobody to wait for");
    both.begin_pair();
    flush(&both, 2, None, &told);
    flush(&both, 4, None, &told);
    assert_eq!(count(), 2);
    both.note_peer_flushed(3);
    assert_eq!(count(), 3);
    both.end_pair();
    assert_eq!(count(), 4, "alone, waiting flushes are told");
}

#[test]
fn a_flush_that_the_secondary_has_done_before_the_pair_was_recorded_waits_for_nothing() {
    let told = Arc::<AtomicU64>::default();
    let count = || told.load(Ordering::SeqCst);
    let (_scratch, both) = tracker(true);
    // It was under way at the first sync, which the secondary has carried out while the arbiter was asked.
    both.note_peer_flushed(7);
    both.begin_pair();
    flush(&both, 7, None, &told);
    assert_eq!(count(), 1);
    // What an older pair has flushed says nothing of the next one.
    both.end_pair();
    both.begin_pair();
    flush(&both, 8, None, &told);
    both.note_peer_flushed(6);
    assert_eq!(count(), 1);
    both.note_peer_flushed(8);
    assert_eq!(count(), 2);
}

#[test]
fn a_flush_that_the_secondary_has_done_first_waits_for_nothing() {
    let told = Arc::<AtomicU64>::default();
    let (_scratch, both) = tracker(true);
    both.begin_pair();
    both.note_peer_flushed(7);
    flush(&both, 7, None, &told);
    assert_eq!(told.load(Ordering::SeqCst), 1);
}

#[test]
fn an_image_grows_only_while_nobody_follows_and_what_is_new_is_marked() {
    let (scratch, tracker) = tracker(false);
    let grow = |extents: u64| {
        let file = std::fs::OpenOptions::new().write(true).open(scratch.path());
        file.unwrap().set_len(extents * EXTENT_BYTES).unwrap();
        tracker.grown(extents * EXTENT_BYTES)
    };
    write(&tracker, 0, 2);
    tracker.begin_copy();
    assert!(grow(10).is_err(), "the copy knows nothing of it");
    tracker.end_copy();
    tracker.begin_pair();
    assert!(grow(10).is_err(), "the other host's image does not grow with it");
    tracker.end_pair();
    assert_eq!(tracker.image().bytes(), 8 * EXTENT_BYTES);
    grow(10).unwrap();
    assert_eq!(tracker.image().bytes(), 10 * EXTENT_BYTES);
    assert_eq!(&marks(&tracker)[marks(&tracker).len() - 2..], [8, 9]);
    assert!(tracker.may_change(&extent(9)), "it is marked");
    tracker.changed(1, &extent(9), true);
    // The next process finds both, and an image that has grown meanwhile.
    let file = std::fs::OpenOptions::new().write(true).open(scratch.path());
    file.unwrap().set_len(11 * EXTENT_BYTES).unwrap();
    let image = scratch.image();
    assert_eq!(image.bytes(), 11 * EXTENT_BYTES);
    assert!([8, 9, 10].iter().all(|extent| image.map().has(*extent)));
    assert_eq!(image.offer().bytes, 11 * EXTENT_BYTES);
    drop(image);
    let file = std::fs::OpenOptions::new().write(true).open(scratch.path());
    file.unwrap().set_len(9 * EXTENT_BYTES).unwrap();
    assert!(scratch.open("vm", None).is_err(), "it does not shrink");
}

#[test]
fn what_was_durable_here_before_a_pair_says_nothing_of_it() {
    let told = Arc::default();
    let (_scratch, tracker) = tracker(false);
    tracker.begin_pair();
    write(&tracker, 1, 1);
    flush(&tracker, 2, Some(1), &told);
    tracker.end_pair();
    // In the next pair the secondary is ahead: nothing was flushed here since it began.
    tracker.begin_pair();
    tracker.note_peer_flushed(9);
    assert_eq!(tracker.settle(Duration::ZERO), None);
    flush(&tracker, 4, Some(3), &told);
    assert_eq!(tracker.settle(Duration::ZERO), Some(3));
}
