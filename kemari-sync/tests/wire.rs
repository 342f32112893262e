//! Frames: what goes in comes out, and whatever else comes is refused with a reason.

use kemari_sync::wire::{
    About, Begin, Commit, CommitId, FrameError, FrameHeader, FrameKind, Goodbye, HEADER_BYTES, Heartbeat,
    Hello, Message, PAGE_BYTES, PAGES_PER_FRAME_MAX, PROOF_BYTES, PageBatch, PageBatchWriter, PageContent,
    REASON_BYTES_MAX, Staging, StagingError, StateFrame, SyncTally, Welcome, decode, encode, encode_state,
    reason_text,
};
use kemari_sync::{Incarnation, READINESS_REASON_BYTES_MAX, READINESS_REASONS_MAX, Readiness, Trouble};
use proptest::prelude::*;

fn split(frame: &[u8]) -> (Result<FrameHeader, FrameError>, &[u8]) {
    let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().expect("a whole header");
    (FrameHeader::parse(header), body)
}

fn messages() -> Vec<Message> {
    let incarnation = Incarnation {
        host: "h".repeat(64),
        nonce: u128::MAX,
    };
    let long = reason_text("é".repeat(1_000));
    assert!(long.len() <= REASON_BYTES_MAX);
    let commit = CommitId {
        term: u64::MAX,
        epoch: 3,
    };
    let hello = Hello {
        protocol: 1,
        vm: "v".repeat(64),
        config_digest: u64::MAX,
        incarnation: incarnation.clone(),
        session: 1,
        term: u64::MAX,
        peer: Some(u128::MAX),
        last: Some(u64::MAX),
    };
    let begin = Begin {
        epoch: 2,
        base: Some(1),
        term: 4,
        store: 5,
        primary: 6,
        secondary: 7,
    };
    vec![
        Message::Hello(hello),
        Message::Welcome(Welcome {
            incarnation,
            last: Some(commit),
        }),
        Message::Refuse(long.clone()),
        Message::Proof { bytes: PROOF_BYTES },
        Message::Prepare,
        Message::Ready {
            staging_pages_max: 1 << 40,
            disks: Vec::new(),
        },
        Message::Begin(begin),
        Message::Commit(Commit {
            epoch: 2,
            pages: 3,
            states: 4,
            digest: 5,
            stop: true,
        }),
        Message::Ack(commit),
        Message::LetGo(commit),
        Message::Heartbeat(Heartbeat {
            sequence: 1,
            epoch: 2,
            trouble: None,
            readiness: None,
            wall_clock_ms: 0,
            mtus: Vec::new(),
        }),
        Message::Heartbeat(Heartbeat {
            sequence: u64::MAX,
            epoch: u64::MAX,
            trouble: Some(Trouble::Disk(long.clone())),
            readiness: Some(Readiness {
                reasons: vec!["x".repeat(READINESS_REASON_BYTES_MAX); READINESS_REASONS_MAX],
                age_ms: u64::MAX,
            }),
            wall_clock_ms: u64::MAX,
            mtus: Vec::new(),
        }),
        Message::Goodbye(Goodbye::HandOver(long)),
        Message::Goodbye(Goodbye::Closed("KVM".to_owned())),
        Message::Goodbye(Goodbye::Stopped),
        Message::About(largest_about()),
    ]
}

/// As much as a host may say of itself, and more.
fn largest_about() -> About {
    let many = |count: usize| (0..count).map(|number| format!("{number}{}", "k".repeat(100)));
    About {
        version: "v".repeat(1000),
        keys: many(2000).map(|key| (key, u32::MAX)).collect(),
        features: vec![[u32::MAX; 6]; 1000],
        images: many(200).map(|id| (id, u64::MAX)).collect(),
        memory_available_mib: u64::MAX,
        wall_clock_ms: u64::MAX,
    }
    .bounded()
}

#[test]
fn messages_survive_the_wire() {
    for message in messages() {
        let mut frame = Vec::new();
        encode(&message, &mut frame);
        let (header, body) = split(&frame);
        let header = header.expect("a good header");
        assert_eq!((header.kind, header.length), (message.kind(), body.len()));
        header.check(body).expect("a good checksum");
        assert_eq!(decode(header.kind, body), Ok(message));
    }
}

