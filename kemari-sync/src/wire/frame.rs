//! The frame: a fixed header of 16 bytes, little endian, before every body.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 4 | [`MAGIC`] |
//! | 4 | 2 | [`FrameKind`] |
//! | 6 | 2 | [`FRAME_VERSION`] |
//! | 8 | 4 | length of the body in bytes |
//! | 12 | 4 | checksum of the 12 bytes above and of the body |

use serde::{Serialize, de::DeserializeOwned};

use crate::checksum::checksum_both;
use crate::readiness::{READINESS_REASON_BYTES_MAX, READINESS_REASONS_MAX};

use super::about::ABOUT_BYTES_MAX;
use super::blocks::BLOCK_FRAME_BYTES_MAX;
use super::message::{Message, PROOF_BYTES, REASON_BYTES_MAX};
use super::pages::PAGE_FRAME_BYTES_MAX;
use super::state::STATE_FRAME_BYTES_MAX;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;
/// First word of every frame: "KMRI".
pub const MAGIC: u32 = u32::from_le_bytes(*b"KMRI");
/// Version of every frame's layout.
pub const FRAME_VERSION: u16 = 2;

/// Longest body of a control message.
const CONTROL_BYTES_MAX: usize = 4_096;
const _: () = assert!(REASON_BYTES_MAX + 16 <= CONTROL_BYTES_MAX);
/// A number takes up to ten bytes, and so does what says that a text is there and how long it is.
const HEARTBEAT_BYTES_MAX: usize =
    (10 + REASON_BYTES_MAX) + READINESS_REASONS_MAX * (10 + READINESS_REASON_BYTES_MAX) + 6 * 10;
const _: () = assert!(HEARTBEAT_BYTES_MAX <= CONTROL_BYTES_MAX);

/// What a frame's body is. The numbers go over the wire: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum FrameKind {
    /// [`Message::Hello`].
    Hello = 1,
    /// [`Message::Welcome`].
    Welcome = 2,
    /// [`Message::Refuse`].
    Refuse = 3,
    /// [`Message::Prepare`].
    Prepare = 4,
    /// [`Message::Ready`].
    Ready = 5,
    /// Pages of the first copy, applied at once: a [`super::PageBatch`].
    CopyPages = 6,
    /// [`Message::Begin`].
    Begin = 7,
    /// Pages of a sync, staged: a [`super::PageBatch`].
    Pages = 8,
    /// State of one component: a [`super::StateFrame`].
    State = 9,
    /// [`Message::Commit`].
    Commit = 10,
    /// [`Message::Ack`].
    Ack = 11,
    /// [`Message::LetGo`].
    LetGo = 12,
    /// [`Message::Heartbeat`].
    Heartbeat = 13,
    /// [`Message::Goodbye`].
    Goodbye = 14,
    /// [`Message::CopyDisks`].
    CopyDisks = 15,
    /// [`Message::DisksReady`].
    DisksReady = 16,
    /// [`Message::Flushed`].
    Flushed = 17,
    /// [`Message::Settled`].
    Settled = 18,
    /// Which extents of a secondary's image may differ: a [`super::BlockFrame`], as the four after it.
    DiskMap = 19,
    /// Checksums of the primary's chunks.
    DiskSums = 20,
    /// Which of them differ on the secondary.
    DiskWanted = 21,
    /// Blocks of the primary's image.
    DiskBlocks = 22,
    /// How much of that is durable on the secondary.
    DiskStored = 23,
    /// [`Message::About`].
    About = 24,
    /// [`Message::Proof`].
    Proof = 25,
}

impl FrameKind {
    const ALL: [Self; 25] = [
        Self::Hello,
        Self::Welcome,
        Self::Refuse,
        Self::Prepare,
        Self::Ready,
        Self::CopyPages,
        Self::Begin,
        Self::Pages,
        Self::State,
        Self::Commit,
        Self::Ack,
        Self::LetGo,
        Self::Heartbeat,
        Self::Goodbye,
        Self::CopyDisks,
        Self::DisksReady,
        Self::Flushed,
        Self::Settled,
        Self::DiskMap,
        Self::DiskSums,
        Self::DiskWanted,
        Self::DiskBlocks,
        Self::DiskStored,
        Self::About,
        Self::Proof,
    ];

