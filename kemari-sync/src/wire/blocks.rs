//! Frames about the blocks of replicated disks: maps, checksums, what is wanted, and the blocks themselves.
//!
//! `disk: u16`, zero: u16, `count: u32`, `place: u64`, then bytes to the end of the body. What they mean
//! depends on the kind of the frame:
//!
//! | kind | `place` | `count` | bytes |
//! |---|---|---|---|
//! | `DiskMap` | 0 | bytes | the map of changed extents, a bit each |
//! | `DiskSums` | first chunk | chunks | a checksum of [`CHUNK_SUM_BYTES`] each |
//! | `DiskWanted` | first chunk | chunks | a bit each |
//! | `DiskBlocks` | offset in bytes | bytes | the blocks; none: they are zeros |
//! | `DiskStored` | blocks and sums received so far that are durable, in frames | 0 | none |

use super::frame::{FrameError, FrameHeader, FrameKind, close_frame, open_frame};

/// Bytes of a chunk, the unit in which images are compared.
pub const CHUNK_BYTES: u64 = 64 << 10;
/// Bytes of a chunk's checksum.
pub const CHUNK_SUM_BYTES: usize = 16;
/// Most chunks that are compared with one frame.
pub const CHUNKS_PER_FRAME_MAX: u32 = 256;
/// Most bytes of blocks in one frame.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;
const PREFIX_BYTES: usize = 16;
pub(super) const BLOCK_FRAME_BYTES_MAX: usize = PREFIX_BYTES + BLOCK_BYTES_MAX;

/// A frame about the blocks of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFrame<'a> {
    /// Which of the replicated disks.
    pub disk: u16,
    /// How many of what the kind of the frame says.
    pub count: u32,
    /// Where.
    pub place: u64,
    /// What.
    pub bytes: &'a [u8],
}

impl<'a> BlockFrame<'a> {
    /// Reads a body whose checksum was checked.
    pub fn parse(kind: FrameKind, body: &'a [u8]) -> Result<Self, FrameError> {
        let Some((prefix, bytes)) = body.split_first_chunk::<PREFIX_BYTES>() else {
            return Err(FrameError::body(
                kind,
                format!("{} bytes are too few", body.len()),
            ));
        };
        let frame = Self {
            disk: u16::from_le_bytes([prefix[0], prefix[1]]),
            count: u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]),
            place: u64::from_le_bytes(prefix[8..].try_into().expect("eight bytes")),
            bytes,
        };
        let count = frame.count as usize;
        let chunks = (1..=CHUNKS_PER_FRAME_MAX as usize).contains(&count);
        let fits = match kind {
            FrameKind::DiskMap => bytes.len() == count,
            FrameKind::DiskSums => chunks && bytes.len() == count * CHUNK_SUM_BYTES,
            FrameKind::DiskWanted => chunks && bytes.len() == count.div_ceil(8),
            FrameKind::DiskBlocks => {
                (1..=BLOCK_BYTES_MAX).contains(&count) && (bytes.is_empty() || bytes.len() == count)
            }
            FrameKind::DiskStored => count == 0 && bytes.is_empty(),
            _ => false,
        };
        let reserved = u16::from_le_bytes([prefix[2], prefix[3]]);
        match fits && reserved == 0 && frame.place.checked_add(count as u64).is_some() {
            true => Ok(frame),
            false => Err(FrameError::body(
                kind,
                format!("{count} do not go with {} bytes", bytes.len()),
            )),
        }
    }
}

/// Appends a frame of one of the kinds above. Returns its header.
///
/// # Panics
/// If it is longer than its kind may be.
pub fn encode_blocks(kind: FrameKind, frame: &BlockFrame<'_>, out: &mut Vec<u8>) -> FrameHeader {
    let start = open_frame(out);
    out.extend_from_slice(&frame.disk.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&frame.count.to_le_bytes());
    out.extend_from_slice(&frame.place.to_le_bytes());
    out.extend_from_slice(frame.bytes);
    close_frame(out, start, kind)
}
