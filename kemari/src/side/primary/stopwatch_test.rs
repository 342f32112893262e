//! Syncs whose times are made up.

use super::*;

const AT_ONCE: Duration = Duration::from_micros(5);

fn took() -> Took {
    Took {
        states: Duration::from_micros(1),
        dirty: Duration::from_micros(2),
        encode: Duration::from_micros(3),
        send: AT_ONCE,
    }
}

#[test]
fn every_part_of_a_sync_is_counted_once() {
    let mut watch = Stopwatch::default();
    watch.ask(Some(90));
    watch.pause(100);
    watch.captured(&took(), 120);
    watch.sending(130);
    watch.sent(140, AT_ONCE);
    assert_eq!(watch.wire_us(150), 20);
    watch.acked(200);
    watch.note_pause(230);
    let counters = watch.counters;
    assert_eq!(counters.last_sync_us, 110, "from when it was asked for");
    assert_eq!((counters.syncs, counters.last_pause_us), (1, 130));
    let timings = watch.timings();
    let parts = [
        (&timings.state_us, 1),
        (&timings.dirty_us, 2),
        (&timings.encode_us, 3),
        (&timings.capture_us, 20),
        (&timings.send_us, 15),
        (&timings.ack_us, 60),
        (&timings.sync_us, 110),
        (&timings.pause_us, 130),
    ];
    for (part, us) in parts {
        assert_eq!((part.count, part.sum_us), (1, us));
    }
}

#[test]
fn what_was_asked_for_counts_for_one_sync() {
    let mut watch = Stopwatch::default();
    watch.ask(Some(90));
    watch.pause(100);
    watch.pause(300);
    watch.acked(310);
    assert_eq!((watch.paused_us(), watch.counters.last_sync_us), (300, 10));
    watch.ask(Some(320));
    watch.ask(None);
    watch.pause(330);
    watch.acked(340);
    assert_eq!(watch.counters.last_sync_us, 10, "no sync began then");
}

#[test]
fn an_ack_is_expected_as_late_as_the_last_ones_came_but_not_much_later() {
    let mut watch = Stopwatch::default();
    watch.sent(1000, Duration::ZERO);
    watch.acked(1040);
    assert_eq!(watch.ack_due_us(), 1010, "one of four");
    watch.acked(5_000_000);
    assert_eq!(watch.ack_due_us(), 1000 + ACK_US_MAX);
}

#[test]
fn a_pause_that_is_left_is_noted_once() {
    let mut watch = Stopwatch::default();
    assert!(!watch.takes_left_pause());
    watch.leave_pause();
    assert!(watch.takes_left_pause() && !watch.takes_left_pause());
}
