//! Chunks of an image, the unit in which two images are compared and copied.

use std::io;
use std::ops::Range;
use std::sync::LazyLock;

use kemari_sync::wire::{CHUNK_BYTES, CHUNK_SUM_BYTES};
use kemari_vmm::disk::{Disk, Operation};

/// The bytes of a chunk; the last one of an image may be shorter.
fn chunk_range(disk: &Disk, chunk: u64) -> io::Result<Range<u64>> {
    let start = chunk
        .checked_mul(CHUNK_BYTES)
        .filter(|start| *start < disk.bytes())
        .ok_or_else(|| io::Error::other("a chunk beyond the end of the disk"))?;
    Ok(start..disk.bytes().min(start.saturating_add(CHUNK_BYTES)))
}

/// Reads a chunk.
pub(super) fn read_chunk(disk: &Disk, chunk: u64) -> io::Result<Vec<u8>> {
    let range = chunk_range(disk, chunk)?;
    disk.carry_out(&Operation::Read {
        offset: range.start,
        bytes: (range.end - range.start) as usize,
    })
}

/// The checksum of a chunk, and how many bytes were read for it: none of a hole.
pub(super) fn chunk_sum(disk: &Disk, chunk: u64) -> io::Result<([u8; CHUNK_SUM_BYTES], usize)> {
    static OF_ZEROS: LazyLock<[u8; CHUNK_SUM_BYTES]> = LazyLock::new(|| checksum(&[0; CHUNK_BYTES as usize]));
    let range = chunk_range(disk, chunk)?;
    if range.end - range.start == CHUNK_BYTES && disk.is_hole(&range) {
        return Ok((*OF_ZEROS, 0));
    }
    let data = read_chunk(disk, chunk)?;
    Ok((checksum(&data), data.len()))
}

/// A checksum that no guest can make collide.
pub(super) fn checksum(data: &[u8]) -> [u8; CHUNK_SUM_BYTES] {
    let mut sum = [0; CHUNK_SUM_BYTES];
    sum.copy_from_slice(&blake3::hash(data).as_bytes()[..CHUNK_SUM_BYTES]);
    sum
}
