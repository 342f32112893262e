//! A host that lives and is of no use to its VM.

use kemari_sync::wire::Message;
use kemari_sync::{Mode, PrimaryAction, PrimaryEvent, READINESS_MS_MAX, Trouble};

use PrimaryAction as Do;

use super::support::*;

fn uplink() -> Option<Trouble> {
    Some(Trouble::Uplink("eth1 has no carrier".to_owned()))
}

fn disk() -> Option<Trouble> {
    Some(Trouble::Disk("blk0 hangs".to_owned()))
}

/// A protected primary in trouble whose secondary has said this.
fn in_trouble(mine: Option<Trouble>, theirs: Option<Trouble>) -> (Bench, Vec<PrimaryAction>) {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.hear(1, said(theirs, Some(&[])));
    let actions = bench.feed(PrimaryEvent::Health { trouble: mine });
    (bench, actions)
}

fn hands_over(actions: &[PrimaryAction]) -> bool {
    actions == [Do::CloseDisks]
}

#[test]
fn without_an_uplink_it_switches_over_to_a_secondary_that_is_well() {
    let (bench, actions) = in_trouble(uplink(), None);
    assert_eq!(actions, [capture(2)], "the last sync here");
    assert!(bench.primary.is_switching());
}

#[test]
fn with_a_disk_that_hangs_it_hands_over_since_a_switchover_would_wait_for_that() {
    let (_, actions) = in_trouble(disk(), None);
    assert!(hands_over(&actions), "{actions:?}");
    // Also in the middle of a switchover, which waits for the disk.
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.hear(1, heartbeat());
    bench.feed(PrimaryEvent::OperatorSwitchover);
    bench.captured(2);
    assert!(bench.ack(2).contains(&Do::Drain));
    let actions = bench.feed(PrimaryEvent::Health { trouble: disk() });
    assert!(hands_over(&actions), "{actions:?}");
}

#[test]
fn it_stays_while_the_secondary_is_in_trouble_too_and_goes_when_that_is_well() {
    for mine in [uplink(), disk()] {
        let (mut bench, actions) = in_trouble(mine, uplink());
        assert_eq!(actions, []);
        let waiting = bench.primary.status(bench.now_ms).waiting.expect("a reason");
        assert!(waiting.contains("no better off"), "{waiting}");
        assert_ne!(bench.hear(1, heartbeat()), []);
    }
}

#[test]
fn it_stays_until_the_secondary_has_said_how_it_is() {
    let mut bench = Bench::protected(Mode::Lockstep);
    assert_eq!(bench.feed(PrimaryEvent::Health { trouble: uplink() }), []);
    assert_eq!(
        bench.hear(1, said(None, None)),
        [],
        "its host is well, and whether it could take over is open"
    );
    assert_eq!(bench.hear(1, heartbeat()), [capture(2)]);
}

#[test]
fn it_stays_while_the_secondary_does_not_look_any_more_whether_it_could_go_on() {
    for mine in [uplink(), disk()] {
        let mut bench = Bench::protected(Mode::Pipelined);
        let Message::Heartbeat(mut late) = heartbeat() else {
            unreachable!("it is one")
        };
        late.readiness = late.readiness.map(|found| found.aged(READINESS_MS_MAX + 1));
        bench.hear(1, Message::Heartbeat(late));
        assert_eq!(bench.feed(PrimaryEvent::Health { trouble: mine }), []);
        let waiting = bench.primary.status(bench.now_ms).waiting.expect("it says why");
        assert!(
            waiting.contains("no better off") && waiting.contains("within 5 s"),
            "{waiting}"
        );
        assert_ne!(bench.hear(1, heartbeat()), []);
    }
}

#[test]
fn alone_it_can_only_say_so() {
    let mut bench = Bench::new(Mode::Lockstep);
    assert_eq!(bench.feed(PrimaryEvent::Health { trouble: disk() }), []);
    let waiting = bench.primary.status(bench.now_ms).waiting.expect("a reason");
    assert!(waiting.contains("blk0 hangs"), "{waiting}");
    assert_eq!(bench.feed(PrimaryEvent::Health { trouble: None }), []);
    assert_eq!(bench.primary.status(bench.now_ms).waiting, None);
}

#[test]
fn a_pair_is_ready_only_while_its_secondary_says_so() {
    let mut bench = Bench::protected(Mode::Lockstep);
    let readiness = |bench: &Bench, later_ms| {
        let status = bench.primary.status(bench.now_ms + later_ms);
        status.readiness.expect("there is a pair")
    };
    assert!(!readiness(&bench, 0).is_ready(), "it has said nothing");
    bench.hear(1, said(None, Some(&[])));
    assert!(readiness(&bench, 0).is_ready());
    assert!(
        !readiness(&bench, READINESS_MS_MAX + 1).is_ready(),
        "that is long ago"
    );
    let Message::Heartbeat(mut late) = said(None, Some(&[])) else {
        unreachable!("it is one")
    };
    late.readiness = late.readiness.map(|found| found.aged(READINESS_MS_MAX));
    bench.hear(1, Message::Heartbeat(late));
    assert!(readiness(&bench, 0).is_ready());
    assert!(!readiness(&bench, 1).is_ready(), "it was old when it came");
    bench.hear(1, said(None, Some(&["there is no TAP"])));
    assert_eq!(readiness(&bench, 0).reasons, ["there is no TAP"]);
    bench.hear(1, said(uplink(), Some(&[])));
    assert_eq!(readiness(&bench, 0).reasons, ["eth1 has no carrier"]);
    bench.hear(1, said(None, Some(&[])));
    assert!(readiness(&bench, 0).is_ready());
    // What another version, or somebody else, may say.
    bench.hear(1, said(None, Some(&["x"; 300])));
    assert!(readiness(&bench, 0).reasons.len() < 10);
}

#[test]
fn nobody_switches_over_to_a_secondary_that_is_not_ready() {
    let mut bench = Bench::protected(Mode::Lockstep);
    bench.hear(1, said(None, Some(&["there is no TAP"])));
    assert_eq!(bench.feed(PrimaryEvent::Health { trouble: uplink() }), []);
    let waiting = bench.primary.status(bench.now_ms).waiting.expect("it says why");
    assert!(waiting.contains("no better off: there is no TAP"), "{waiting}");
    let lacks = bench.primary.peer_lacks(bench.now_ms);
    assert_eq!(lacks.as_deref(), Some("there is no TAP"));
    let actions = bench.hear(1, said(None, Some(&[])));
    assert_eq!(actions, [capture(2)], "the last sync here");
}
