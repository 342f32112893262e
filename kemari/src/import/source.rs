//! Images that Kemari reads itself.

use std::ops::Range;
use std::path::Path;

use anyhow::Context;
use kemari_vmm::disk::{Disk, DiskConfig, Format, Operation};

use super::Source;
use super::destination::Destination;
use super::progress::Progress;

/// What is looked at at a time for holes, the largest first; what is read at a time;
/// and the least that becomes a hole.
const HOLE_STEPS: [u64; 2] = [1 << 30, READ_BYTES];
const READ_BYTES: u64 = 1 << 20;
const GRANULE_BYTES: u64 = 64 << 10;

/// A raw or qcow2 image, locked as one that is read.
pub(crate) struct Own {
    disk: Disk,
    bytes: u64,
    data: Vec<Range<u64>>,
}

impl Own {
    /// Opens it as a VM would that only reads it, and finds its holes.
    pub(super) fn open(image: &Path, format: Format) -> anyhow::Result<Self> {
        let config = DiskConfig {
            format,
            read_only: true,
            ..DiskConfig::new(image)
        };
        let disk = Disk::open(&config)?;
        // All of it, not only whole blocks.
        let bytes = disk.bytes_now().with_context(|| format!("{}", image.display()))?;
        let data = find_data(bytes, |range| disk.is_hole(range));
        Ok(Self { disk, bytes, data })
    }
}

impl Source for Own {
    fn disk_bytes(&self) -> u64 {
        self.bytes
    }

    fn data_bytes(&self) -> u64 {
        self.data.iter().map(|range| range.end - range.start).sum()
    }

    fn copy(&self, destination: &Destination, progress: &mut Progress) -> anyhow::Result<()> {
        for range in &self.data {
            let mut offset = range.start;
            while offset < range.end {
                let bytes = (range.end - offset).min(READ_BYTES) as usize;
                let data = self
                    .disk
                    .carry_out(&Operation::Read { offset, bytes })
                    .with_context(|| format!("the bytes from {offset} on cannot be read"))?;
                for (place, part) in (offset..)
                    .step_by(GRANULE_BYTES as usize)
                    .zip(data.chunks(GRANULE_BYTES as usize))
                {
                    if part.iter().any(|byte| *byte != 0) {
                        destination.write(place, part)?;
                    }
                }
                progress.add(bytes as u64);
                offset += bytes as u64;
            }
        }
        Ok(())
    }
}

/// What of so many bytes is no hole.
fn find_data(bytes: u64, is_hole: impl Fn(&Range<u64>) -> bool) -> Vec<Range<u64>> {
    let mut data: Vec<Range<u64>> = Vec::new();
    let mut offset = 0;
    while offset < bytes {
        let step = |step: u64| offset..bytes.min(offset + step);
        let hole = HOLE_STEPS.into_iter().map(step).find(|range| is_hole(range));
        if let Some(hole) = hole {
            offset = hole.end;
            continue;
        }
        let end = step(READ_BYTES).end;
        for start in (offset..end).step_by(GRANULE_BYTES as usize) {
            let part = start..end.min(start + GRANULE_BYTES);
            match data.last_mut() {
                _ if is_hole(&part) => {}
                Some(last) if last.end == part.start => last.end = part.end,
                _ => data.push(part),
            }
        }
        offset = end;
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_of_any_size_are_found() {
        const MIB: u64 = 1 << 20;
        let written = [
            0..1,
            5 * MIB + 70_000..5 * MIB + 140_000,
            (4 << 30) - 1..(4 << 30) + 9,
        ];
        let is_hole = |range: &Range<u64>| {
            written
                .iter()
                .all(|data| data.end <= range.start || range.end <= data.start)
        };
        let found = find_data((4 << 30) + 9, is_hole);
        let expected = [
            0..GRANULE_BYTES,
            5 * MIB + GRANULE_BYTES..5 * MIB + 3 * GRANULE_BYTES,
            (4 << 30) - GRANULE_BYTES..(4 << 30) + 9,
        ];
        assert_eq!(found, expected);
        assert_eq!(find_data(10 << 40, |_| true), []);
    }
}
