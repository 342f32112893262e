//! What a secondary says of blocks, and what records say of terms.

use kemari_sync::wire::{HEADER_BYTES, encode_blocks};
use kemari_sync::{ImageState, PrimaryAction};

use super::super::rig::{Rig, TERM};
use super::*;

const SESSION: SessionId = 1;

/// Takes a frame about this disk.
fn take(rig: &mut Rig, kind: FrameKind, disk: u16, bytes: &[u8]) -> Result<bool, LinkError> {
    let mut frame = Vec::new();
    let blocks = BlockFrame {
        disk,
        count: bytes.len() as u32,
        place: 0,
        bytes,
    };
    encode_blocks(kind, &blocks, &mut frame);
    let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().expect("a header");
    rig.side
        .disks
        .take_frame(&FrameHeader::parse(header).expect("a frame"), body)
}

/// Whether the copy of the disk can be planned.
fn marks(rig: &mut Rig) -> bool {
    let source = rig.tracker.image().source().expect("a record");
    let plan = CopyDisk {
        disk: source.disk,
        lineage: source.lineage,
        term: TERM,
        base: source.base,
        only_marked: true,
    };
    rig.side.perform(PrimaryAction::MarkSources {
        session: SESSION,
        plans: vec![plan],
    });
    rig.tells(|event| matches!(event, PrimaryEvent::SourcesMarked { result: Ok(()), .. }))
}

#[test]
fn a_copy_covers_what_the_secondary_of_this_session_has_marked() {
    let mut rig = Rig::new();
    assert!(!marks(&mut rig), "it has not said so yet");
    let mut map = Map::new(rig.tracker.image().bytes());
    map.set(3);
    assert!(matches!(
        take(&mut rig, FrameKind::DiskMap, 0, &map.to_bytes()),
        Ok(true)
    ));
    assert!(marks(&mut rig));
    assert_eq!(rig.tracker.image().map().iter().collect::<Vec<_>>(), [3]);
    rig.side.disks.end_session();
    assert!(!marks(&mut rig), "the next secondary may be another");
}

#[test]
fn blocks_of_a_disk_that_is_not_there_end_the_session_and_late_ones_do_not() {
    let mut rig = Rig::new();
    for kind in [FrameKind::DiskMap, FrameKind::DiskStored] {
        assert!(take(&mut rig, kind, 9, &[]).is_err(), "{kind:?}");
    }
    assert!(
        matches!(take(&mut rig, FrameKind::DiskStored, 0, &[]), Ok(true)),
        "the copy is over"
    );
}

#[test]
fn what_was_stopped_and_goes_on_is_not_stopped_any_more() {
    let state = |rig: &Rig| rig.tracker.image().offer().word.expect("a record").state;
    let mut rig = Rig::new();
    rig.capture(1);
    rig.side.perform(PrimaryAction::Release { epoch: 1 });
    rig.side.note_stopped_disks();
    assert_eq!(state(&rig), ImageState::Stopped);
    // A switchover that failed.
    rig.capture(2);
    rig.side.perform(PrimaryAction::Release { epoch: 2 });
    assert_eq!(state(&rig), ImageState::Whole);
}

/// A guest that runs alone, and well, does not end for a record that says all that it must.
#[test]
fn giving_up_a_pair_to_be_needs_no_record() {
    let mut rig = Rig::new();
    let terms = rig.terms();
    rig.side.perform(PrimaryAction::OpenGate);
    assert_eq!(rig.terms(), terms, "its record was written");
    assert!(!rig.tells(|event| matches!(event, PrimaryEvent::HostFailing { .. })));
}
