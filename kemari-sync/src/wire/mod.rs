//! What goes over the wire: frames with a fixed header, control messages, batches of pages, device state.
//!
//! Only encoding and decoding: the adapters move the bytes. See docs/protocol.md.

mod about;
mod blocks;
mod frame;
mod message;
mod pages;
mod state;

pub use about::{ABOUT_BYTES_MAX, About, FeatureLeaf};
pub use blocks::{
    BLOCK_BYTES_MAX, BlockFrame, CHUNK_BYTES, CHUNK_SUM_BYTES, CHUNKS_PER_FRAME_MAX, encode_blocks,
};
pub use frame::{
    FRAME_VERSION, FrameError, FrameHeader, FrameKind, HEADER_BYTES, MAGIC, decode, encode, seal,
};
pub use message::{
    Begin, Channel, Commit, CommitId, DiskMark, Goodbye, Heartbeat, Hello, Message, PROOF_BYTES,
    PROTOCOL_VERSION, REASON_BYTES_MAX, Welcome, reason_text, shortened,
};
pub use pages::{PAGE_BYTES, PAGES_PER_FRAME_MAX, Page, PageBatch, PageBatchWriter, PageContent, Pages};
pub use state::{STATE_BYTES_MAX, StateFrame, encode_state};
