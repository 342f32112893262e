//! Frames about the blocks of replicated disks: what goes in comes out, and whatever else comes is refused.

use kemari_sync::wire::{
    BLOCK_BYTES_MAX, BlockFrame, CHUNK_SUM_BYTES, CHUNKS_PER_FRAME_MAX, FrameError, FrameHeader, FrameKind,
    HEADER_BYTES, encode_blocks,
};
use proptest::prelude::*;

const KINDS: [FrameKind; 5] = [
    FrameKind::DiskMap,
    FrameKind::DiskSums,
    FrameKind::DiskWanted,
    FrameKind::DiskBlocks,
    FrameKind::DiskStored,
];
/// Most bytes that a generated frame carries; longer ones have tests of their own.
const GENERATED_BYTES_MAX: usize = 8 << 10;

/// How many bytes go with a count; none: no such count is allowed.
fn bytes_for(kind: FrameKind, count: u32) -> Vec<usize> {
    let length = count as usize;
    let is_chunks = (1..=CHUNKS_PER_FRAME_MAX).contains(&count);
    match kind {
        FrameKind::DiskMap if length <= BLOCK_BYTES_MAX => vec![length],
        FrameKind::DiskSums if is_chunks => vec![length * CHUNK_SUM_BYTES],
        FrameKind::DiskWanted if is_chunks => vec![length.div_ceil(8)],
        // Zeros take no bytes.
        FrameKind::DiskBlocks if (1..=BLOCK_BYTES_MAX).contains(&length) => vec![0, length],
        FrameKind::DiskStored if count == 0 => vec![0],
        _ => Vec::new(),
    }
}

fn body(disk: u16, reserved: u16, count: u32, place: u64, bytes: &[u8]) -> Vec<u8> {
    let parts: [&[u8]; 5] = [
        &disk.to_le_bytes(),
        &reserved.to_le_bytes(),
        &count.to_le_bytes(),
        &place.to_le_bytes(),
        bytes,
    ];
    parts.concat()
}

fn kinds() -> impl Strategy<Value = FrameKind> {
    prop::sample::select(&KINDS[..])
}

/// Counts near what matters, and any.
fn counts() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..=CHUNKS_PER_FRAME_MAX + 2,
        1 => 0..=GENERATED_BYTES_MAX as u32,
        1 => any::<u32>(),
    ]
}

/// A frame as it may be sent.
fn good() -> impl Strategy<Value = (FrameKind, u16, u32, u64, Vec<u8>)> {
    (
        kinds(),
        any::<u16>(),
        counts(),
        any::<u64>(),
        any::<bool>(),
        any::<u8>(),
    )
        .prop_filter_map(
            "such a count is not sent",
            |(kind, disk, count, place, longest, seed)| {
                let lengths = bytes_for(kind, count);
                let length = if longest {
                    lengths.last()?
                } else {
                    lengths.first()?
                };
                let place = place.min(u64::MAX - u64::from(count));
                (*length <= GENERATED_BYTES_MAX).then(|| {
                    let bytes = (0..*length)
                        .map(|index| (index as u8).wrapping_mul(31) ^ seed)
                        .collect();
                    (kind, disk, count, place, bytes)
                })
            },
        )
}

/// Reads a whole frame as its receiver does.
fn received(kind: FrameKind, bytes: &[u8]) -> Result<BlockFrame<'_>, FrameError> {
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().expect("a whole header");
    let header = FrameHeader::parse(header)?;
    assert_eq!((header.kind, header.length), (kind, body.len()));
    header.check(body)?;
    BlockFrame::parse(header.kind, body)
}

proptest! {
    #[test]
    fn what_is_sent_is_received((kind, disk, count, place, bytes) in good()) {
        let frame = BlockFrame { disk, count, place, bytes: &bytes };
        let mut out = Vec::new();
        encode_blocks(kind, &frame, &mut out);
        prop_assert_eq!(received(kind, &out).expect("it is whole"), frame);
    }

    #[test]
    fn a_damaged_frame_is_refused(
        (kind, disk, count, place, bytes) in good(),
        at in any::<prop::sample::Index>(),
        bit in 0..8,
    ) {
        let frame = BlockFrame { disk, count, place, bytes: &bytes };
        let mut out = Vec::new();
        encode_blocks(kind, &frame, &mut out);
        let at = HEADER_BYTES + at.index(out.len() - HEADER_BYTES);
        out[at] ^= 1u8 << bit;
        prop_assert!(received(kind, &out).is_err());
    }

    /// Whoever made the checksum may have written anything: what is taken is what may be sent.
    #[test]
    fn of_all_bodies_only_those_are_taken_that_may_be_sent(
        kind in kinds(),
        disk in any::<u16>(),
        reserved in prop_oneof![3 => Just(0u16), 1 => any::<u16>()],
        count in counts(),
        place in prop_oneof![any::<u64>(), u64::MAX - 300..=u64::MAX],
        length in prop_oneof![0..300usize, 0..GENERATED_BYTES_MAX],
        fitting in any::<bool>(),
    ) {
        let lengths = bytes_for(kind, count);
        let length = match lengths.last() {
            Some(right) if fitting && *right <= GENERATED_BYTES_MAX => *right,
            _ => length,
        };
        let bytes = vec![0x5a; length];
        let body = body(disk, reserved, count, place, &bytes);
        let may_be_sent = reserved == 0
            && lengths.contains(&length)
            && place.checked_add(u64::from(count)).is_some();
        match BlockFrame::parse(kind, &body) {
            Ok(frame) => {
                prop_assert!(may_be_sent);
                prop_assert_eq!(frame, BlockFrame { disk, count, place, bytes: &bytes });
            }
            Err(_) => prop_assert!(!may_be_sent),
        }
    }

    #[test]
    fn no_bytes_make_a_receiver_panic(kind in kinds(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(frame) = BlockFrame::parse(kind, &bytes) {
            prop_assert!(bytes_for(kind, frame.count).contains(&frame.bytes.len()));
        }
    }
}

#[test]
fn the_largest_blocks_are_taken_and_larger_ones_are_not() {
    let bytes = vec![7; BLOCK_BYTES_MAX + 1];
    let largest = body(0, 0, BLOCK_BYTES_MAX as u32, 0, &bytes[1..]);
    assert!(BlockFrame::parse(FrameKind::DiskBlocks, &largest).is_ok());
    let larger = body(0, 0, BLOCK_BYTES_MAX as u32 + 1, 0, &bytes);
    assert!(BlockFrame::parse(FrameKind::DiskBlocks, &larger).is_err());
    // A header that announces more than its kind may carry is refused before a byte of the body is awaited.
    let mut out = Vec::new();
    let frame = BlockFrame {
        disk: 0,
        count: BLOCK_BYTES_MAX as u32,
        place: 0,
        bytes: &bytes[1..],
    };
    encode_blocks(FrameKind::DiskBlocks, &frame, &mut out);
    let length = (out.len() - HEADER_BYTES) as u32 + 1;
    out[8..12].copy_from_slice(&length.to_le_bytes());
    let header = out.first_chunk::<HEADER_BYTES>().expect("a whole header");
    assert!(FrameHeader::parse(header).is_err());
}

#[test]
fn frames_of_other_kinds_carry_no_blocks() {
    let body = body(0, 0, 0, 0, &[]);
    for kind in [FrameKind::Pages, FrameKind::State, FrameKind::Heartbeat] {
        assert!(BlockFrame::parse(kind, &body).is_err(), "{kind:?}");
    }
}
