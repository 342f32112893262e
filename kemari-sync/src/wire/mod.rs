//! What goes over the wire: frames with a fixed header, control messages, batches of pages, device state; and
//! what either end keeps of it: of which pages a sender can send differences, and where a receiver collects a
//! sync.
//!
//! The adapters move the bytes. See docs/protocol.md.

mod about;
mod blocks;
mod delta;
mod frame;
mod message;
mod pages;
mod staging;
mod state;

pub use about::{ABOUT_BYTES_MAX, About, FeatureLeaf};
pub use blocks::{
    BLOCK_BYTES_MAX, BlockFrame, CHUNK_BYTES, CHUNK_SUM_BYTES, CHUNKS_PER_FRAME_MAX, encode_blocks,
};
pub use delta::{DELTA_BYTES_MAX, DeltaCache, apply_delta, base_checksum, encode_delta, is_delta};
pub use frame::{
    FRAME_VERSION, FrameError, FrameHeader, FrameKind, HEADER_BYTES, MAGIC, decode, encode, seal,
};
pub use message::{
    Begin, Channel, Commit, CommitId, DiskMark, Goodbye, Heartbeat, Hello, Message, PROOF_BYTES,
    PROTOCOL_VERSION, REASON_BYTES_MAX, Welcome, reason_text, shortened,
};
pub use pages::{PAGE_BYTES, PAGES_PER_FRAME_MAX, Page, PageBatch, PageBatchWriter, PageContent, Pages};
pub use staging::{Staging, StagingError, SyncTally};
pub use state::{STATE_BYTES_MAX, StateFrame, encode_state};
