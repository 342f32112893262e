//! The durable record of one image: whose it is, of which reign, and which of its parts may differ from the
//! other host's image.
//!
//! Two slots hold the head, written in turn, each with a sequence number and a checksum: a torn write leaves
//! the other one. Behind them lies a map with a bit for each extent, in sectors with a checksum each; a
//! damaged sector counts as all set. A bit is set durably before its extent is written, and cleared only when
//! both images have it durably.
//!
//! | offset | |
//! |---|---|
//! | 0, 4096 | the two slots of the head |
//! | 8192 | the map: sectors of 512 bytes, 508 of them bits |

use std::io;
use std::ops::Range;

use kemari_sync::{ImageHistory, new_extents};
use serde::{Deserialize, Serialize};

use super::store::{SECTOR_BYTES, Store};

/// Bytes of an extent, the unit of the map.
pub(crate) const EXTENT_BYTES: u64 = 4 << 20;

/// First bytes of a slot: "KMRR" and the version of the layout.
const MAGIC: [u8; 8] = *b"KMRR\x01\0\0\0";
const SLOT_BYTES: u64 = 4096;
const MAP_OFFSET: u64 = 2 * SLOT_BYTES;
/// Longest encoded head, in bytes: one sector, which a power cut does not tear.
const HEAD_BYTES_MAX: usize = SECTOR_BYTES - 16;
/// Bytes of bits in a sector of the map; its checksum follows.
const MAP_SECTOR_BYTES: usize = SECTOR_BYTES - 4;

/// The record's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The VM's name.
    pub vm: String,
    /// The disk's id.
    pub disk: String,
    /// Size of the image in bytes.
    pub(crate) image_bytes: u64,
    /// What the mechanism knows of the image.
    pub history: ImageHistory,
}

/// A record and where it lies.
pub(crate) struct Record {
    store: Box<dyn Store>,
    head: Head,
    sequence: u32,
    map: Map,
}

/// A record that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// It cannot be read or written.
    #[error("the record of changed blocks cannot be read or written")]
    Io(#[from] io::Error),
    /// Neither slot holds a head.
    #[error(
        "the record of changed blocks is damaged, or none: if the image is the right one, remove the record, \
         and start with --adopt-disks"
    )]
    Damaged,
    /// A later Kemari wrote it.
    #[error("the record of changed blocks was written by another version of Kemari")]
    Version,
}

/// Bits of extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    bits: Vec<u64>,
    extents: u64,
}

impl Map {
    /// A map for an image of so many bytes, with no bit set.
    pub(crate) fn new(image_bytes: u64) -> Self {
        let extents = image_bytes.div_ceil(EXTENT_BYTES);
        Self {
            bits: vec![0; extents.div_ceil(64) as usize],
            extents,
        }
    }

    /// How many sectors the map of an image of so many bytes takes.
    fn sectors_for(image_bytes: u64) -> u64 {
        image_bytes
            .div_ceil(EXTENT_BYTES)
            .div_ceil(8 * MAP_SECTOR_BYTES as u64)
    }

    /// The extents that a range of bytes touches.
    pub(crate) fn touched(range: &Range<u64>) -> Range<u64> {
        range.start / EXTENT_BYTES..range.end.div_ceil(EXTENT_BYTES)
    }

    /// Whether an extent's bit is set.
    pub(crate) fn has(&self, extent: u64) -> bool {
        extent < self.extents && self.bits[(extent / 64) as usize] & 1 << (extent % 64) != 0
    }

    /// Sets an extent's bit; returns whether it was not.
    pub(crate) fn set(&mut self, extent: u64) -> bool {
        if extent >= self.extents || self.has(extent) {
            return false;
        }
        self.bits[(extent / 64) as usize] |= 1 << (extent % 64);
        true
    }

    /// Clears an extent's bit.
    pub(crate) fn clear(&mut self, extent: u64) {
        if extent < self.extents {
            self.bits[(extent / 64) as usize] &= !(1 << (extent % 64));
        }
    }

    /// Sets all bits.
    pub(crate) fn set_all(&mut self) {
        (0..self.extents).for_each(|extent| {
            self.set(extent);
        });
    }

    /// Becomes a map for a larger image; the bits of what is new are set.
    fn grow(&mut self, old_bytes: u64, image_bytes: u64) {
        self.extents = image_bytes.div_ceil(EXTENT_BYTES);
        self.bits.resize(self.extents.div_ceil(64) as usize, 0);
        new_extents(old_bytes, image_bytes, EXTENT_BYTES).for_each(|extent| {
            self.set(extent);
        });
    }

    /// Sets what another map has set.
    pub(crate) fn unite(&mut self, other: &Self) {
        for (bits, others) in self.bits.iter_mut().zip(&other.bits) {
            *bits |= others;
        }
    }

