//! What no driver does: abuse of the devices, to find out whether the machine minds. Afterwards the devices are to be reset.

use crate::abi::{BootDevice, DEVICE_ID_BLOCK, DEVICE_ID_NET};
use crate::virtio::memory::Dma;
use crate::virtio::mmio::{F_INDIRECT_DESC, Registers};
use crate::virtio::queue::Addresses;
use crate::{clock, cpu};

/// A kind of abuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abuse {
    /// Requests to the disk with tens of thousands of empty descriptors.
    Chains,
    /// The network card's queue full of packets in as many pieces as there can be, and in more.
    Transmits,
    /// The disk's queue full of the largest writes, over and over.
    Writes,
    /// A queue that lies where no memory is.
    BadQueue,
    /// Any value in any register of any device.
    Registers,
    /// Instructions fetched from a device.
    Execute,
}

/// Descriptors and entries of a queue.
const QUEUE_SIZE: u16 = 256;
const TRANSMIT: u16 = 1;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const DESCRIPTOR_BYTES: usize = 16;
/// Where available and used ring lie behind the descriptors.
const AVAIL: usize = DESCRIPTOR_BYTES * QUEUE_SIZE as usize;
const USED: usize = 2 * AVAIL;
const RING_BYTES: usize = 3 * AVAIL;
/// Descriptors of the longest indirect table.
const TABLE_MAX: usize = 65_535;
/// Address and length of data, which is whatever lies there.
const DATA: u64 = 0x10_0000;
const DATA_BYTES: u32 = 1 << 20;
/// Bytes of a header and a status.
const HEADER_BYTES: u32 = 16;

/// A queue that its driver fills without asking whether it may.
struct Ring {
    registers: Registers,
    queue: u16,
    rings: Dma,
    table: Dma,
    header: Dma,
    offered: u16,
}

impl Ring {
    fn new(device: BootDevice, queue: u16) -> Self {
        // SAFETY: it is a device of this machine. Its driver waits until the abuse is over, and resets it then.
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
    fn begin(&mut self) {
        self.registers.reset();
        self.registers.negotiate(F_INDIRECT_DESC);
        self.rings.bytes_mut().fill(0);
        self.offered = 0;
        let at = self.rings.address();
        let addresses = Addresses {
            descriptors: at,
            driver: at + AVAIL as u64,
            device: at + USED as u64,
        };
        self.registers.set_queue(self.queue, QUEUE_SIZE, addresses);
        self.registers.finish();
    }

    fn describe(table: &mut Dma, index: usize, address: u64, bytes: u32, flags: u16) {
        let entry = &mut table.bytes_mut()[index * DESCRIPTOR_BYTES..][..DESCRIPTOR_BYTES];
        entry[..8].copy_from_slice(&address.to_le_bytes());
        entry[8..12].copy_from_slice(&bytes.to_le_bytes());
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&(index as u16).wrapping_add(1).to_le_bytes());
    }

    /// The table is so many pieces of data, of so many bytes each; between the header of a write and the place for its
    /// status, if it `is_disk`.
    fn fill_table(&mut self, pieces: usize, bytes: u32, is_disk: bool) -> usize {
        let mut count = 0;
        if is_disk {
            self.header.bytes_mut()[0] = 1;
            Self::describe(&mut self.table, 0, self.header.address(), HEADER_BYTES, NEXT);
            count = 1;
        }
        for _ in 0..pieces {
            Self::describe(&mut self.table, count, DATA, bytes, NEXT);
            count += 1;
        }
        match is_disk {
            true => {
                let status = self.header.address() + u64::from(HEADER_BYTES);
                Self::describe(&mut self.table, count, status, 1, WRITE);
                count += 1;
            }
            false => Self::describe(&mut self.table, count - 1, DATA, bytes, 0),
        }
        count
    }

    /// Makes so many requests available, all with the first descriptors of the table.
    fn offer(&mut self, requests: u16, descriptors: usize) {
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

/// Abuses the devices until then, in microseconds of the clock.
pub fn commit(abuse: Abuse, devices: &[BootDevice], until_us: u64) -> Result<(), &'static str> {
    let device = |id| {
        let found = devices.iter().find(|device| device.device_id == id);
        found.copied().ok_or("there is no such device")
    };
    let round = || clock::now_us() < until_us;
    match abuse {
        Abuse::Chains => {
            let mut ring = Ring::new(device(DEVICE_ID_BLOCK)?, 0);
            let descriptors = ring.fill_table(TABLE_MAX - 2, 0, true);
            while round() {
                ring.begin();
                ring.offer(1, descriptors);
            }
        }
        Abuse::Transmits => {
            let mut ring = Ring::new(device(DEVICE_ID_NET)?, TRANSMIT);
            while round() {
                for pieces in [usize::from(QUEUE_SIZE), 30_000] {
                    let descriptors = ring.fill_table(pieces, (65_000 / pieces) as u32, false);
                    ring.begin();
                    ring.offer(QUEUE_SIZE, descriptors);
                }
            }
        }
        Abuse::Writes => {
            let mut ring = Ring::new(device(DEVICE_ID_BLOCK)?, 0);
            let descriptors = ring.fill_table(8, DATA_BYTES, true);
            while round() {
                ring.begin();
                ring.offer(QUEUE_SIZE, descriptors);
                // Some of them are on their way when the next reset comes.
                (0..3).for_each(|_| cpu::kick());
            }
        }
        Abuse::BadQueue => {
            let ring = Ring::new(device(DEVICE_ID_BLOCK)?, 0);
            ring.registers.reset();
            ring.registers.negotiate(F_INDIRECT_DESC);
            let nowhere = 0x7fff_ffff_ffff_f000;
            let addresses = Addresses {
                descriptors: nowhere,
                driver: nowhere,
                device: nowhere,
            };
            ring.registers.set_queue(0, QUEUE_SIZE, addresses);
            ring.registers.finish();
            while round() {
                cpu::kick();
            }
        }
        Abuse::Registers => {
            let mut random = clock::now_us() | 1;
            let mut next = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            while round() {
                let device = devices[next() as usize % devices.len()];
                let offset = next() % 0x40 * 4;
                // SAFETY: a register page of this machine. Memory that a device could write by it is in no queue that is
                // set up here, but by chance.
                unsafe { ((device.base + offset) as *mut u32).write_volatile(next() as u32 & 0x8000_000f) };
            }
        }
        Abuse::Execute => {
            let base = device(DEVICE_ID_BLOCK)?.base;
            // SAFETY: it is not; nothing of this guest runs after it.
            let nothing: extern "C" fn() = unsafe { core::mem::transmute(base as *const ()) };
            nothing();
        }
    }
    Ok(())
}
