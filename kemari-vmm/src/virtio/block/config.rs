//! What a driver reads of its disk: features and configuration space (virtio 1.2, sections 5.2.3 and 5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::{BlockSpec, SEGMENTS_MAX, ZERO_SECTORS_MAX};
use crate::disk::SECTOR_BYTES;
use crate::memory::PAGE_BYTES;

/// Bytes of the configuration space, up to `write_zeroes_may_unmap` and its padding.
const CONFIG_BYTES: usize = 60;

/// Features that are offered.
pub fn features(spec: &BlockSpec) -> u64 {
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
pub fn space(spec: &BlockSpec, capacity_sectors: u64) -> Vec<u8> {
    let mut config = vec![0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &capacity_sectors.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &spec.block_bytes.to_le_bytes());
    // Topology: a physical block is a page of the host, where one is larger than a block; no offset; I/O is best in
    // physical blocks.
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
