//! When a mark may go, and when a guest is told of a flush.

use super::*;

fn write(marks: &mut Marks, id: u64, extent: u64) {
    marks.begin([extent]);
    marks.end(id, [extent], true, 0);
}

/// A flush here of everything up to `id`, which the guest is told of at once.
fn flush(marks: &mut Marks, id: u64) {
    marks.flush_begins(id, Some(id));
    assert_eq!(marks.flushed(id, false), [id]);
}

/// What may go at once, if it is known.
fn settled(marks: &Marks) -> Option<(u64, Vec<u64>)> {
    let settled = marks.settle(0, 0, |_| true)?;
    Some((settled.request, settled.extents))
}

fn paired() -> Marks {
    let mut marks = Marks::default();
    assert_eq!(marks.begin_pair([]), []);
    marks
}

#[test]
fn a_mark_goes_when_both_images_have_it_durably() {
    let mut marks = paired();
    write(&mut marks, 1, 7);
    assert_eq!(settled(&marks), None);
    flush(&mut marks, 2);
    assert_eq!(settled(&marks), None, "the other image may lack it");
    marks.peer_flushed(0);
    assert_eq!(settled(&marks), Some((0, vec![])));
    marks.peer_flushed(2);
    assert_eq!(marks.settle(9, 10, |_| true).unwrap().extents, [], "not yet");
    assert_eq!(settled(&marks), Some((2, vec![7])));
    marks.begin([7]);
    assert_eq!(settled(&marks), Some((2, vec![])), "it is being written");
    marks.end(3, [7], true, 0);
    assert_eq!(settled(&marks), Some((2, vec![])));
}

#[test]
fn what_was_copied_keeps_its_mark_until_it_is_durable_here_too() {
    let mut marks = Marks::default();
    assert_eq!(marks.copied(&[1]), [], "there is no copy");
    write(&mut marks, 1, 1);
    marks.begin([2]);
    marks.begin_copy();
    assert_eq!(marks.copied(&[1, 2, 3]), []);
    marks.note_flushed();
    write(&mut marks, 2, 3);
    assert_eq!(marks.copied(&[1, 2, 3]), [1], "2 was under way, 3 was written");
    marks.begin_copy();
    assert_eq!(
        marks.copied(&[1]),
        [],
        "what came since the flush may not be durable"
    );
}

#[test]
fn a_pair_begins_with_the_marks_of_what_is_not_in_the_copy() {
    let mut marks = Marks::default();
    (1..4).for_each(|extent| write(&mut marks, extent, extent));
    marks.begin_copy();
    marks.begin([2]);
    marks.note_copied();
    write(&mut marks, 9, 3);
    assert_eq!(marks.begin_pair([1, 2, 3]), [1]);
    // Nothing is known of a pair without a copy.
    assert_eq!(marks.begin_pair([1, 2, 3]), []);
    marks.begin_copy();
    assert_eq!(marks.begin_pair([1, 2, 3]), [], "it was not flushed");
}

/// A write that fails between the last block of the copy and the record of the pair is in no copy.
#[test]
fn only_a_copy_ends_the_doubt_that_a_failed_change_leaves() {
    let mut marks = Marks::default();
    let fail = |marks: &mut Marks, id, extent| {
        marks.begin([extent]);
        marks.end(id, [extent], false, 0);
    };
    fail(&mut marks, 1, 1);
    marks.begin_copy();
    marks.note_copied();
    fail(&mut marks, 2, 2);
    assert_eq!(marks.begin_pair([1, 2]), [1]);
    flush(&mut marks, 3);
    marks.peer_flushed(3);
    assert_eq!(
        settled(&marks),
        Some((3, vec![1])),
        "what 2 holds here nobody knows"
    );
    marks.begin_copy();
    marks.note_copied();
    marks.begin_pair([]);
    flush(&mut marks, 4);
    assert_eq!(settled(&marks), Some((3, vec![1, 2])));
}

#[test]
fn the_other_host_keeps_the_marks_of_what_could_not_be_marked_here() {
    let mut marks = paired();
    marks.begin([1]);
    marks.end(3, [1], false, 0);
    flush(&mut marks, 4);
    marks.peer_flushed(4);
    let request = |is_marked: bool| marks.settle(0, 0, |_| is_marked).unwrap().request;
    assert_eq!((request(false), request(true)), (2, 4));
}

#[test]
fn a_flush_that_waits_is_told_when_the_other_host_has_done_it_or_follows_no_more() {
    let mut marks = Marks::default();
    assert_eq!(marks.flushed(1, true), [1], "alone there is nobody to wait for");
    // It was under way at the first sync, which the other host has carried out while the arbiter was asked.
    assert_eq!(marks.peer_flushed(3), []);
    marks.begin_pair([]);
    assert_eq!(marks.flushed(3, true), [3]);
    assert_eq!(marks.flushed(5, true), []);
    assert_eq!(marks.flushed(7, true), []);
    assert_eq!(marks.waiting(), 2);
    assert_eq!(marks.peer_flushed(6), [5]);
    assert_eq!(marks.end_pair(), [7]);
    // What an older pair has flushed says nothing of the next one.
    marks.begin_pair([]);
    assert_eq!(marks.flushed(4, true), []);
}

#[test]
fn flushes_that_fail_again_and_again_are_not_remembered_for_ever() {
    let mut marks = Marks::default();
    (0..5_000).for_each(|id| marks.flush_begins(id, Some(id)));
    assert_eq!(marks.flushes.len(), FLUSHES_MAX);
    marks.begin_pair([]);
    marks.flushed(4_999, false);
    assert_eq!(marks.durable, Some(4_999));
}

#[test]
fn a_replica_takes_the_marks_of_what_is_durable_on_both_and_old() {
    let mut marks = ReplicaMarks::default();
    marks.begin(1, [1, 2], 0);
    marks.begin(2, [2], 5);
    marks.begin(3, [3], 0);
    assert_eq!(marks.settle(2, 9, 10), []);
    assert_eq!(marks.settle(2, 10, 10), [1], "2 was written later");
    assert_eq!(marks.settle(2, 15, 10), [2]);
    assert_eq!(marks.settle(3, 15, 10), [3]);
    assert_eq!(marks.settle(3, 15, 10), [], "once");
}

#[test]
fn a_replica_carries_out_each_output_once_and_says_what_a_flush_was_for() {
    let mut marks = ReplicaMarks::default();
    assert!(marks.begin(4, [1], 0), "the first one that it hears of");
    assert!(marks.begin(4, [1], 0), "it could not be carried out then");
    marks.end(4);
    assert!(!marks.begin(3, [], 0) && !marks.begin(4, [1], 0));
    assert_eq!([marks.end_frame(), marks.end_frame()], [1, 2]);
    let flush = marks.begin_flush();
    assert!(marks.begin(5, [2], 0));
    marks.end(5);
    assert_eq!(marks.end_frame(), 3);
    let durable = marks.flushed(flush);
    assert_eq!((durable.request, durable.frames), (Some(4), 2));
    assert_eq!(marks.end_frame(), 2, "two frames came since");
}

#[test]
fn an_extent_is_changed_when_it_is_marked_and_what_is_new_is_marked() {
    let marked = |extent| extent < 3;
    assert!(Marks::may_change(1..3, marked) && !Marks::may_change(2..4, marked));
    assert_eq!(new_extents(10, 31, 10), 1..4);
    assert_eq!(
        new_extents(15, 20, 10),
        1..2,
        "what it had of its last extent is not all"
    );
}
