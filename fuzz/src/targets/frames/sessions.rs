//! Whole sessions to begin with.

use kemari_sync::wire::{
    About, Begin, BlockFrame, CommitId, DiskMark, FrameKind, Goodbye, HEADER_BYTES, Heartbeat, Hello,
    Message, PAGE_BYTES, PROTOCOL_VERSION, PageBatchWriter, StateFrame, encode_blocks, encode_state,
};
use kemari_sync::{CopyDisk, Readiness, Trouble};

use super::super::support::store::host;
use super::{on_tape, said};

/// A good commit, and one that is the last.
const COMMIT: [u8; 1] = [5];
const LAST_COMMIT: [u8; 1] = [5 | 8];
/// The peer is silent for a minute, in steps.
const SILENCE: [u8; 12] = [6, 0xff, 0xff, 6, 0xff, 0xff, 6, 0xff, 0xff, 6, 0xff, 0xff];

pub(crate) fn all() -> Vec<Vec<u8>> {
    let greeted = [vec![0], said(&Message::Hello(hello())), said(&Message::Prepare)].concat();
    let synced = [
        greeted.clone(),
        pages(true),
        begin(1, None),
        pages(false),
        state(),
        COMMIT.to_vec(),
    ]
    .concat();
    let delta = [
        begin(2, Some(1)),
        vec![4, 1, 2, 0, 1, 3, b'a', b'b', b'c', 9, 0, 1, b'x'],
        COMMIT.to_vec(),
    ];
    let mut with_disk = synced.clone();
    with_disk[0] = 2;
    let mut seeds = vec![
        [
            synced.clone(),
            delta.concat(),
            said(&heartbeat()),
            SILENCE.to_vec(),
        ]
        .concat(),
        [
            synced.clone(),
            said(&Message::Goodbye(Goodbye::HandOver("full".into()))),
        ]
        .concat(),
        [synced.clone(), begin(2, Some(1)), LAST_COMMIT.to_vec()].concat(),
        [synced.clone(), begin(2, Some(1)), pages(false), SILENCE.to_vec()].concat(),
        [synced.clone(), vec![7, 1]].concat(),
        [with_disk, said(&copy_disks()), blocks()].concat(),
    ];
    for message in others() {
        seeds.push([synced.clone(), said(&message)].concat());
    }
    seeds
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        vm: "vm".into(),
        config_digest: 7,
        incarnation: host("a", 1),
        session: 1,
        term: 1,
        peer: None,
        last: None,
    }
}

fn begin(epoch: u64, base: Option<u64>) -> Vec<u8> {
    said(&Message::Begin(Begin {
        epoch,
        base,
        term: 2,
        store: 9,
        primary: 1,
        secondary: 2,
    }))
}

fn pages(copy: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = PageBatchWriter::new(copy, &mut bytes);
    writer.push_zero(3);
    writer.push(5, &[7; PAGE_BYTES]);
    let (header, _) = writer.finish().expect("it has pages");
    on_tape(header.kind, &bytes[HEADER_BYTES..])
}

fn state() -> Vec<u8> {
    let mut bytes = Vec::new();
    let frame = StateFrame {
        kind: 6,
        instance: 0,
        version: 2,
        bytes: b"state",
    };
    encode_state(&frame, &mut bytes).expect("it is short");
    on_tape(FrameKind::State, &bytes[HEADER_BYTES..])
}

fn blocks() -> Vec<u8> {
    let frame = BlockFrame {
        disk: 0,
        count: 512,
        place: 4096,
        bytes: &[1; 512],
    };
    let mut bytes = Vec::new();
    encode_blocks(FrameKind::DiskBlocks, &frame, &mut bytes);
    let blocks = on_tape(FrameKind::DiskBlocks, &bytes[HEADER_BYTES..]);
    let sums = BlockFrame {
        count: 2,
        place: 1,
        bytes: &[3; 32],
        ..frame
    };
    bytes.clear();
    encode_blocks(FrameKind::DiskSums, &sums, &mut bytes);
    [blocks, on_tape(FrameKind::DiskSums, &bytes[HEADER_BYTES..])].concat()
}

fn heartbeat() -> Message {
    Message::Heartbeat(Heartbeat {
        sequence: 1,
        epoch: 2,
        trouble: Some(Trouble::Disk("slow".into())),
        readiness: Some(Readiness {
            reasons: vec!["no TAP".into()],
            age_ms: 3,
        }),
        wall_clock_ms: 4,
        mtus: Vec::new(),
    })
}

fn copy_disks() -> Message {
    Message::CopyDisks(vec![CopyDisk {
        disk: "blk0".into(),
        lineage: 1,
        term: 1,
        base: 2,
        only_marked: false,
    }])
}

/// One of each kind that the sessions lack.
fn others() -> Vec<Message> {
    let commit = CommitId { term: 2, epoch: 1 };
    let mark = DiskMark { disk: 0, request: 1 };
    vec![
        Message::Refuse("no".into()),
        Message::Ack(commit),
        Message::LetGo(commit),
        Message::DisksReady,
        Message::Flushed(mark),
        Message::Settled(mark),
        Message::Goodbye(Goodbye::Stopped),
        Message::Goodbye(Goodbye::SwitchOver { paused_ms: 5 }),
        Message::Goodbye(Goodbye::Closed("it fails".into())),
        Message::Proof { bytes: 64 },
        Message::About(About {
            version: "1".into(),
            keys: vec![("vm".into(), 1)],
            features: vec![[1; 6]],
            images: vec![("blk0".into(), 9)],
            memory_available_mib: 1,
            wall_clock_ms: 2,
        }),
    ]
}
