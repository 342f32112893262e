//! Connections between hosts: two ordered channels each way, which stall while the way is cut.

use std::collections::VecDeque;

use crate::primary::SessionId;
use crate::wire::Message;

use super::parts::{Content, Part};

/// What travels. Pages and state never go through the state machines.
#[derive(Clone, Debug)]
pub(super) enum Frame {
    Message(Message),
    CopyPages(Vec<(usize, u64)>),
    Pages(Vec<(usize, Content)>),
    States(Vec<Part>),
    /// Blocks of the replicated disk, for the other image.
    Blocks(Vec<(usize, (u64, u64))>),
    /// Blocks of the secondary's image that may differ.
    Marks(u32),
    /// So many frames of blocks are durable on the secondary's image.
    Stored(u64),
    /// Damaged on the way.
    Rubbish,
    /// The other end closed or died.
    Closed,
}

/// One end of a connection: a process on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) host: usize,
    pub(super) life: u64,
}

/// Index of the primary's end, and of the frames it sends.
pub(super) const PRIMARY: usize = 0;
/// Index of the secondary's end, and of the frames it sends.
pub(super) const SECONDARY: usize = 1;

pub(super) struct Connection {
    pub(super) id: SessionId,
    pub(super) ends: [End; 2],
    pub(super) open: [bool; 2],
    /// A message as long as a sync's has come back over it.
    pub(super) is_proved: bool,
    /// By sender, then by channel (main, heartbeat): frames with the time in microseconds at which they
    /// arrive.
    pub(super) queues: [[VecDeque<(u64, Frame)>; 2]; 2],
}

/// Which ways are cut: `cut[from][to]`.
pub(super) type Cuts = [[bool; super::HOSTS]; super::HOSTS];
