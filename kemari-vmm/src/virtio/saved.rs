//! A virtio device's state, as it is saved and loaded.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use super::request::SavedRequest;
use super::transport::Transport;
use crate::state::{State, StateKind};

/// A queue.
#[derive(Serialize, Deserialize)]
pub(crate) struct SavedQueue {
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

/// A device: `R` are the requests of its back end, `S` what else that has of state.
#[derive(Serialize, Deserialize)]
pub(crate) struct SavedDevice<R, S> {
    pub transport: Transport,
    pub queues: Vec<SavedQueue>,
    pub requests: Vec<SavedRequest<R>>,
    pub(crate) next_request: u64,
    pub backend: S,
}

impl<R, S> State for SavedDevice<R, S>
where
    R: Serialize + DeserializeOwned,
    S: Serialize + DeserializeOwned,
{
    const KIND: StateKind = StateKind::Virtio;
    const VERSION: u16 = 2;
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> Self {
        Self {
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl SavedQueue {
    /// As the queue library knows it, of a device that offers so many entries.
    pub(crate) fn with_max_size(&self, max_size: u16) -> QueueState {
        QueueState {
            max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: self.event_idx_enabled,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        }
    }
}
