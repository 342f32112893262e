//! A qcow2 image that somebody brings: opened read-only and read from end to end, or refused.

use std::path::Path;

use kemari_vmm::disk::{Disk, DiskConfig, Format, Operation};

use super::support::scratch::Scratch;

/// Bytes that an image's file is long, with zeros behind those of the input: clusters may lie there.
const FILE_BYTES: u64 = 1 << 20;
/// Bytes that are read at a time.
const READ_BYTES: u64 = 64 << 10;
/// How often it is read.
const READS_MAX: u64 = 64;

pub(crate) fn run(bytes: &[u8]) {
    let file = Scratch::with(bytes, FILE_BYTES);
    let config = config(file.path());
    let _ = Disk::examine(&config);
    let Ok(disk) = Disk::open(&config) else {
        return;
    };
    let size = disk.bytes();
    // All of a small disk, and of a large one a part here and there.
    let step = (size / READS_MAX).max(READ_BYTES);
    for offset in (0..size).step_by(step as usize) {
        let length = READ_BYTES.min(size - offset);
        let read = Operation::Read {
            offset,
            bytes: length as usize,
        };
        if let Ok(data) = disk.carry_out(&read) {
            assert_eq!(data.len() as u64, length);
        }
        disk.is_hole(&(offset..offset + length));
    }
}

fn config(path: &Path) -> DiskConfig {
    DiskConfig {
        format: Format::Qcow2,
        read_only: true,
        ignore_lock: true,
        ..DiskConfig::new(path)
    }
}

/// Images with one cluster of data and one of zeros, by the format's specification; versions 2 and 3.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let image = |version: u32, cluster_bits: u32, backing: &str| {
        let cluster = 1usize << cluster_bits;
        // Header, first-level table, second-level table, refcount table, refcount block, data.
        let mut bytes = vec![0; cluster * 6];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"QFI\xfb");
        put(4, &version.to_be_bytes());
        put(20, &cluster_bits.to_be_bytes());
        put(24, &(cluster as u64 * 4).to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &(cluster as u64).to_be_bytes());
        put(48, &(cluster as u64 * 3).to_be_bytes());
        put(56, &1u32.to_be_bytes());
        if version == 3 {
            // Refcounts of 16 bits; the header's length.
            put(96, &4u32.to_be_bytes());
            put(100, &104u32.to_be_bytes());
        }
        if !backing.is_empty() {
            put(8, &(cluster as u64 - 64).to_be_bytes());
            put(16, &(backing.len() as u32).to_be_bytes());
            put(cluster - 64, backing.as_bytes());
        }
        let copied = 1u64 << 63;
        put(cluster, &((cluster as u64 * 2) | copied).to_be_bytes());
        put(cluster * 2, &((cluster as u64 * 5) | copied).to_be_bytes());
        put(cluster * 2 + 8, &u64::from(version == 3).to_be_bytes());
        put(cluster * 3, &(cluster as u64 * 4).to_be_bytes());
        (0..6).for_each(|number| put(cluster * 4 + number * 2, &1u16.to_be_bytes()));
        put(cluster * 5, b"data");
        bytes
    };
    vec![
        image(3, 9, ""),
        image(2, 9, ""),
        image(3, 10, ""),
        image(3, 9, "disk.raw"),
        image(3, 9, "/dev/shm/x"),
    ]
}
