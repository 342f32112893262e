//! The key-value store: its layout on the disk, and its index in memory.
//!
//! The disk holds a superblock of 4096 bytes, then slots of one block each. A record lies in the first 512
//! bytes of its slot, so that a write of it is never torn. A key keeps its slot; a new one gets the first
//! free slot from where its hash points. At boot every slot is read: of two records with one key the one with
//! the higher sequence number counts. Behind the slots is room for tests of the disk.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::pattern::mix;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 64;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 256;
/// Most slots.
pub const SLOTS_MAX: usize = 4096;
/// Bytes of the superblock, and of the blocks behind the slots.
pub const BLOCK_BYTES: usize = 4096;

const SUPERBLOCK_MAGIC: &[u8; 8] = b"KemariKV";
const VERSION: u32 = 1;
const RECORD_MAGIC: &[u8; 4] = b"KmRc";
/// Magic, checksum, sequence number, length of key and value.
const RECORD_HEADER_BYTES: usize = 4 + 4 + 8 + 2 + 2;
const _: () = assert!(RECORD_HEADER_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX <= 512);

/// The superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Bytes of a slot.
    pub slot_bytes: usize,
    /// Number of slots.
    pub slots: usize,
    /// How often the guest has booted with this disk.
    pub boots: u64,
}

impl Superblock {
    /// The layout of an empty disk; `None` if it is too small for a single slot.
    pub fn plan(disk_bytes: u64, block_bytes: usize) -> Option<Superblock> {
        // Half of the disk at most is for slots.
        let slots = (disk_bytes / 2).saturating_sub(BLOCK_BYTES as u64) / block_bytes as u64;
        let slots = slots.min(SLOTS_MAX as u64) as usize;
        (slots > 0).then_some(Superblock {
            slot_bytes: block_bytes,
            slots,
            boots: 0,
        })
    }

    /// Reads it: `Ok(None)` from an empty disk, an error from one that holds something else or is damaged.
    pub fn decode(block: &[u8]) -> Result<Option<Superblock>, &'static str> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        if &block[..8] != SUPERBLOCK_MAGIC {
            return Err("the disk holds something else than this store: give the guest an empty disk");
        }
        if word(8) != crc32fast::hash(&block[12..36]) || word(12) != VERSION {
            return Err("the superblock of the disk is damaged or of another version");
        }
        let (slot_bytes, slots) = (word(16) as usize, word(20) as usize);
        let boots = u64::from(word(24)) | u64::from(word(28)) << 32;
        let sane = (512..=BLOCK_BYTES).contains(&slot_bytes) && (1..=SLOTS_MAX).contains(&slots);
        if sane {
            Ok(Some(Superblock {
                slot_bytes,
                slots,
                boots,
            }))
        } else {
            Err("the superblock makes no sense")
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        block[..8].copy_from_slice(SUPERBLOCK_MAGIC);
        block[12..16].copy_from_slice(&VERSION.to_le_bytes());
        block[16..20].copy_from_slice(&(self.slot_bytes as u32).to_le_bytes());
        block[20..24].copy_from_slice(&(self.slots as u32).to_le_bytes());
        block[24..32].copy_from_slice(&self.boots.to_le_bytes());
        let checksum = crc32fast::hash(&block[12..36]);
        block[8..12].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Where a slot begins, in bytes.
    pub fn slot_offset(&self, slot: usize) -> u64 {
        (BLOCK_BYTES + slot * self.slot_bytes) as u64
    }

    /// Where the room behind the slots begins, in bytes.
    pub fn rest_offset(&self) -> u64 {
        self.slot_offset(self.slots).next_multiple_of(BLOCK_BYTES as u64)
    }
}

