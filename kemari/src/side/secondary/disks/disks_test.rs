//! What replicas say, and what commits give them.

use kemari_sync::wire::{BlockFrame, FrameHeader, FrameKind, HEADER_BYTES, encode_blocks};
use kemari_sync::{CopyDisk, SecondaryEvent};

use super::super::Input;
use super::super::rig::{BUILD, Rig, SESSION};
use super::*;
use crate::replica::Report;

fn is_checked(event: &SecondaryEvent) -> bool {
    matches!(event, SecondaryEvent::Checked { .. })
}

fn plan(rig: &Rig) -> CopyDisk {
    let source = rig.image.source().expect("a record");
    CopyDisk {
        disk: source.disk,
        lineage: source.lineage,
        term: 1,
        base: source.base,
        only_marked: true,
    }
}

/// Waits until the replica has carried out everything.
fn flush(rig: &mut Rig) {
    rig.standby().disks.barrier(Barrier::Flush);
    rig.await_input(|input| matches!(input, Input::Replica(_, _, Report::Reached(Barrier::Flush))));
}

#[test]
fn what_is_waited_for_is_whole_in_the_term_of_the_sync_and_on_all_disks() {
    let mut rig = Rig::new();
    (rig.side.waits_for_disks, rig.side.begun_term) = (Some(Wait::Check(1)), 3);
    rig.standby().disks.unreached = [0, 1].into();
    let mut reach = |index, barrier| {
        rig.side.on_replica(BUILD, index, Report::Reached(barrier));
        rig.tells(is_checked)
    };
    assert!(
        !reach(0, Barrier::Whole(2)) && !reach(1, Barrier::Whole(2)),
        "of a term before"
    );
    assert!(
        !reach(0, Barrier::Flush) && !reach(1, Barrier::Flush),
        "nothing of the copy"
    );
    assert!(!reach(0, Barrier::Whole(3)), "one is missing");
    assert!(reach(1, Barrier::Whole(3)));
}

#[test]
fn a_replica_of_an_earlier_standby_vm_says_nothing_of_this_one() {
    let mut rig = Rig::new();
    rig.side.applying = Some(4);
    rig.side.on_replica(BUILD - 1, 0, Report::Failed("a test".into()));
    assert!(rig.side.events.is_empty() && rig.side.applying.is_some());
    rig.side.on_replica(BUILD, 0, Report::Failed("a test".into()));
    assert!(!rig.side.events.is_empty() && rig.side.applying.is_none());
}

#[test]
fn a_replica_that_fails_ends_what_waits_for_it() {
    for waits in [None, Some(Wait::Check(1)), Some(Wait::Restore)] {
        let mut rig = Rig::new();
        (rig.side.waits_for_disks, rig.side.applying) = (waits, Some(4));
        rig.side.on_replica_failed("a test".into());
        let told: Vec<_> = rig.side.events.drain(..).collect();
        let is_meant = match (&told[0], waits) {
            (SecondaryEvent::ReplicaFailed { .. }, None) => true,
            (SecondaryEvent::Checked { result, .. }, Some(Wait::Check(1))) => result.is_err(),
            (SecondaryEvent::Restored { result }, Some(Wait::Restore)) => result.is_err(),
            _ => false,
        };
        assert!(is_meant, "{told:?}");
        assert!(
            matches!(told[1], SecondaryEvent::Applied { epoch: 4 }),
            "nothing waits for room"
        );
    }
}

#[test]
fn the_pair_is_recorded_when_something_was_released_in_it() {
    let mut rig = Rig::new();
    rig.image.become_whole(2).expect("a record");
    let next_term = |rig: &mut Rig| {
        flush(rig);
        rig.image.offer().word.expect("a record").next_term
    };
    let apply = |rig: &mut Rig| {
        let machine = rig.standby().seat.machine.clone();
        let states = rig.standby().states.clone();
        rig.standby()
            .disks
            .apply(&machine, &states)
            .expect("a state of this machine");
    };
    apply(&mut rig);
    assert_eq!(next_term(&mut rig), 2, "the arbiter may not know of it yet");
    apply(&mut rig);
    assert_eq!(next_term(&mut rig), 0);
}

#[test]
fn blocks_are_taken_after_they_were_asked_for_in_the_session_that_they_are_for() {
    let mut rig = Rig::new();
    let mut frame = Vec::new();
    let blocks = BlockFrame {
        disk: 0,
        count: 512,
        place: 0,
        bytes: &[],
    };
    encode_blocks(FrameKind::DiskBlocks, &blocks, &mut frame);
    let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().expect("a header");
    let header = FrameHeader::parse(header).expect("a frame");
    rig.side.copying = Some(SESSION);
    assert!(
        rig.side.take_blocks(SESSION, &header, body).is_err(),
        "no image is marked"
    );
    let plans = [plan(&rig)];
    rig.side.mark_targets(SESSION, &plans);
    assert!(rig.tells(|event| matches!(event, SecondaryEvent::TargetsMarked { result: Ok(()), .. })));
    assert!(rig.side.take_blocks(SESSION, &header, body).is_ok());
    assert!(rig.side.take_blocks(SESSION + 1, &header, body).is_err());
}

#[test]
fn another_number_of_disks_is_not_copied_to() {
    let mut rig = Rig::new();
    rig.side.mark_targets(SESSION, &[]);
    assert!(rig.tells(|event| matches!(event, SecondaryEvent::TargetsMarked { result: Err(_), .. })));
    assert!(!rig.standby().disks.are_targets);
}