    /// The kind with this number.
    pub fn from_wire(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
    }

    /// Longest body of this kind, in bytes.
    pub const fn body_bytes_max(self) -> usize {
        match self {
            Self::CopyPages | Self::Pages => PAGE_FRAME_BYTES_MAX,
            Self::State => STATE_FRAME_BYTES_MAX,
            Self::DiskMap | Self::DiskBlocks => BLOCK_FRAME_BYTES_MAX,
            Self::Proof => PROOF_BYTES as usize,
            Self::DiskSums | Self::DiskWanted => CONTROL_BYTES_MAX + 64,
            Self::About => ABOUT_BYTES_MAX,
            _ => CONTROL_BYTES_MAX,
        }
    }
}

/// A frame that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The other end does not speak this protocol at all.
    #[error("the peer does not speak Kemari's protocol: its frame begins with {0:#010x}")]
    Magic(u32),
    /// Another layout of frames.
    #[error(
        "the peer's frames have version {0}, this Kemari reads version {FRAME_VERSION}; run the same version \
         on both hosts"
    )]
    Version(u16),
    /// A kind that this version does not know.
    #[error("unknown frame kind {0}; run the same version of Kemari on both hosts")]
    Kind(u16),
    /// A body beyond the limit of its kind.
    #[error("a {kind:?} frame of {length} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Its kind.
        kind: FrameKind,
        /// Its length as announced.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Damaged on the way.
    #[error("the checksum of a {0:?} frame is wrong: it was damaged on the way")]
    Checksum(FrameKind),
    /// The body is not what its kind promises.
    #[error("a {kind:?} frame does not decode: {reason}")]
    Body {
        /// Its kind.
        kind: FrameKind,
        /// What is wrong with it.
        reason: String,
    },
}

impl FrameError {
    pub(super) fn body(kind: FrameKind, reason: impl Into<String>) -> Self {
        Self::Body {
            kind,
            reason: reason.into(),
        }
    }
}

/// A header that passed its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What follows.
    pub kind: FrameKind,
    /// Bytes of the body that follows: within the limit of its kind.
    pub length: usize,
    /// Checksum of header and body.
    pub checksum: u32,
}

impl FrameHeader {
    /// Reads a header; refuses whatever this version cannot take.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if u32_at(0) != MAGIC {
            return Err(FrameError::Magic(u32_at(0)));
        }
        if u16_at(6) != FRAME_VERSION {
            return Err(FrameError::Version(u16_at(6)));
        }
        let kind = FrameKind::from_wire(u16_at(4)).ok_or(FrameError::Kind(u16_at(4)))?;
        let (length, limit) = (u32_at(8) as usize, kind.body_bytes_max());
        if length > limit {
            return Err(FrameError::TooLong { kind, length, limit });
        }
        Ok(Self {
            kind,
            length,
            checksum: u32_at(12),
        })
    }

    /// Whether this body is the one that was sent.
    pub fn check(&self, body: &[u8]) -> Result<(), FrameError> {
        match body.len() == self.length && checksum_both(prefix(self.kind, body.len()), body) == self.checksum
        {
            true => Ok(()),
            false => Err(FrameError::Checksum(self.kind)),
        }
    }
}

fn prefix(kind: FrameKind, length: usize) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[4..6].copy_from_slice(&(kind as u16).to_le_bytes());
    bytes[6..8].copy_from_slice(&FRAME_VERSION.to_le_bytes());
    bytes[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    bytes
}

/// Reserves a header at the end of `out`; returns where it is, for [`close_frame`].
pub(super) fn open_frame(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    start
}