    /// The extents whose bits are set.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.extents).filter(|extent| self.has(*extent))
    }

    /// Number of bits set.
    pub(crate) fn count(&self) -> u64 {
        self.bits.iter().map(|bits| u64::from(bits.count_ones())).sum()
    }

    /// The bits as bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.bits.iter().flat_map(|bits| bits.to_le_bytes()).collect()
    }

    /// A map for an image of so many bytes from its bits; none if they are not as many.
    pub(crate) fn from_bytes(image_bytes: u64, bytes: &[u8]) -> Option<Self> {
        let mut map = Self::new(image_bytes);
        if bytes.len() != map.bits.len() * 8 {
            return None;
        }
        for extent in 0..map.extents {
            if bytes[(extent / 8) as usize] & 1 << (extent % 8) != 0 {
                map.set(extent);
            }
        }
        Some(map)
    }

    fn sector(&self, sector: u64) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        let first = sector * MAP_SECTOR_BYTES as u64;
        for (index, byte) in bytes[..MAP_SECTOR_BYTES].iter_mut().enumerate() {
            let place = first + index as u64;
            if let Some(bits) = self.bits.get((place / 8) as usize) {
                *byte = bits.to_le_bytes()[(place % 8) as usize];
            }
        }
        let checksum = crc32fast::hash(&bytes[..MAP_SECTOR_BYTES]) ^ sector as u32;
        bytes[MAP_SECTOR_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn sector_of(extent: u64) -> u64 {
        extent / (8 * MAP_SECTOR_BYTES as u64)
    }

    fn sectors(&self) -> u64 {
        self.extents.div_ceil(8 * MAP_SECTOR_BYTES as u64)
    }

    /// Takes the bits of a sector; all of its extents count as changed if it is damaged.
    fn load_sector(&mut self, sector: u64, bytes: &[u8; SECTOR_BYTES]) {
        let checksum = crc32fast::hash(&bytes[..MAP_SECTOR_BYTES]) ^ sector as u32;
        let is_whole = bytes[MAP_SECTOR_BYTES..] == checksum.to_le_bytes();
        let first = sector * 8 * MAP_SECTOR_BYTES as u64;
        for bit in 0..8 * MAP_SECTOR_BYTES as u64 {
            if !is_whole || bytes[(bit / 8) as usize] & 1 << (bit % 8) != 0 {
                self.set(first + bit);
            }
        }
    }
}

impl Record {
    /// How many bytes the record of an image needs.
    pub(crate) fn bytes_for(image_bytes: u64) -> u64 {
        MAP_OFFSET + Map::sectors_for(image_bytes) * SECTOR_BYTES as u64
    }

    /// Writes a first record, with no bit set, into a store of [`Record::bytes_for`] bytes.
    pub(crate) fn create(store: Box<dyn Store>, head: Head) -> Result<Self, RecordError> {
        let map = Map::new(head.image_bytes);
        let mut record = Self {
            store,
            head: head.clone(),
            sequence: 0,
            map,
        };
        // A sector that a power cut spares counts as all set: nothing but the head need be durable.
        for sector in 0..record.map.sectors() {
            record.write_sector(sector)?;
        }
        record.set_head(head)?;
        Ok(record)
    }

    /// Reads a record. What it says is relied upon, and not written again: it has to be durable.
    pub(crate) fn load(store: Box<dyn Store>) -> Result<Self, RecordError> {
        if store.bytes()? < MAP_OFFSET {
            return Err(RecordError::Damaged);
        }
        let slots = [0, SLOT_BYTES].map(|offset| read_slot(&*store, offset));
        let mut best: Option<(u32, Head)> = None;
        for slot in slots {
            if let Some((sequence, head)) = slot?
                && best.as_ref().is_none_or(|(other, _)| is_later(sequence, *other))
            {
                best = Some((sequence, head));
            }
        }
        let (sequence, head) = best.ok_or(RecordError::Damaged)?;
        // Before there is a map: the size that it says may be any number.
        if store.bytes()? < Self::bytes_for(head.image_bytes) {
            return Err(RecordError::Damaged);
        }
        let mut map = Map::new(head.image_bytes);
        for sector in 0..map.sectors() {
            let mut bytes = [0; SECTOR_BYTES];
            store.read_at(MAP_OFFSET + sector * SECTOR_BYTES as u64, &mut bytes)?;
            map.load_sector(sector, &bytes);
        }
        Ok(Self {
            store,
            head,
            sequence,
            map,
        })
    }

    /// The head, durable.
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// The map. Set bits are durable.
    pub(crate) fn map(&self) -> &Map {
        &self.map
    }

