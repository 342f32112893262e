//! A look at the tables of a qcow2 image before the library has it: every cluster that is in use is counted as such, and
//! used for one thing.
//!
//! The library hands out clusters whose refcount is 0, and writes to a cluster as its L2 table says: a refcount that was
//! lost, or an entry that leads to a table, would have it write over what the image consists of. The layout is that of
//! QEMU's docs/interop/qcow2.txt.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::buffer::{AlignedBuffer, DIRECT_ALIGNMENT};
use super::header::Layout;

/// The bits of an entry of an L1 or L2 table that say where something lies.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Nobody else refers to it: it may be written in place.
const COPIED: u64 = 1 << 63;
/// It is compressed, and its entry is another.
const COMPRESSED: u64 = 1 << 62;
/// Bits of an entry that nobody knows: of an L1 table, of an L2 table, and of the refcount table.
const L1_RESERVED: u64 = !(OFFSET_MASK | COPIED);
const L2_RESERVED: u64 = !(OFFSET_MASK | COPIED | 1);
const REFCOUNT_RESERVED: u64 = 0x1ff;
/// What a compressed cluster counts its length in, in bytes.
const COMPRESSED_SECTOR_BYTES: u64 = 512;

/// Checks the tables of an image with this header, whose caller may have opened it with O_DIRECT.
///
/// # Errors
/// As a sentence.
pub fn check(file: &File, layout: &Layout) -> io::Result<()> {
    let refcounts = Refcounts::read(file, layout)?;
    let mut tables = Tables {
        file,
        layout,
        refcounts,
        taken: HashSet::new(),
    };
    tables.take("the header", 0, 1)?;
    tables.take("the L1 table", layout.l1_offset, layout.l1_entries * 8)?;
    tables.take(
        "the refcount table",
        layout.refcount_offset,
        layout.refcount_bytes,
    )?;
    for block in tables.refcounts.blocks.clone() {
        if block != 0 {
            tables.take("a refcount block", block, layout.cluster_bytes)?;
        }
    }
    let l1 = tables.entries(layout.l1_offset, layout.l1_entries)?;
    let l2_tables: Vec<u64> = l1
        .iter()
        .map(|entry| entry & OFFSET_MASK)
        .filter(|at| *at != 0)
        .collect();
    for entry in &l1 {
        if entry & L1_RESERVED != 0 {
            return Err(damaged("an entry of its L1 table has bits that are not known"));
        }
    }
    // First all tables, so that no data can lie in one of them.
    for table in &l2_tables {
        tables.take("an L2 table", *table, layout.cluster_bytes)?;
    }
    for table in l2_tables {
        tables.check_data(table)?;
    }
    Ok(())
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what}; see `qemu-img check -r all`"),
    )
}

/// Reads so many bytes, in units that O_DIRECT takes; what is behind the end of the file is zeros.
fn read(file: &File, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let align = DIRECT_ALIGNMENT as u64;
    let start = offset - offset % align;
    let end = (offset + bytes).next_multiple_of(align);
    let mut buffer = AlignedBuffer::new((end - start) as usize);
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], start + done as u64) {
            // A short read of direct I/O ends at the end of the file.
            Ok(0) => break,
            Ok(count) => done += count - count % DIRECT_ALIGNMENT.min(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if !done.is_multiple_of(DIRECT_ALIGNMENT) {
            break;
        }
    }
    let from = (offset - start) as usize;
    Ok(buffer[from..from + bytes as usize].to_vec())
}

fn longs(bytes: &[u8]) -> Vec<u64> {
    let long = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
    bytes.chunks_exact(8).map(long).collect()
}

/// How often each cluster of the file is in use.
struct Refcounts {
    /// Where the blocks lie; 0: all of its clusters are free.
    blocks: Vec<u64>,
    /// The block that was read last, by its number.
    last: Option<(usize, Vec<u8>)>,
    order: u32,
    per_block: u64,
}

impl Refcounts {
    fn read(file: &File, layout: &Layout) -> io::Result<Self> {
        let blocks = longs(&read(file, layout.refcount_offset, layout.refcount_bytes)?);
        let is_wrong =
            |block: &u64| block & REFCOUNT_RESERVED != 0 || !block.is_multiple_of(layout.cluster_bytes);
        if blocks.iter().any(is_wrong) {
            return Err(damaged("an entry of its refcount table is none"));
        }
        Ok(Self {
            blocks,
            last: None,
            order: layout.refcount_order,
            per_block: (layout.cluster_bytes * 8) >> layout.refcount_order,
        })
    }

    fn of(&mut self, file: &File, layout: &Layout, cluster: u64) -> io::Result<u64> {
        let number = usize::try_from(cluster / self.per_block).unwrap_or(usize::MAX);
        let block = self.blocks.get(number).copied().unwrap_or(0);
        if block == 0 {
            return Ok(0);
        }
        if self.last.as_ref().is_none_or(|(last, _)| *last != number) {
            self.last = Some((number, read(file, block, layout.cluster_bytes)?));
        }
        let Some((_, bytes)) = &self.last else {
            return Ok(0);
        };
        let index = (cluster % self.per_block) as usize;
        Ok(refcount_in(bytes, index, self.order))
    }
}

