//! What must be on a disk, and what may be: a plain vector, and for each sector what was written to it when.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Result, bail, ensure};

use super::log::Entry;
use crate::own_file::SECTOR_BYTES;

/// Sectors that are named in a finding.
const FINDINGS_MAX: usize = 3;

/// Something that was asked of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// These sectors are written, with what [`content`] says.
    Write(Range<u64>),
    /// These sectors become zeros.
    Zero(Range<u64>),
    /// All that has ended becomes durable.
    Flush,
    /// The disk becomes so many sectors long, durably.
    Grow(u64),
}

/// What request `id` writes to a sector.
pub(crate) fn content(id: u64, sector: u64) -> [u8; SECTOR_BYTES as usize] {
    let stamp = (id << 32 | sector).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; SECTOR_BYTES as usize];
    for part in bytes.as_chunks_mut::<8>().0 {
        *part = stamp.to_ne_bytes();
    }
    bytes
}

/// The disk as it was asked to be.
#[derive(Debug)]
pub(crate) struct Model {
    asked: HashMap<u64, Asked>,
    /// For each sector, the requests that change it, in order.
    changes: Vec<Vec<u64>>,
    /// Every request that has ended is durable.
    write_through: bool,
}

impl Model {
    /// A disk of so many sectors of zeros.
    pub(crate) fn new(sectors: u64, write_through: bool) -> Self {
        Self {
            asked: HashMap::new(),
            changes: vec![Vec::new(); sectors as usize],
            write_through,
        }
    }

    /// Sectors of the disk.
    pub(crate) fn sectors(&self) -> u64 {
        self.changes.len() as u64
    }

    /// A request is about to be given to the disk.
    pub(crate) fn ask(&mut self, id: u64, asked: Asked) {
        match &asked {
            Asked::Write(range) | Asked::Zero(range) => {
                for sector in range.clone() {
                    self.changes[sector as usize].push(id);
                }
            }
            Asked::Flush => {}
            Asked::Grow(sectors) => self.changes.resize(*sectors as usize, Vec::new()),
        }
        self.asked.insert(id, asked);
    }

    /// What is in a sector, once all that was asked is done.
    pub(crate) fn now(&self, sector: u64) -> [u8; SECTOR_BYTES as usize] {
        let last = self.changes[sector as usize].last();
        self.content_of(last.copied(), sector)
    }

    fn content_of(&self, id: Option<u64>, sector: u64) -> [u8; SECTOR_BYTES as usize] {
        match id.and_then(|id| Some((id, self.asked.get(&id)?))) {
            Some((id, Asked::Write(_))) => content(id, sector),
            _ => [0; SECTOR_BYTES as usize],
        }
    }

    /// When everything was asked and has ended, by the places in the log.
    pub(crate) fn times(&self, entries: &[Entry]) -> Times {
        let mut times = Times::default();
        for (place, entry) in entries.iter().enumerate() {
            match entry {
                Entry::Asked(id) => drop(times.asked.insert(*id, place)),
                Entry::Ended(id) => drop(times.ended.insert(*id, place)),
                Entry::Changed(_) | Entry::Synced => {}
            }
        }
        times
    }

    /// What the disk may be if it is cut at this place in the log. `keeps_all`: nothing is lost that has
    /// reached the file, as when the process is killed.
    pub(crate) fn at(&self, times: &Times, place: usize, keeps_all: bool) -> Expected<'_> {
        let (mut durable_before, mut sectors_min) = (0, 0);
        for (id, asked) in &self.asked {
            let has_ended = times.ended.get(id).is_some_and(|ended| *ended < place);
            match asked {
                Asked::Flush | Asked::Grow(_) if has_ended => {
                    durable_before = durable_before.max(times.asked[id]);
                }
                _ => {}
            }
            if let Asked::Grow(sectors) = asked
                && has_ended
            {
                sectors_min = sectors_min.max(*sectors);
            }
        }
        if keeps_all || self.write_through {
            durable_before = place;
        }
        let bounds = self.changes.iter().map(|changes| {
            let is_durable = |id: &u64| times.ended.get(id).is_some_and(|ended| *ended < durable_before);
            let is_asked = |id: &u64| times.asked.get(id).is_some_and(|asked| *asked < place);
            let durable = changes.partition_point(is_durable);
            durable..changes.partition_point(is_asked)
        });
        Expected {
            model: self,
            bounds: bounds.collect(),
            sectors_min,
        }
    }
}

/// Places in the log.
#[derive(Debug, Default)]
pub(crate) struct Times {
    asked: HashMap<u64, usize>,
    ended: HashMap<u64, usize>,
}

/// What may be found after a cut.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    model: &'a Model,
    /// For each sector, how many of its changes must be there, and how many can be.
    bounds: Vec<Range<usize>>,
    sectors_min: u64,
}

impl Expected<'_> {
    /// Judges what was found.
    pub(crate) fn judge(&self, found: &[u8]) -> Result<()> {
        let sectors = found.len() as u64 / SECTOR_BYTES;
        ensure!(
            sectors >= self.sectors_min,
            "it has {sectors} sectors, and {} were durable",
            self.sectors_min
        );
        let mut wrong = Vec::new();
        for (sector, bounds) in (0..).zip(&self.bounds) {
            let start = (sector * SECTOR_BYTES) as usize;
            let is_right = match found.get(start..start + SECTOR_BYTES as usize) {
                Some(bytes) => self.may_be(sector, bounds, bytes),
                None => bounds.start == 0,
            };
            if !is_right {
                wrong.push(sector);
            }
        }
        if let Some(first) = wrong.first() {
            let bounds = &self.bounds[*first as usize];
            bail!(
                "{} sectors are wrong, as {:?}: of sector {first} {} changes were durable and {} were asked \
                 for, and it has something else",
                wrong.len(),
                &wrong[..wrong.len().min(FINDINGS_MAX)],
                bounds.start,
                bounds.end
            );
        }
        Ok(())
    }

    fn may_be(&self, sector: u64, bounds: &Range<usize>, bytes: &[u8]) -> bool {
        let changes = &self.model.changes[sector as usize];
        let is = |id: Option<u64>| self.model.content_of(id, sector) == *bytes;
        match bounds.start.checked_sub(1) {
            // The last durable one, or any later one.
            Some(last) => changes[last..bounds.end].iter().any(|id| is(Some(*id))),
            None => is(None) || changes[..bounds.end].iter().any(|id| is(Some(*id))),
        }
    }
}