#[test]
fn each_field_of_a_header_is_checked() {
    let mut good = Vec::new();
    encode(
        &Message::Ready {
            staging_pages_max: 9,
            disks: Vec::new(),
        },
        &mut good,
    );
    let spoiled = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        split(&frame).0
    };
    assert!(matches!(spoiled(0, b'X'), Err(FrameError::Magic(_))));
    assert_eq!(spoiled(4, 99), Err(FrameError::Kind(99)));
    for version in [1, 3] {
        assert_eq!(spoiled(6, version), Err(FrameError::Version(version.into())));
    }
    assert!(matches!(
        spoiled(10, 1),
        Err(FrameError::TooLong {
            kind: FrameKind::Ready,
            ..
        })
    ));
    let mut frame = good.clone();
    *frame.last_mut().expect("a body") ^= 1;
    let (header, body) = split(&frame);
    assert_eq!(
        header.expect("a good header").check(body),
        Err(FrameError::Checksum(FrameKind::Ready))
    );
    // The checksum covers the header too: another kind of the same length is noticed.
    let mut frame = good;
    frame[4] = FrameKind::Begin as u8;
    let (header, body) = split(&frame);
    assert!(header.expect("a good header").check(body).is_err());
}

#[test]
fn a_body_must_be_used_up() {
    let mut frame = Vec::new();
    encode(&Message::Ack(CommitId { term: 1, epoch: 2 }), &mut frame);
    frame.push(0);
    assert!(matches!(
        decode(FrameKind::Ack, &frame[HEADER_BYTES..]),
        Err(FrameError::Body { .. })
    ));
    assert!(matches!(
        decode(FrameKind::Prepare, &[0]),
        Err(FrameError::Body { .. })
    ));
    assert!(matches!(
        decode(FrameKind::Pages, &[0; 4]),
        Err(FrameError::Body { .. })
    ));
}

fn page(value: u8) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    page[PAGE_BYTES - 1] = value;
    page
}

/// One frame with these pages; the content of page `gfn` is derived from its number.
fn batch(gfns: &[u64]) -> (FrameHeader, Vec<u8>) {
    let mut out = Vec::new();
    let mut writer = PageBatchWriter::new(false, &mut out);
    for &gfn in gfns {
        match gfn % 3 {
            0 => writer.push_zero(gfn),
            1 => writer.push(gfn, &page(gfn as u8)),
            _ => writer.push_with(gfn, |out| out.extend_from_slice(&page(gfn as u8))),
        }
    }
    let (header, pages) = writer.finish().expect("it has pages");
    assert_eq!(pages, gfns.len());
    (header, out.split_off(HEADER_BYTES))
}

#[test]
fn pages_survive_the_wire_and_zero_ones_cost_nothing() {
    let gfns: Vec<u64> = (0..PAGES_PER_FRAME_MAX as u64).collect();
    let (header, body) = batch(&gfns);
    assert_eq!(header.length, body.len());
    let parsed = PageBatch::parse(header.kind, &body, |gfn| gfn < 256).expect("a good batch");
    assert_eq!(parsed.len(), PAGES_PER_FRAME_MAX);
    for (page_read, gfn) in parsed.iter().zip(gfns) {
        assert_eq!(page_read.gfn, gfn);
        let expected = if gfn % 3 == 0 || gfn as u8 == 0 {
            PageContent::Zero
        } else {
            PageContent::Raw(&page(gfn as u8))
        };
        assert_eq!(page_read.content, expected);
    }
    let (_, zeros) = batch(&[0, 3, 6]);
    assert_eq!(zeros.len(), 4 + 3 * 9);
    // A page that `push_with` finds to be zero costs as little.
    assert_eq!(batch(&[512]).1.len(), 4 + 9);
}

#[test]
fn a_page_that_is_what_the_receiver_has_is_not_sent() {
    let mut out = vec![7];
    let mut writer = PageBatchWriter::new(false, &mut out);
    for content in [0, 9] {
        let mut base = page(content);
        assert!(!writer.push_delta(5, &mut base, &page(content)), "{content}");
    }
    assert!(writer.finish().is_none(), "a frame has pages");
    assert_eq!(out, [7]);
    let mut writer = PageBatchWriter::new(false, &mut out);
    for (gfn, (before, now)) in [(0, 9), (9, 0), (9, 9), (8, 9)].into_iter().enumerate() {
        let mut base = page(before);
        assert_eq!(
            writer.push_delta(gfn as u64, &mut base, &page(now)),
            before != now
        );
        assert_eq!(base, page(now));
    }
    let (header, pages) = writer.finish().expect("it has pages");
    let batch = PageBatch::parse(header.kind, &out[1 + HEADER_BYTES..], |_| true).expect("a good batch");
    let found: Vec<u64> = batch.iter().map(|page| page.gfn).collect();
    assert_eq!((pages, found), (3, vec![0, 1, 3]));
    assert_eq!(batch.iter().nth(1).expect("three").content, PageContent::Zero);
}