/// Fills in the header at `start`; what follows it is the body.
pub(super) fn close_frame(out: &mut [u8], start: usize, kind: FrameKind) -> FrameHeader {
    let length = out.len() - start - HEADER_BYTES;
    assert!(
        length <= kind.body_bytes_max(),
        "a {kind:?} frame of {length} bytes was built"
    );
    let prefix = prefix(kind, length);
    let checksum = checksum_both(prefix, &out[start + HEADER_BYTES..]);
    out[start..start + 12].copy_from_slice(&prefix);
    out[start + 12..start + HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    FrameHeader {
        kind,
        length,
        checksum,
    }
}

/// Appends a frame of any body, whose header and checksum are good. Returns its header.
///
/// # Panics
/// If the body is longer than its kind may be.
pub fn seal(kind: FrameKind, body: &[u8], out: &mut Vec<u8>) -> FrameHeader {
    let start = open_frame(out);
    out.extend_from_slice(body);
    close_frame(out, start, kind)
}

/// Appends a message as one frame. Returns its header.
pub fn encode(message: &Message, out: &mut Vec<u8>) -> FrameHeader {
    let start = open_frame(out);
    match message {
        Message::Hello(body) => append(body, out),
        Message::Welcome(body) => append(body, out),
        Message::Refuse(reason) => append(reason, out),
        Message::Prepare | Message::DisksReady => {}
        Message::Proof { bytes } => out.extend(padding().take(*bytes as usize)),
        Message::Ready {
            staging_pages_max,
            disks,
        } => append(&(staging_pages_max, disks), out),
        Message::CopyDisks(body) => append(body, out),
        Message::Flushed(body) | Message::Settled(body) => append(body, out),
        Message::Begin(body) => append(body, out),
        Message::Commit(body) => append(body, out),
        Message::Ack(body) | Message::LetGo(body) => append(body, out),
        Message::Heartbeat(body) => append(body, out),
        Message::Goodbye(body) => append(body, out),
        Message::About(body) => append(body, out),
    }
    close_frame(out, start, message.kind())
}

/// Bytes that nothing on the way makes fewer of.
fn padding() -> impl Iterator<Item = u8> {
    let words = std::iter::successors(Some(0x9e37_79b9_u32), |word| {
        let word = word ^ (word << 13);
        let word = word ^ (word >> 17);
        Some(word ^ (word << 5))
    });
    words.flat_map(u32::to_le_bytes)
}

fn append<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    *out = postcard::to_extend(body, std::mem::take(out)).expect("plain data encodes into memory");
}

/// Reads a control message from a body whose checksum was checked.
pub fn decode(kind: FrameKind, body: &[u8]) -> Result<Message, FrameError> {
    Ok(match kind {
        FrameKind::Hello => Message::Hello(take(kind, body)?),
        FrameKind::Welcome => Message::Welcome(take(kind, body)?),
        FrameKind::Refuse => Message::Refuse(take(kind, body)?),
        FrameKind::Prepare if body.is_empty() => Message::Prepare,
        FrameKind::DisksReady if body.is_empty() => Message::DisksReady,
        FrameKind::Prepare | FrameKind::DisksReady => return Err(FrameError::body(kind, "it has a body")),
        FrameKind::Proof => Message::Proof {
            bytes: body.len() as u32,
        },
        FrameKind::Ready => {
            let (staging_pages_max, disks) = take(kind, body)?;
            Message::Ready {
                staging_pages_max,
                disks,
            }
        }
        FrameKind::CopyDisks => Message::CopyDisks(take(kind, body)?),
        FrameKind::Flushed => Message::Flushed(take(kind, body)?),
        FrameKind::Settled => Message::Settled(take(kind, body)?),
        FrameKind::Begin => Message::Begin(take(kind, body)?),
        FrameKind::Commit => Message::Commit(take(kind, body)?),
        FrameKind::Ack => Message::Ack(take(kind, body)?),
        FrameKind::LetGo => Message::LetGo(take(kind, body)?),
        FrameKind::Heartbeat => Message::Heartbeat(take(kind, body)?),
        FrameKind::Goodbye => Message::Goodbye(take(kind, body)?),
        FrameKind::About => Message::About(take(kind, body)?),
        FrameKind::CopyPages
        | FrameKind::Pages
        | FrameKind::State
        | FrameKind::DiskMap
        | FrameKind::DiskSums
        | FrameKind::DiskWanted
        | FrameKind::DiskBlocks
        | FrameKind::DiskStored => {
            return Err(FrameError::body(kind, "it carries no control message"));
        }
    })
}

fn take<T: DeserializeOwned>(kind: FrameKind, body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(FrameError::body(
            kind,
            format!("{} bytes are left over", rest.len()),
        )),
        Err(error) => Err(FrameError::body(kind, error.to_string())),
    }
}
