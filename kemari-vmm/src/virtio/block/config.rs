//! What a guest sees of its disk: what is configured, queues, features and configuration space (virtio 1.2,
//! sections 5.2.2 to 5.2.4).

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::{QUEUES_MAX, SEGMENTS_MAX, ZERO_SECTORS_MAX};
use crate::disk::SECTOR_BYTES;
use crate::memory::PAGE_BYTES;
use crate::virtio::{QueueRole, QueueSpec};

/// Bytes of the configuration space, up to `write_zeroes_may_unmap` and its padding.
const CONFIG_BYTES: usize = 60;

/// The queues by number, with their names behind the disk's.
pub(crate) static QUEUES: [QueueSpec; QUEUES_MAX as usize] = [
    queue(""),
    queue(".1"),
    queue(".2"),
    queue(".3"),
    queue(".4"),
    queue(".5"),
    queue(".6"),
    queue(".7"),
];

const fn queue(suffix: &'static str) -> QueueSpec {
    QueueSpec {
        suffix,
        entries_max: 256,
        role: QueueRole::Requests,
    }
}

/// What of a disk the guest sees, the same on every host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockSpec {
    /// Serial number; the guest sees the first 20 bytes.
    pub serial: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Bytes of a logical block: 512 or 4096. Requests are whole blocks.
    pub block_bytes: u32,
    /// Number of queues, 1 to [`QUEUES_MAX`].
    pub queues: u16,
}

impl BlockSpec {
    /// A disk with one queue and blocks of a sector.
    pub fn new(serial: &str, read_only: bool) -> Self {
        Self {
            serial: serial.into(),
            read_only,
            block_bytes: SECTOR_BYTES as u32,
            queues: 1,
        }
    }
}

/// Features that are offered.
pub(crate) fn features(spec: &BlockSpec) -> u64 {
    let common = 1 << VIRTIO_BLK_F_FLUSH
        | 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY;
    let writing = match spec.read_only {
        true => 1 << VIRTIO_BLK_F_RO,
        false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
    };
    let queues = if spec.queues > 1 { 1 << VIRTIO_BLK_F_MQ } else { 0 };
    common | writing | queues
}

/// The configuration space.
pub(crate) fn space(spec: &BlockSpec, capacity_sectors: u64) -> Vec<u8> {
    let mut config = vec![0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &capacity_sectors.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &spec.block_bytes.to_le_bytes());
    // Topology: a physical block is a page of the host, where one is larger than a block; no offset; I/O is
    // best in physical blocks.
    let physical_exponent = (PAGE_BYTES as u32 / spec.block_bytes).trailing_zeros();
    let blocks_a_page = PAGE_BYTES as u32 / spec.block_bytes;
    put(24, &[physical_exponent as u8]);
    put(26, &(blocks_a_page as u16).to_le_bytes());
    put(34, &spec.queues.to_le_bytes());
    if !spec.read_only {
        put(36, &ZERO_SECTORS_MAX.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &(spec.block_bytes / SECTOR_BYTES as u32).to_le_bytes());
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
    }
    config
}
