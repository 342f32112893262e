//! What firmware is told of its machine: QEMU's "firmware configuration" (docs/specs/fw_cfg.rst of QEMU),
//! read byte by byte at a port, without DMA.
//!
//! The items are made from what both hosts have in common, and never change.
//! Where the firmware reads is state.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::quiet::Quiet;
use crate::state::{State, StateError, StateKind};

/// The firmware selects an item by a word here.
pub const SELECTOR_PORT: u16 = 0x510;
/// The firmware reads the selected item here, a byte at a time.
pub const DATA_PORT: u16 = 0x511;
/// Longest name of a file, in bytes; a zero ends it.
pub const NAME_BYTES_MAX: usize = 55;

/// Items that are not files: what says that the interface is there, what it can do,
/// and the directory of the files.
const SIGNATURE: u16 = 0;
const FEATURES: u16 = 1;
const DIRECTORY: u16 = 0x19;
/// The first file's item; further ones follow.
const FIRST_FILE: u16 = 0x20;
/// Reading and writing at the two ports; DMA would be the next bit.
const FEATURE_PORTS: u32 = 1;

/// What there is to be read.
pub struct Items {
    items: Vec<(u16, Vec<u8>)>,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Default for Items {
    fn default() -> Self {
        let items = vec![
            (SIGNATURE, b"QEMU".to_vec()),
            (FEATURES, FEATURE_PORTS.to_le_bytes().to_vec()),
        ];
        Self {
            items,
            files: Vec::new(),
        }
    }
}

impl Items {
    /// An item that has a number of its own.
    pub fn item(&mut self, number: u16, bytes: impl Into<Vec<u8>>) {
        self.items.push((number, bytes.into()));
    }

    /// A file.
    pub fn file(&mut self, name: &'static str, bytes: impl Into<Vec<u8>>) {
        debug_assert!(name.len() <= NAME_BYTES_MAX, "{name}");
        self.files.push((name, bytes.into()));
    }

    /// A file's content, if there is one of this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let mut files = self.files.iter();
        files
            .find(|(other, _)| *other == name)
            .map(|(_, bytes)| bytes.as_slice())
    }

    /// All by their numbers, with the directory, whose numbers are big-endian.
    fn numbered(self) -> Vec<(u16, Vec<u8>)> {
        let mut items = self.items;
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (number, (name, bytes)) in (FIRST_FILE..).zip(self.files) {
            directory.extend((bytes.len() as u32).to_be_bytes());
            directory.extend(number.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(name.as_bytes());
            directory.resize(directory.len() + NAME_BYTES_MAX + 1 - name.len(), 0);
            items.push((number, bytes));
        }
        items.push((DIRECTORY, directory));
        items
    }
}

/// Where the firmware reads.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Place {
    item: u16,
    /// Bytes of it that were read.
    offset: u32,
}

impl State for Place {
    const KIND: StateKind = StateKind::FirmwareConfiguration;
    const VERSION: u16 = 1;
}

/// The two ports.
pub struct FwCfg {
    items: Vec<(u16, Vec<u8>)>,
    place: Mutex<Place>,
}

impl FwCfg {
    /// The ports of a machine that has this to say.
    pub fn new(items: Items) -> Arc<Self> {
        Arc::new(Self {
            items: items.numbered(),
            place: Mutex::default(),
        })
    }
}

impl Quiet for FwCfg {
    type Registers = Place;

    fn registers(&self) -> &Mutex<Place> {
        &self.place
    }

    /// The offset is the port's number. However many bytes are read at once, they follow each other; behind
    /// an item's end, and of an item that there is not, they are zeros.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset != u64::from(DATA_PORT) {
            return;
        }
        let mut place = self.lock();
        let item = self.items.iter().find(|(number, _)| *number == place.item);
        let bytes = item.map_or(&[][..], |(_, bytes)| bytes);
        let rest = bytes.get(place.offset as usize..).unwrap_or_default();
        let count = rest.len().min(data.len());
        data[..count].copy_from_slice(&rest[..count]);
        // Behind the end there is nothing to tell apart.
        place.offset += count as u32;
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == u64::from(SELECTOR_PORT)
            && let [low, high] = *data
        {
            let item = u16::from_le_bytes([low, high]);
            *self.lock() = Place { item, offset: 0 };
        }
    }

    fn accept(&self, place: Place) -> Result<Place, StateError> {
        let mut items = self.items.iter();
        let item = items.find(|(number, _)| *number == place.item);
        // It was read by a machine that has told its firmware something else.
        if place.offset as usize > item.map_or(0, |(_, bytes)| bytes.len()) {
            let why = format!(
                "the firmware has read {} bytes of item {:#x}",
                place.offset, place.item
            );
            return Err(StateError::Mismatch(why));
        }
        Ok(place)
    }
}

#[cfg(test)]
#[path = "fw_cfg_test.rs"]
mod tests;
