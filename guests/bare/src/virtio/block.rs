//! A virtio disk (virtio 1.2, section 5.2). Requests never block: they are submitted, and come back finished,
//! in any order, from [`Disk::poll`]. Nothing orders requests in flight among each other, but those of one
//! lane that overlap: they are carried out as they were submitted. Who needs another order waits.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::memory::Dma;
use super::mmio::{F_EVENT_IDX, F_INDIRECT_DESC, Registers};
use super::queue::{QUEUE_SIZE, Queue, Segment};

/// Feature: the device is read-only.
const F_RO: u64 = 1 << 5;
/// Feature: the configuration gives the block size.
const F_BLK_SIZE: u64 = 1 << 6;
/// Feature: there is a flush request; without it a finished write is durable.
const F_FLUSH: u64 = 1 << 9;
/// Feature: there are several queues.
const F_MQ: u64 = 1 << 12;
/// Feature: there are requests that let go of blocks.
const F_DISCARD: u64 = 1 << 13;
/// Feature: there are requests that make zeros.
const F_WRITE_ZEROES: u64 = 1 << 14;
const CONFIG_CAPACITY: u64 = 0;
const CONFIG_BLOCK_BYTES: u64 = 20;
/// The number of queues: the upper half of this word.
const CONFIG_QUEUES: u64 = 32;
/// Queues that are driven, if there are so many.
const QUEUES_MAX: u16 = 8;
/// Unit of positions on the disk, whatever its block size.
pub const SECTOR_BYTES: usize = 512;
/// Header of a request (16 bytes), and behind it the byte for its status.
const HEADER_BYTES: u32 = 16;
const STATUS_OFFSET: usize = 16;
const CELL_BYTES: usize = 32;
/// The range of a request that makes zeros or discards, and the former's flag that the disk may forget the
/// blocks.
const RANGE_BYTES: usize = 16;
const UNMAP: u32 = 1;
/// Requests that the device is given at a time; more wait in the driver.
pub const IN_FLIGHT_MAX: usize = 40;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fills the data from the disk.
    Read,
    /// Writes the data to the disk.
    Write,
    /// Makes zeros of as much as the data is long; its bytes are lost.
    Zero,
    /// Lets go of as much as the data is long; its bytes are lost. What is read there afterwards,
    /// nobody knows.
    Discard,
    /// Makes all writes finished before its submission durable.
    Flush,
}

impl Operation {
    fn code(self) -> u32 {
        match self {
            Operation::Read => 0,
            Operation::Write => 1,
            Operation::Flush => 4,
            Operation::Discard => 11,
            Operation::Zero => 13,
        }
    }
}

/// A request, and afterwards its result. `O` says whose it is.
pub struct Request<O> {
    /// What it does.
    pub operation: Operation,
    /// Where, in units of 512 bytes; 0 for a flush.
    pub sector: u64,
    /// The data; none for a flush.
    pub data: Option<Dma>,
    /// Requests of one lane go by one queue.
    pub lane: usize,
    /// Whose it is.
    pub owner: O,
}

/// A request that the device finished.
pub struct Finished<O> {
    /// The request, with what was read.
    pub request: Request<O>,
    /// The device carried it out.
    pub ok: bool,
}

/// A request in the device's hands.
struct InFlight<O> {
    request: Request<O>,
    cell: usize,
    order: u64,
}

/// The disk.
pub struct Disk<O> {
    registers: Registers,
    features: u64,
    flushes: bool,
    makes_zeros: bool,
    discards: bool,
    read_only: bool,
    sectors: u64,
    block_bytes: usize,
    resetting: bool,
    queues: Vec<Queue<InFlight<O>>>,
    /// Headers and status bytes of the requests in flight.
    cells: Dma,
    free_cells: Vec<usize>,
    waiting: VecDeque<Request<O>>,
    submitted: u64,
}

