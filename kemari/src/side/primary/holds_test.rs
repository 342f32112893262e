//! What holds a guest, without one.

use super::*;

#[test]
fn a_guest_runs_only_if_nothing_holds_it() {
    let mut holds = Holds::default();
    assert!(holds.is_empty());
    holds.add(Hold::Mechanism);
    holds.add(Hold::Mechanism);
    holds.add(Hold::Reset);
    holds.remove(Hold::Mechanism);
    assert!(!holds.is_empty() && !holds.has(Hold::Mechanism) && holds.has(Hold::Reset));
    holds.remove(Hold::Reset);
    assert!(holds.is_empty());
    holds.add(Hold::Over);
    assert!(!holds.is_empty() && !holds.is_empty_but_for_disk());
}

#[test]
fn a_disk_that_fails_holds_it_beside_all_else() {
    let mut holds = Holds::default();
    holds.fail_disk("blk0", "it is full", false);
    assert!(!holds.is_empty() && holds.is_empty_but_for_disk());
    holds.fail_disk("blk1", "it is gone", true);
    holds.fail_disk("blk0", "it is full", false);
    let standstill = holds.disk().expect("a disk fails");
    assert_eq!((&*standstill.disk, standstill.fail_over), ("blk0", true));
    holds.add(Hold::Mechanism);
    holds.remove(Hold::Mechanism);
    assert!(!holds.is_empty(), "the disk fails still");
    assert!(holds.take_disk().is_some() && holds.is_empty());
    assert!(holds.take_disk().is_none());
}

#[test]
fn a_guest_waits_for_an_ack_only_while_the_mechanism_holds_it() {
    let mut holds = Holds::default();
    assert!(holds.hold_until_ack(true) && !holds.hold_until_ack(true));
    assert!(!holds.is_until_ack() && holds.is_empty());
    holds.add(Hold::Mechanism);
    assert!(holds.is_until_ack());
    assert!(holds.hold_until_ack(false) && !holds.is_until_ack());
}
