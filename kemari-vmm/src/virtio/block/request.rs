//! What a guest asks of its disk: understood once, checked against what the disk is.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::{REQUEST_BYTES_MAX, SEGMENTS_MAX, ZERO_SECTORS_MAX};
use crate::disk::SECTOR_BYTES;
use crate::memory::{Memory, Segments, check_range};
use crate::virtio::{Chain, GuestFault, Nature};

/// Bytes of a request's header: type, a reserved word, sector (virtio 1.2, section 5.2.6).
const HEADER_BYTES: u64 = 16;
/// Bytes of the range of a discard or write-zeroes request.
const ZERO_RANGE_BYTES: u64 = 16;

/// What a guest asks of its disk. Together with the guest's memory (or the bytes of its capture) it is all
/// that is needed to carry the request out, here or on another host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockRequest {
    /// What is to be done, and where on the disk.
    pub kind: Kind,
    /// The guest's buffers: what a write takes its bytes from, and what a read or an id goes to.
    pub data: Segments,
    /// Guest physical address of the status byte.
    pub(super) status: u64,
}

/// What is to be done, and where on the disk. Everything lies within the disk, and is whole blocks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Fill the buffers from this sector on.
    Read {
        /// First sector.
        sector: u64,
    },
    /// Write the buffers from this sector on.
    Write {
        /// First sector.
        sector: u64,
    },
    /// Make all that was finished before durable.
    Flush,
    /// Tell the serial number.
    GetId,
    /// A discard or write-zeroes: the range reads as zeros afterwards, on every host alike.
    Zero {
        /// First sector.
        sector: u64,
        /// How many.
        sectors: u32,
        /// Whether their storage may be given back.
        unmap: bool,
    },
    /// Beyond the disk's end, a write to a read-only disk, or an unknown type: answered with this status.
    Refused(u8),
}

/// What a request is measured against.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub read_only: bool,
    pub block_bytes: u32,
    pub(crate) capacity_sectors: u64,
}

const REFUSED: Kind = Kind::Refused(VIRTIO_BLK_S_IOERR as u8);
const UNSUPPORTED: Kind = Kind::Refused(VIRTIO_BLK_S_UNSUPP as u8);

impl Kind {
    /// How much of the disk becomes zeros, in bytes.
    pub(super) fn zero_bytes(&self) -> u64 {
        match self {
            Self::Zero { sectors, .. } => u64::from(*sectors) * SECTOR_BYTES,
            _ => 0,
        }
    }

    /// Whether it changes the disk: it needs consent. A flush makes durable what has consent already, and
    /// nobody else sees that.
    pub(super) fn nature(&self) -> Nature {
        match self {
            Self::Write { .. } | Self::Zero { .. } => Nature::Output,
            Self::Flush => Nature::Barrier,
            Self::Read { .. } | Self::GetId | Self::Refused(_) => Nature::Input,
        }
    }
}

impl BlockRequest {
    /// Understands a chain.
    pub(super) fn parse(chain: Chain<'_>, memory: &Memory, limits: Limits) -> Result<Self, GuestFault> {
        let (mut readable, mut writable) = chain.buffers(memory)?;
        let header = readable
            .split_front(HEADER_BYTES)
            .ok_or_else(|| GuestFault("a disk request without header".into()))?
            .read(memory)?;
        let status = writable
            .split_last_byte()
            .ok_or_else(|| GuestFault("a disk request without status byte".into()))?;
        let request_type = u32::from_le_bytes(header[..4].try_into().expect("the header has 16 bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("the header has 16 bytes"));
        let (kind, data) = match request_type {
            VIRTIO_BLK_T_IN => (limits.read(sector, &writable), writable),
            VIRTIO_BLK_T_OUT => (limits.write(sector, &readable), readable),
            VIRTIO_BLK_T_FLUSH => (Kind::Flush, Segments::default()),
            VIRTIO_BLK_T_GET_ID => (Kind::GetId, writable.up_to(VIRTIO_BLK_ID_BYTES.into())),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                let kind = limits.parse_zero(request_type, &readable, memory)?;
                (kind, Segments::default())
            }
            _ => (UNSUPPORTED, Segments::default()),
        };
        // What is refused needs no data, and no room for them.
        let data = match kind {
            Kind::Refused(_) => Segments::default(),
            _ => data,
        };
        Ok(Self { kind, data, status })
    }

    /// Checks a request of a saved state: it must be one that [`BlockRequest::parse`] could have returned.
    pub(super) fn check(&self, memory: &Memory, limits: Limits) -> Result<(), GuestFault> {
        self.data.check(memory)?;
        check_range(memory, self.status, 1)?;
        let is_possible = match self.kind {
            Kind::Read { sector } => limits.read(sector, &self.data) == self.kind,
            Kind::Write { sector } => limits.write(sector, &self.data) == self.kind,
            Kind::Zero {
                sector,
                sectors,
                unmap,
            } => self.data.is_empty() && limits.zero(sector, sectors, unmap) == self.kind,
            Kind::GetId => self.data.len() <= VIRTIO_BLK_ID_BYTES.into(),
            Kind::Flush | Kind::Refused(_) => self.data.is_empty(),
        };
        is_possible.then_some(()).ok_or_else(|| {
            GuestFault(format!(
                "a {:?} that this disk cannot have been asked for",
                self.kind
            ))
        })
    }
}

impl Limits {
    fn contains(self, first: u64, sectors: u64) -> bool {
        let block_sectors = u64::from(self.block_bytes) / SECTOR_BYTES;
        first.is_multiple_of(block_sectors)
            && sectors.is_multiple_of(block_sectors)
            && first
                .checked_add(sectors)
                .is_some_and(|end| end <= self.capacity_sectors)
    }

    fn transfer(self, sector: u64, data: &Segments) -> bool {
        let bytes = data.len();
        bytes.is_multiple_of(SECTOR_BYTES)
            && bytes <= REQUEST_BYTES_MAX
            && data.count() <= SEGMENTS_MAX as usize
            && self.contains(sector, bytes / SECTOR_BYTES)
    }

    fn read(self, sector: u64, data: &Segments) -> Kind {
        match self.transfer(sector, data) {
            true => Kind::Read { sector },
            false => REFUSED,
        }
    }

    fn write(self, sector: u64, data: &Segments) -> Kind {
        match !self.read_only && self.transfer(sector, data) {
            true => Kind::Write { sector },
            false => REFUSED,
        }
    }

    fn zero(self, sector: u64, sectors: u32, unmap: bool) -> Kind {
        let is_good = sectors <= ZERO_SECTORS_MAX && self.contains(sector, u64::from(sectors));
        match !self.read_only && is_good {
            true => Kind::Zero {
                sector,
                sectors,
                unmap,
            },
            false => REFUSED,
        }
    }

    /// The range of a discard or write-zeroes, and its flags: a discard has none,
    /// the other may allow an unmap.
    fn parse_zero(self, request_type: u32, data: &Segments, memory: &Memory) -> Result<Kind, GuestFault> {
        if data.len() != ZERO_RANGE_BYTES {
            return Ok(REFUSED);
        }
        let range = data.read(memory)?;
        let word = |at: usize| u32::from_le_bytes(range[at..at + 4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(range[..8].try_into().expect("eight bytes"));
        let (sectors, flags) = (word(8), word(12));
        let is_discard = request_type == VIRTIO_BLK_T_DISCARD;
        let known_flags = match is_discard {
            true => 0,
            false => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        };
        match flags & !known_flags {
            0 => Ok(self.zero(sector, sectors, is_discard || flags != 0)),
            _ => Ok(UNSUPPORTED),
        }
    }
}
