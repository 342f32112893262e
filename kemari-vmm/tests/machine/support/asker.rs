//! A driver that asks a disk for anything, over several queues.

use kemari_vmm::devices::Device;
use kemari_vmm::disk::{Disk, DiskError};
use kemari_vmm::memory::Memory;
use kemari_vmm::virtio::block::{Block, BlockSpec};
use vm_memory::{Bytes, GuestAddress};

use super::bench::{Bench, SECTOR_BYTES};
use super::driver::{self, CHAIN_MAX, Ring};

const RINGS: u64 = 0x1_0000;
const RING_STEP: u64 = 0x8000;
const SLOTS: u64 = 0x10_0000;
/// Of a slot: header, range and status in its first page, data in its second one.
const SLOT_BYTES: u64 = 0x3000;
/// Slots of a queue.
pub(crate) const QUEUE_SLOTS: u16 = 16;
/// Most data of one request.
pub(crate) const DATA_BYTES_MAX: usize = 0x1000;

pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;

pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const ZEROES: u32 = 13;

/// Where a request is: queue and slot.
pub(crate) type Place = (usize, u16);

/// A disk with its driver.
pub(crate) struct Asker {
    pub bench: Bench<Block>,
    pub rings: Vec<Ring>,
}

impl Asker {
    /// A driver that has begun, with all features.
    pub(crate) fn new(spec: BlockSpec, disk: Disk) -> Self {
        Self::refusing(spec, disk, 0)
    }

    /// The same without some features.
    pub(crate) fn refusing(spec: BlockSpec, disk: Disk, refused: u64) -> Self {
        let queues = spec.queues;
        Self::on(Bench::new(Block::new(spec)), queues, refused, |block| {
            block.attach(disk)
        })
    }

    /// A driver of a device that is there, with so many queues, after something is done with its back end.
    pub(crate) fn on(
        bench: Bench<Block>,
        queues: u16,
        refused: u64,
        first: impl FnOnce(&mut Block) -> Result<(), DiskError>,
    ) -> Self {
        bench.device.with_backend(first).expect("the image fits");
        let features = driver::agree(&*bench.device, refused);
        let rings = (0..queues)
            .map(|queue| {
                let base = RINGS + RING_STEP * u64::from(queue);
                Ring::new(&*bench.device, bench.memory(), queue.into(), base, 64, features)
            })
            .collect();
        driver::go(&*bench.device);
        Self { bench, rings }
    }

    pub(crate) fn memory(&self) -> &Memory {
        self.bench.memory()
    }

    fn slot((queue, slot): Place) -> u64 {
        SLOTS + SLOT_BYTES * (queue as u64 * u64::from(QUEUE_SLOTS) + u64::from(slot))
    }

    /// Where a request's data are. Some lie where direct I/O cannot take them.
    pub(crate) fn data_at(place: Place) -> u64 {
        Self::slot(place) + 0x1000 + if place.1 % 4 == 3 { 16 } else { 0 }
    }

    /// Puts a request into the ring, without a kick. `data` are the bytes of a write, or room for a read.
    pub(crate) fn ask(&mut self, place: Place, kind: u32, sector: u64, data: &[u8]) {
        let (slot, at) = (Self::slot(place), Self::data_at(place));
        let header = [u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat();
        self.put(slot, &header);
        self.put(slot + 0x800, &[0xff]);
        self.put(at, data);
        let is_read = kind == READ || kind == ID;
        let length = data.len() as u32;
        let mut buffers = vec![(slot, 16, false)];
        // Long ones are in two pieces.
        match length {
            0 => {}
            2048.. => buffers.extend([(at, 1024, is_read), (at + 1024, length - 1024, is_read)]),
            _ => buffers.push((at, length, is_read)),
        }
        buffers.push((slot + 0x800, 1, true));
        let ring = &mut self.rings[place.0];
        let head = ring.request(place.1, &buffers);
        ring.offer(head);
    }

    /// Puts a discard or write-zeroes into the ring.
    pub(crate) fn ask_zero(&mut self, place: Place, kind: u32, sector: u64, sectors: u32, flags: u32) {
        let range = [
            &sector.to_le_bytes()[..],
            &sectors.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat();
        self.ask(place, kind, 0, &range);
    }

    pub(crate) fn kick(&mut self, queue: usize) {
        self.rings[queue].kick(&*self.bench.device);
    }

    /// The next finished request of a queue.
    pub(crate) fn finished(&mut self, queue: usize) -> Option<Place> {
        let (head, _) = self.rings[queue].used()?;
        Some((queue, head / CHAIN_MAX))
    }

    /// Waits for the next finished request of a queue; returns it and its status.
    pub(crate) fn wait(&mut self, queue: usize) -> (Place, u8) {
        let (head, _) = self.rings[queue].wait_used();
        let place = (queue, head / CHAIN_MAX);
        (place, self.status(place))
    }

    pub(crate) fn status(&self, place: Place) -> u8 {
        self.memory()
            .read_obj(GuestAddress(Self::slot(place) + 0x800))
            .expect("inside the memory")
    }

    pub(crate) fn data(&self, place: Place, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory()
            .read_slice(&mut data, GuestAddress(Self::data_at(place)))
            .expect("inside the memory");
        data
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory()
            .write_slice(bytes, GuestAddress(at))
            .expect("inside the memory");
    }

    /// Asks one thing in queue 0 and waits for its status.
    pub(crate) fn do_one(&mut self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        self.ask((0, 0), kind, sector, data);
        self.kick(0);
        self.wait(0).1
    }

    /// The same for a discard or write-zeroes.
    pub(crate) fn zero_one(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        self.ask_zero((0, 0), kind, sector, sectors, flags);
        self.kick(0);
        self.wait(0).1
    }

    /// Reads sectors through the device.
    pub(crate) fn read(&mut self, sector: u64, sectors: usize) -> Vec<u8> {
        let length = sectors * SECTOR_BYTES;
        assert_eq!(self.do_one(READ, sector, &vec![0xee; length]), OK);
        self.data((0, 0), length)
    }

    /// What a driver reads of the configuration space.
    pub(crate) fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.bench.device.read(0x100 + offset, &mut bytes);
        bytes
    }

    /// Whether the device told that its configuration changed; acknowledges it.
    pub(crate) fn config_changed(&self) -> bool {
        let device: &dyn Device = &*self.bench.device;
        let status = driver::read_register(device, driver::regs::INTERRUPT_STATUS);
        driver::write_register(device, driver::regs::INTERRUPT_ACK, status);
        status & 2 != 0
    }
}
