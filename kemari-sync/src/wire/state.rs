//! State frames: one component's saved state, opaque to the mechanism.
//!
//! `kind: u16`, `instance: u16`, `version: u16`, zero: u16, then the encoded bytes to the end of the body.
//! Kind and version stand outside the encoded bytes, so that an older reader can say what it cannot read.

use super::frame::{FrameError, FrameHeader, FrameKind, close_frame, open_frame};

/// Longest encoded state of one component, in bytes.
pub const STATE_BYTES_MAX: usize = 4 << 20;
const PREFIX_BYTES: usize = 8;
pub(super) const STATE_FRAME_BYTES_MAX: usize = PREFIX_BYTES + STATE_BYTES_MAX;

/// One component's state, as it lies in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateFrame<'a> {
    /// What component; the machine knows the numbers.
    pub kind: u16,
    /// Which one of its kind.
    pub instance: u16,
    /// Version of the encoding in `bytes`.
    pub version: u16,
    /// The encoded state.
    pub bytes: &'a [u8],
}

impl<'a> StateFrame<'a> {
    /// Reads a body whose checksum was checked.
    pub fn parse(body: &'a [u8]) -> Result<Self, FrameError> {
        let refuse = |reason: String| Err(FrameError::body(FrameKind::State, reason));
        let Some((prefix, bytes)) = body.split_first_chunk::<PREFIX_BYTES>() else {
            return refuse(format!("{} bytes are too few", body.len()));
        };
        let field = |at: usize| u16::from_le_bytes([prefix[at], prefix[at + 1]]);
        match field(6) {
            0 => Ok(Self {
                kind: field(0),
                instance: field(2),
                version: field(4),
                bytes,
            }),
            reserved => refuse(format!("its reserved field is {reserved:#x}")),
        }
    }
}

/// Appends one component's state as a frame. Fails if it exceeds [`STATE_BYTES_MAX`].
pub fn encode_state(state: &StateFrame<'_>, out: &mut Vec<u8>) -> Result<FrameHeader, FrameError> {
    let (length, limit) = (PREFIX_BYTES + state.bytes.len(), STATE_FRAME_BYTES_MAX);
    if length > limit {
        return Err(FrameError::TooLong {
            kind: FrameKind::State,
            length,
            limit,
        });
    }
    let start = open_frame(out);
    for field in [state.kind, state.instance, state.version, 0] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(state.bytes);
    Ok(close_frame(out, start, FrameKind::State))
}
