//! What replicas say, and what commits give them.

use kemari_sync::wire::{BlockFrame, FrameHeader, FrameKind, HEADER_BYTES, encode_blocks};
use kemari_sync::{CopyDisk, SecondaryEvent};

use super::super::Input;
use super::super::rig::{BUILD, Rig, SESSION};
use super::*;
use crate::replica::Report;

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
    let replicas = rig.standby().disks.replicas.iter();
    replicas.for_each(|replica| replica.barrier(Barrier::Flush));
    rig.await_input(|input| matches!(input, Input::Replica(_, _, Report::Reached(Barrier::Flush))));
}

#[test]
fn a_replica_of_an_earlier_standby_vm_says_nothing_of_this_one() {
    let mut rig = Rig::new();
    rig.standby().disks.awaited.wait_for_room(4);
    rig.side.on_replica(BUILD - 1, 0, Report::Failed("a test".into()));
    assert!(rig.side.events.is_empty());
    rig.side.on_replica(BUILD, 0, Report::Failed("a test".into()));
    assert_eq!(rig.side.events.len(), 2);
    assert!(rig.standby().disks.awaited.room().is_none());
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
    rig.copy_for(SESSION);
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