/// An entry of a refcount block: of less than a byte the first is in the lowest bits, of more the bytes are big-endian.
fn refcount_in(block: &[u8], index: usize, order: u32) -> u64 {
    match order {
        0..=2 => {
            let bit = index << order;
            let mask = (1u16 << (1 << order)) - 1;
            u64::from(u16::from(block[bit / 8]) >> (bit % 8) & mask)
        }
        _ => {
            let bytes = 1usize << (order - 3);
            let entry = &block[index * bytes..(index + 1) * bytes];
            entry.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
    }
}

struct Tables<'a> {
    file: &'a File,
    layout: &'a Layout,
    refcounts: Refcounts,
    /// Clusters in which something lies that nothing else may lie in.
    taken: HashSet<u64>,
}

impl Tables<'_> {
    fn entries(&self, offset: u64, count: u64) -> io::Result<Vec<u64>> {
        Ok(longs(&read(self.file, offset, count * 8)?))
    }

    /// Something lies here, and nothing else may.
    fn take(&mut self, what: &str, offset: u64, bytes: u64) -> io::Result<()> {
        let clusters = self.clusters(what, offset, bytes)?;
        for cluster in clusters {
            self.check_in_use(what, cluster)?;
            if !self.taken.insert(cluster) {
                return Err(damaged(format_args!("{what} lies where something else does")));
            }
        }
        Ok(())
    }

    fn clusters(&self, what: &str, offset: u64, bytes: u64) -> io::Result<std::ops::Range<u64>> {
        let end = offset
            .checked_add(bytes)
            .filter(|_| offset.is_multiple_of(self.layout.cluster_bytes));
        match end {
            Some(end) if offset < self.layout.file_bytes => {
                let clusters = offset / self.layout.cluster_bytes..end.div_ceil(self.layout.cluster_bytes);
                Ok(clusters)
            }
            _ => Err(damaged(format_args!("{what} lies where none can"))),
        }
    }

    fn check_in_use(&mut self, what: &str, cluster: u64) -> io::Result<u64> {
        match self.refcounts.of(self.file, self.layout, cluster)? {
            0 => Err(damaged(format_args!(
                "{what} lies in a cluster that counts as free"
            ))),
            count => Ok(count),
        }
    }

    /// The data that an L2 table names.
    fn check_data(&mut self, table: u64) -> io::Result<()> {
        for entry in self.entries(table, self.layout.cluster_bytes / 8)? {
            if entry & COMPRESSED != 0 {
                self.check_compressed(entry)?;
                continue;
            }
            let offset = entry & OFFSET_MASK;
            let is_nowhere = offset == 0 && entry & COPIED != 0;
            if is_nowhere || entry & L2_RESERVED != 0 || !offset.is_multiple_of(self.layout.cluster_bytes) {
                return Err(damaged("an entry of an L2 table is none"));
            }
            if offset == 0 {
                continue;
            }
            let cluster = offset / self.layout.cluster_bytes;
            let count = self.check_in_use("a part of the disk", cluster)?;
            // What may be written in place belongs to nobody else; what may not is copied first.
            let is_elsewhere = match entry & COPIED {
                0 => self.taken.contains(&cluster),
                _ => count != 1 || !self.taken.insert(cluster),
            };
            if is_elsewhere {
                return Err(damaged("a part of the disk lies where something else does"));
            }
        }
        Ok(())
    }

    fn check_compressed(&mut self, entry: u64) -> io::Result<()> {
        // The fewer bits the larger a cluster: 62 of offset and length in all.
        let offset_bits = 62 - (self.layout.cluster_bytes.ilog2() - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & !(COMPRESSED | COPIED)) >> offset_bits;
        let end = offset - offset % COMPRESSED_SECTOR_BYTES + (sectors + 1) * COMPRESSED_SECTOR_BYTES;
        for cluster in offset / self.layout.cluster_bytes..end.div_ceil(self.layout.cluster_bytes) {
            let is_behind = cluster * self.layout.cluster_bytes >= self.layout.file_bytes;
            if !is_behind {
                self.check_in_use("a part of the disk", cluster)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_are_read() {
        let block = [0b1110_0100, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde];
        let first = |order| {
            (0..4)
                .map(|index| refcount_in(&block, index, order))
                .collect::<Vec<_>>()
        };
        assert_eq!(first(0), [0, 0, 1, 0]);
        assert_eq!(first(1), [0, 1, 2, 3]);
        assert_eq!(first(2), [4, 14, 2, 1]);
        assert_eq!(first(3), [0b1110_0100, 0x12, 0x34, 0x56]);
        assert_eq!(refcount_in(&block, 1, 4), 0x3456);
        assert_eq!(refcount_in(&block, 1, 5), 0x789a_bcde);
        assert_eq!(refcount_in(&block, 0, 6), 0xe412_3456_789a_bcde);
    }
}