impl<O> Disk<O> {
    /// Initialises the disk; `features` are those wanted of the rings.
    pub fn new(registers: Registers, features: u64) -> Disk<O> {
        let mut disk = Disk {
            registers,
            features: features & (F_EVENT_IDX | F_INDIRECT_DESC),
            flushes: false,
            makes_zeros: false,
            discards: false,
            read_only: false,
            sectors: 0,
            block_bytes: SECTOR_BYTES,
            resetting: true,
            queues: Vec::new(),
            cells: Dma::new(IN_FLIGHT_MAX * CELL_BYTES, 4096),
            free_cells: (0..IN_FLIGHT_MAX).rev().collect(),
            waiting: VecDeque::new(),
            submitted: 0,
        };
        registers.reset();
        disk.restart();
        disk
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.sectors * SECTOR_BYTES as u64
    }

    /// Smallest unit of a request, in bytes: a power of two from 512 to 4096.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Available and used indexes of the queues, summed up.
    pub fn indexes(&self) -> (u16, u16) {
        let indexes = self.queues.iter().map(Queue::indexes);
        indexes.fold((0, 0), |(available, used), (more_available, more_used)| {
            (
                available.wrapping_add(more_available),
                used.wrapping_add(more_used),
            )
        })
    }

    /// Submits a request. The device hears of it at the next [`Disk::notify`].
    pub fn submit(&mut self, request: Request<O>) {
        self.waiting.push_back(request);
    }

    /// Resets the device, whatever is in flight. It works again once [`Disk::poll`] has found the reset
    /// complete; requests that were in flight are submitted again, since the device may or may not have
    /// carried them out.
    pub fn begin_reset(&mut self) {
        self.notify();
        self.resetting = true;
        self.registers.begin_reset();
    }

    /// A reset is under way: [`Disk::poll`] must be called again soon, since no interrupt tells its end.
    pub fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// Its registers are at this address.
    pub fn is_at(&self, base: u64) -> bool {
        self.registers.base() == base
    }

    /// After an interrupt.
    pub fn acknowledge(&self) {
        self.registers.acknowledge();
    }

    /// Goes on with a reset, and returns a request that the device has finished.
    pub fn poll(&mut self) -> Option<Finished<O>> {
        if self.resetting {
            if !self.registers.is_reset() {
                return None;
            }
            self.restart();
        }
        self.queues.iter_mut().find_map(Queue::pop).map(|(done, _)| {
            // SAFETY: the status byte of a cell, which the device has written and given back.
            let status = unsafe { self.cell(done.cell).add(STATUS_OFFSET).read_volatile() };
            self.free_cells.push(done.cell);
            Finished {
                request: done.request,
                ok: status == 0,
            }
        })
    }

    /// Gives waiting requests to the device, and tells it once of all that are new.
    pub fn notify(&mut self) {
        self.offer_waiting();
        if self.resetting {
            return;
        }
        for (index, queue) in (0..).zip(&mut self.queues) {
            if queue.must_notify() {
                self.registers.notify(index);
            }
        }
    }

    /// Header and status of one request in flight.
    fn cell(&self, cell: usize) -> *mut u8 {
        assert!(cell < IN_FLIGHT_MAX, "there is no cell {cell}");
        // SAFETY: inside the cells' memory.
        unsafe { self.cells.as_ptr().add(cell * CELL_BYTES) }
    }

    fn offer_waiting(&mut self) {
        while !self.resetting
            && let Some(next) = self.waiting.front()
            && self.queues[next.lane % self.queues.len()].has_room(1)
            && let Some(cell) = self.free_cells.pop()
        {
            let request = self.waiting.pop_front().expect("it is not empty");
            self.submitted += 1;
            self.offer(InFlight {
                request,
                cell,
                order: self.submitted,
            });
        }
    }