/// Writes a record into a slot. Bytes of an older record behind it stay: its length says where it ends.
pub fn encode_record(slot: &mut [u8], sequence: u64, key: &[u8], value: &[u8]) {
    slot[..4].copy_from_slice(RECORD_MAGIC);
    slot[8..16].copy_from_slice(&sequence.to_le_bytes());
    slot[16..18].copy_from_slice(&(key.len() as u16).to_le_bytes());
    slot[18..20].copy_from_slice(&(value.len() as u16).to_le_bytes());
    let end = RECORD_HEADER_BYTES + key.len() + value.len();
    slot[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + key.len()].copy_from_slice(key);
    slot[RECORD_HEADER_BYTES + key.len()..end].copy_from_slice(value);
    let checksum = crc32fast::hash(&slot[8..end]);
    slot[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// What a slot holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Slot<'a> {
    /// Nothing.
    Empty,
    /// A record: sequence number, key, value.
    Record(u64, &'a [u8], &'a [u8]),
    /// Something that no record is.
    Damaged,
}

/// Reads a slot.
pub fn decode_slot(slot: &[u8]) -> Slot<'_> {
    if slot[..RECORD_HEADER_BYTES].iter().all(|byte| *byte == 0) {
        return Slot::Empty;
    }
    let length = |at: usize| usize::from(u16::from_le_bytes([slot[at], slot[at + 1]]));
    let (key_bytes, value_bytes) = (length(16), length(18));
    if &slot[..4] != RECORD_MAGIC || key_bytes > KEY_BYTES_MAX || value_bytes > VALUE_BYTES_MAX {
        return Slot::Damaged;
    }
    let end = RECORD_HEADER_BYTES + key_bytes + value_bytes;
    if slot[4..8] != crc32fast::hash(&slot[8..end]).to_le_bytes() {
        return Slot::Damaged;
    }
    let sequence = slot[8..16]
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let (key, value) = slot[RECORD_HEADER_BYTES..end].split_at(key_bytes);
    Slot::Record(sequence, key, value)
}

struct Entry {
    slot: usize,
    sequence: u64,
    value: Vec<u8>,
}

/// The index in memory: every acknowledged record.
pub struct Index {
    entries: BTreeMap<Vec<u8>, Entry>,
    occupied: Vec<bool>,
    last_sequence: u64,
    damaged: usize,
}

impl Index {
    /// An index over so many empty slots.
    pub fn new(slots: usize) -> Index {
        Index {
            entries: BTreeMap::new(),
            occupied: vec![false; slots],
            last_sequence: 0,
            damaged: 0,
        }
    }

    /// Takes over what a slot of the disk holds.
    pub fn load(&mut self, slot: usize, bytes: &[u8]) {
        match decode_slot(bytes) {
            Slot::Empty => {}
            Slot::Damaged => self.damaged += 1,
            Slot::Record(sequence, key, value) => {
                self.last_sequence = self.last_sequence.max(sequence);
                match self.entries.get(key) {
                    Some(entry) if entry.sequence >= sequence => {}
                    _ => self.apply(slot, sequence, key.to_vec(), value.to_vec()),
                }
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(|entry| entry.value.as_slice())
    }

    /// The slot for a record of this key, reserved until it is applied or released; `None` if all are taken.
    pub fn reserve(&mut self, key: &[u8]) -> Option<usize> {
        if let Some(entry) = self.entries.get(key) {
            return Some(entry.slot);
        }
        let slots = self.occupied.len();
        let hash = key
            .iter()
            .fold(key.len() as u64, |hash, byte| mix(hash ^ u64::from(*byte)));
        let first = (hash % slots as u64) as usize;
        let slot = (0..slots)
            .map(|i| (first + i) % slots)
            .find(|slot| !self.occupied[*slot])?;
        self.occupied[slot] = true;
        Some(slot)
    }

    /// Gives a reserved slot back whose record was not stored, unless the key has it from before.
    pub fn release(&mut self, slot: usize, key: &[u8]) {
        if self.entries.get(key).is_none_or(|entry| entry.slot != slot) {
            self.occupied[slot] = false;
        }
    }

    /// The number for the next record.
    pub fn next_sequence(&mut self) -> u64 {
        self.last_sequence += 1;
        self.last_sequence
    }

    /// Makes a stored record the value of its key.
    pub fn apply(&mut self, slot: usize, sequence: u64, key: Vec<u8>, value: Vec<u8>) {
        self.occupied[slot] = true;
        if let Some(old) = self.entries.insert(
            key,
            Entry {
                slot,
                sequence,
                value,
            },
        ) && old.slot != slot
        {
            self.occupied[old.slot] = false;
        }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// There are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Slots that held something that no record is, when they were read.
    pub fn damaged(&self) -> usize {
        self.damaged
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