    /// Replaces the head, durably.
    ///
    /// # Errors
    /// The old head or the new one then stands there; a later call replaces either.
    pub(crate) fn set_head(&mut self, head: Head) -> Result<(), RecordError> {
        let encoded = postcard::to_allocvec(&head).expect("plain data encodes into memory");
        assert!(
            encoded.len() <= HEAD_BYTES_MAX,
            "a head has names of bounded length"
        );
        let sequence = self.sequence.wrapping_add(1);
        let mut sector = Vec::with_capacity(SECTOR_BYTES);
        sector.extend_from_slice(&MAGIC);
        sector.extend_from_slice(&sequence.to_le_bytes());
        sector.extend_from_slice(&encoded);
        sector.resize(SECTOR_BYTES - 4, 0);
        let checksum = crc32fast::hash(&sector);
        sector.extend_from_slice(&checksum.to_le_bytes());
        // Not counted if it fails: the next one takes the same slot,
        // and the other stays as it is until this is durable.
        self.store.write_at(slot_of(sequence), &sector)?;
        self.store.sync()?;
        (self.sequence, self.head) = (sequence, head);
        Ok(())
    }

    /// The image has grown: what is new counts as changed, durably. A power cut leaves the record of the
    /// smaller image, or that of the larger one.
    pub(crate) fn grow(&mut self, image_bytes: u64) -> Result<(), RecordError> {
        let old_bytes = self.head.image_bytes;
        assert!(old_bytes < image_bytes, "an image does not shrink");
        let mut grown = self.map.clone();
        grown.grow(old_bytes, image_bytes);
        let old = std::mem::replace(&mut self.map, grown);
        // The bits first: beyond the end of the smaller image they say nothing.
        let result = (Map::sector_of(old_bytes / EXTENT_BYTES)..self.map.sectors())
            .try_for_each(|sector| self.write_sector(sector))
            .and_then(|()| Ok(self.store.sync()?))
            .and_then(|()| {
                self.set_head(Head {
                    image_bytes,
                    ..self.head.clone()
                })
            });
        if result.is_err() {
            self.map = old;
        }
        result
    }

    /// Sets bits, durably: their extents may be written after that.
    pub(crate) fn mark(&mut self, extents: impl IntoIterator<Item = u64>) -> Result<(), RecordError> {
        let extents: Vec<u64> = extents
            .into_iter()
            .filter(|extent| !self.map.has(*extent))
            .collect();
        if extents.is_empty() {
            return Ok(());
        }
        let mut marked = self.map.clone();
        extents.iter().for_each(|extent| {
            marked.set(*extent);
        });
        // A bit that may not be durable must not look set: what fails leaves the map in memory as it was.
        let old = std::mem::replace(&mut self.map, marked);
        let result = self.write_sectors(&extents).and_then(|()| Ok(self.store.sync()?));
        if result.is_err() {
            self.map = old;
        }
        result
    }

    /// Clears bits. Not durable before something else is: until then the extents only count as changed.
    pub(crate) fn clear(&mut self, extents: &[u64]) -> Result<(), RecordError> {
        extents.iter().for_each(|extent| self.map.clear(*extent));
        self.write_sectors(extents)
    }

    fn write_sectors(&mut self, extents: &[u64]) -> Result<(), RecordError> {
        let mut sectors: Vec<u64> = extents.iter().map(|extent| Map::sector_of(*extent)).collect();
        sectors.sort_unstable();
        sectors.dedup();
        sectors
            .into_iter()
            .try_for_each(|sector| self.write_sector(sector))
    }

    fn write_sector(&mut self, sector: u64) -> Result<(), RecordError> {
        let bytes = self.map.sector(sector);
        Ok(self
            .store
            .write_at(MAP_OFFSET + sector * SECTOR_BYTES as u64, &bytes)?)
    }
}

/// Whether a slot was written after another: the numbers begin anew behind the last one.
fn is_later(sequence: u32, other: u32) -> bool {
    sequence.wrapping_sub(other).cast_signed() > 0
}

fn slot_of(sequence: u32) -> u64 {
    u64::from(sequence % 2) * SLOT_BYTES
}

fn read_slot(store: &dyn Store, offset: u64) -> Result<Option<(u32, Head)>, RecordError> {
    let mut bytes = [0; SECTOR_BYTES];
    store.read_at(offset, &mut bytes)?;
    let (content, checksum) = bytes.split_at(SECTOR_BYTES - 4);
    if content[..4] != MAGIC[..4] || *checksum != crc32fast::hash(content).to_le_bytes() {
        return Ok(None);
    }
    if content[..8] != MAGIC {
        return Err(RecordError::Version);
    }
    let sequence = u32::from_le_bytes(content[8..12].try_into().expect("four bytes"));
    // It would be replaced by its own successor, and the other slot, whatever is in it, would stay.
    if slot_of(sequence) != offset {
        return Ok(None);
    }
    match postcard::take_from_bytes(&content[12..]) {
        Ok((head, _)) => Ok(Some((sequence, head))),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
#[path = "recorded_test.rs"]
mod recorded;
#[cfg(test)]
#[path = "record_test.rs"]
mod tests;