    fn offer(&mut self, mut in_flight: InFlight<O>) {
        let (operation, sector) = (in_flight.request.operation, in_flight.request.sector);
        let mut data_bytes = in_flight.request.data.as_ref().map_or(0, |data| data.len());
        if let (Operation::Zero | Operation::Discard, Some(data)) = (operation, &mut in_flight.request.data) {
            let flags = match operation {
                Operation::Zero => UNMAP,
                _ => 0,
            };
            let range = &mut data.bytes_mut()[..RANGE_BYTES];
            range[..8].copy_from_slice(&sector.to_le_bytes());
            range[8..12].copy_from_slice(&((data_bytes / SECTOR_BYTES) as u32).to_le_bytes());
            range[12..].copy_from_slice(&flags.to_le_bytes());
            data_bytes = RANGE_BYTES;
        }
        let request = &in_flight.request;
        let cell = self.cell(in_flight.cell);
        // SAFETY: the cell is 32 aligned bytes, and not in the device's hands. 0xff:
        // a status that no device returns.
        unsafe {
            cell.cast::<[u32; 2]>().write_volatile([operation.code(), 0]);
            cell.add(8).cast::<u64>().write_volatile(sector);
            cell.add(STATUS_OFFSET).write_volatile(0xff);
        }
        let at = cell as u64;
        let header = Segment {
            address: at,
            bytes: HEADER_BYTES,
            device_writes: false,
        };
        let status = Segment {
            address: at + STATUS_OFFSET as u64,
            bytes: 1,
            device_writes: true,
        };
        let lane = request.lane % self.queues.len();
        let queue = &mut self.queues[lane];
        match &request.data {
            Some(data) => {
                let device_writes = operation == Operation::Read;
                let data = Segment {
                    address: data.address(),
                    bytes: data_bytes as u32,
                    device_writes,
                };
                queue.add(&[header, data, status], in_flight);
            }
            None => queue.add(&[header, status], in_flight),
        }
    }

    /// Initialises the device after a reset, and offers it again what was in flight, in the same order.
    fn restart(&mut self) {
        let accepted = self
            .registers
            .negotiate(self.features | F_RO | F_BLK_SIZE | F_FLUSH | F_MQ | F_DISCARD | F_WRITE_ZEROES);
        self.flushes = accepted & F_FLUSH != 0;
        self.makes_zeros = accepted & F_WRITE_ZEROES != 0;
        self.discards = accepted & F_DISCARD != 0;
        self.read_only = accepted & F_RO != 0;
        let word = |offset| u64::from(self.registers.config_word(offset));
        self.sectors = word(CONFIG_CAPACITY) | word(CONFIG_CAPACITY + 4) << 32;
        if accepted & F_BLK_SIZE != 0 {
            self.block_bytes = word(CONFIG_BLOCK_BYTES) as usize;
        }
        assert!(
            self.block_bytes.is_power_of_two() && (SECTOR_BYTES..=4096).contains(&self.block_bytes),
            "the disk has blocks of {} bytes: 512 to 4096 are supported",
            self.block_bytes
        );
        let count = match accepted & F_MQ != 0 {
            true => (word(CONFIG_QUEUES) >> 16) as u16,
            false => 1,
        };
        let taken = self.queues.iter_mut().map(Queue::take_in_flight);
        let mut again: Vec<_> = taken.flatten().collect();
        again.sort_by_key(|in_flight| in_flight.order);
        let fresh = || Queue::new(accepted & F_EVENT_IDX != 0, accepted & F_INDIRECT_DESC != 0);
        self.queues = (0..count.min(QUEUES_MAX)).map(|_| fresh()).collect();
        for (index, queue) in (0..).zip(&self.queues) {
            self.registers.set_queue(index, QUEUE_SIZE, queue.addresses());
        }
        self.registers.finish();
        self.resetting = false;
        for in_flight in again {
            self.offer(in_flight);
        }
    }

    /// It has requests that make zeros.
    pub fn makes_zeros(&self) -> bool {
        self.makes_zeros
    }

    /// It has requests that let go of blocks.
    pub fn discards(&self) -> bool {
        self.discards
    }

    /// A flush must follow writes that are to be durable.
    pub fn needs_flush(&self) -> bool {
        self.flushes
    }
}