#[test]
fn batches_are_refused_at_every_field() {
    let refused = |body: &[u8]| PageBatch::parse(FrameKind::Pages, body, |gfn| gfn < 100).is_err();
    let (_, good) = batch(&[1, 3]);
    assert!(!refused(&good));
    assert!(refused(&[]), "no count");
    assert!(refused(&good[..good.len() - 1]), "cut off");
    assert!(refused(&[&good[..], &[0]].concat()), "something left over");
    assert!(refused(&batch(&[100]).1), "no memory there");
    for (at, value) in [(0, 0), (0, 3), (1, 9), (12, 7)] {
        let mut spoiled = good.clone();
        spoiled[at] = value;
        assert!(refused(&spoiled), "byte {at} = {value}");
    }
}

/// A staged sync of some pages and one state.
fn stage(staging: &mut Staging, epoch: u64, batches: &[&[u64]]) -> Result<Commit, StagingError> {
    let mut tally = SyncTally::default();
    staging.begin(epoch);
    for gfns in batches {
        let (header, body) = batch(gfns);
        staging.accept(&header, &body, |gfn| gfn < 1_000, |_| 0)?;
        tally.add_pages(&header, gfns.len());
    }
    let mut frame = Vec::new();
    let header = encode_state(
        &StateFrame {
            kind: 1,
            instance: 2,
            version: 3,
            bytes: b"state",
        },
        &mut frame,
    )?;
    staging.accept(&header, &frame[HEADER_BYTES..], |_| false, |_| 0)?;
    tally.add_state(&header);
    Ok(tally.commit(epoch, false))
}

#[test]
fn staging_gives_back_what_was_staged() {
    let mut staging = Staging::new(1 << 20);
    let commit = stage(&mut staging, 5, &[&[1, 2], &[7]]).expect("it fits");
    staging.check(&commit).expect("it is whole");
    assert_eq!(
        staging.pages().map(|page| page.gfn).collect::<Vec<_>>(),
        [1, 2, 7]
    );
    let states: Vec<_> = staging.states().collect();
    assert_eq!(
        states,
        [StateFrame {
            kind: 1,
            instance: 2,
            version: 3,
            bytes: b"state"
        }]
    );
    let less = stage(&mut staging, 5, &[&[1, 2]]).expect("it fits");
    assert!(
        matches!(
            staging.check(&commit),
            Err(StagingError::NotWhole { epoch: 5, .. })
        ),
        "a frame is missing"
    );
    staging.check(&less).expect("it is whole");
    let reordered = stage(&mut staging, 5, &[&[7], &[1, 2]]).expect("it fits");
    assert_ne!(reordered.digest, commit.digest);
    staging.clear();
    assert_eq!((staging.bytes(), staging.pages().count()), (0, 0));
}

#[test]
fn staging_is_bounded() {
    let mut staging = Staging::new(2 * PAGE_BYTES);
    assert!(matches!(
        stage(&mut staging, 5, &[&[1], &[2]]),
        Err(StagingError::Full { epoch: 5, .. })
    ));
    staging.clear();
    let (header, body) = batch(&[1]);
    assert!(
        matches!(
            staging.accept(&header, &body, |_| true, |_| 0),
            Err(StagingError::Unexpected(FrameKind::Pages))
        ),
        "outside of a sync"
    );
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(
        kind in 0_u16..20,
        body in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let Some(kind) = FrameKind::from_wire(kind) else { return Ok(()) };
        let _ = decode(kind, &body);
        let _ = StateFrame::parse(&body);
        if let Ok(batch) = PageBatch::parse(kind, &body, |_| true) {
            prop_assert_eq!(batch.iter().count(), batch.len());
        }
    }

    #[test]
    fn no_sixteen_bytes_make_a_header_panic(bytes: [u8; HEADER_BYTES]) {
        let mut bytes = bytes;
        let _ = FrameHeader::parse(&bytes);
        // Past the magic and the version, to reach the rest.
        bytes[..4].copy_from_slice(b"KMRI");
        bytes[5..8].copy_from_slice(&[0, 1, 0]);
        if let Ok(header) = FrameHeader::parse(&bytes) {
            prop_assert!(header.length <= header.kind.body_bytes_max());
        }
    }

    #[test]
    fn a_damaged_frame_is_noticed(at in 0_usize..60, bit in 0_u8..8) {
        let mut frame = Vec::new();
        encode(&messages().remove(0), &mut frame);
        frame[at] ^= 1 << bit;
        let (header, body) = split(&frame);
        prop_assert!(header.and_then(|header| header.check(body)).is_err());
    }
}
