//! A queue that its driver fills without asking whether it may.

use crate::abi::BootDevice;
use crate::virtio::memory::Dma;
use crate::virtio::mmio::{F_INDIRECT_DESC, Registers};
use crate::virtio::queue::Addresses;

/// Descriptors and entries of a queue.
pub const QUEUE_SIZE: u16 = 256;
/// The queue of a network card that transmits, and the only one of a disk.
pub const TRANSMIT: u16 = 1;
pub const REQUESTS: u16 = 0;
/// Descriptors of the longest indirect table.
pub const TABLE_MAX: usize = 65_535;

/// Flags of a descriptor: another follows; the device writes there; it names a table.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const DESCRIPTOR_BYTES: usize = 16;
/// Where available and used ring lie behind the descriptors.
const AVAIL: usize = DESCRIPTOR_BYTES * QUEUE_SIZE as usize;
const USED: usize = 2 * AVAIL;
const RING_BYTES: usize = 3 * AVAIL;
/// Bytes of a disk's header, behind which the status lies, and where the words of a discard lie.
const HEADER_BYTES: u32 = 16;
const STATUS: u64 = 16;
const RANGE: usize = 64;
/// Features of a disk: it takes discards, and zeroes.
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Types of a disk's requests.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    Read = 0,
    Write = 1,
    Discard = 11,
    Zeroes = 13,
}

/// Buffers of a request, all the same.
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    pub count: usize,
    pub address: u64,
    pub bytes: u32,
}

/// The queue of a device, with one table for all its requests.
pub struct Ring {
    pub registers: Registers,
    queue: u16,
    rings: Dma,
    table: Dma,
    header: Dma,
    offered: u16,
}

impl Ring {
    pub fn new(device: BootDevice, queue: u16) -> Self {
        // SAFETY: it is a device of this machine. Its driver waits until the abuse is over,
        // and resets it then.
        let registers = unsafe { Registers::new(device.base, device.device_id) };
        Self {
            registers,
            queue,
            rings: Dma::new(RING_BYTES, 4096),
            table: Dma::new((TABLE_MAX + 1) * DESCRIPTOR_BYTES, 4096),
            header: Dma::new(4096, 4096),
            offered: 0,
        }
    }

    /// Resets the device, and makes it take the queue.
    pub fn begin(&mut self) {
        self.registers.reset();
        self.registers
            .negotiate(F_INDIRECT_DESC | F_DISCARD | F_WRITE_ZEROES);
        self.rings.bytes_mut().fill(0);
        self.offered = 0;
        let addresses = self.addresses();
        self.registers.set_queue(self.queue, QUEUE_SIZE, addresses);
        self.registers.finish();
    }

    /// Where its rings are.
    pub fn addresses(&self) -> Addresses {
        let at = self.rings.address();
        Addresses {
            descriptors: at,
            driver: at + AVAIL as u64,
            device: at + USED as u64,
        }
    }

    fn describe(table: &mut Dma, index: usize, address: u64, bytes: u32, flags: u16) {
        let entry = &mut table.bytes_mut()[index * DESCRIPTOR_BYTES..][..DESCRIPTOR_BYTES];
        entry[..8].copy_from_slice(&address.to_le_bytes());
        entry[8..12].copy_from_slice(&bytes.to_le_bytes());
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&(index as u16).wrapping_add(1).to_le_bytes());
    }

    /// A descriptor of the table leads to another than the next.
    pub fn lead(&mut self, index: usize, to: u16) {
        let entry = &mut self.table.bytes_mut()[index * DESCRIPTOR_BYTES..][..DESCRIPTOR_BYTES];
        let flags = u16::from_le_bytes([entry[12], entry[13]]) | NEXT;
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&to.to_le_bytes());
    }

    /// The table is a packet. Returns its descriptors.
    pub fn packet(&mut self, pieces: Pieces) -> usize {
        self.pieces(0, pieces, NEXT);
        Self::describe(&mut self.table, pieces.count - 1, pieces.address, pieces.bytes, 0);
        pieces.count
    }

    /// The table is a request to a disk, from its first sector on. Returns its descriptors.
    pub fn disk(&mut self, request: Request, pieces: Pieces) -> usize {
        self.header.bytes_mut()[..HEADER_BYTES as usize].fill(0);
        self.header.bytes_mut()[0] = request as u8;
        let header = self.header.address();
        Self::describe(&mut self.table, 0, header, HEADER_BYTES, NEXT);
        let flags = match request {
            Request::Read => NEXT | WRITE,
            _ => NEXT,
        };
        self.pieces(1, pieces, flags);
        Self::describe(&mut self.table, pieces.count + 1, header + STATUS, 1, WRITE);
        pieces.count + 2
    }

    /// The words of a discard or of zeroes: so many sectors. Returns where they are.
    pub fn range(&mut self, first: u64, sectors: u32) -> Pieces {
        let words = &mut self.header.bytes_mut()[RANGE..][..16];
        words[..8].copy_from_slice(&first.to_le_bytes());
        words[8..12].copy_from_slice(&sectors.to_le_bytes());
        words[12..].fill(0);
        Pieces {
            count: 1,
            address: self.header.address() + RANGE as u64,
            bytes: 16,
        }
    }

    fn pieces(&mut self, from: usize, pieces: Pieces, flags: u16) {
        for index in from..from + pieces.count {
            Self::describe(&mut self.table, index, pieces.address, pieces.bytes, flags);
        }
    }

    /// Makes so many requests available, all with the first descriptors of the table.
    pub fn offer(&mut self, requests: u16, descriptors: usize) {
        let bytes = (descriptors * DESCRIPTOR_BYTES) as u32;
        for _ in 0..requests {
            let head = self.offered % QUEUE_SIZE;
            let table = self.table.address();
            Self::describe(&mut self.rings, usize::from(head), table, bytes, INDIRECT);
            let place = AVAIL + 4 + 2 * usize::from(head);
            self.rings.bytes_mut()[place..place + 2].copy_from_slice(&head.to_le_bytes());
            self.offered = self.offered.wrapping_add(1);
        }
        self.rings.bytes_mut()[AVAIL + 2..AVAIL + 4].copy_from_slice(&self.offered.to_le_bytes());
        self.registers.notify(self.queue);
    }
}

/// The memory is somebody else's afterwards: the device must be done with it.
impl Drop for Ring {
    fn drop(&mut self) {
        self.registers.reset();
    }
}
