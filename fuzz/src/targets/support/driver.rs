//! A driver that does whatever the tape says: registers, rings, long chains,
//! and what a pair does to its device.

use kemari_vmm::state::StateBlob;
use kemari_vmm::virtio::budget::DEVICE_STATE_BYTES_MAX;
use vm_memory::{Bytes, GuestAddress};

use super::bench::{Bench, MEMORY_BYTES};
use super::tape::Tape;

/// Steps of one input at most.
const STEPS_MAX: usize = 300;
/// Where the rings of the queues lie at first: descriptors, available and used ring, 4 KiB each.
const RINGS: u64 = 0x1_0000;
const RING_STEP: u64 = 0x1_0000;
/// Entries of a queue at first.
const ENTRIES: u32 = 32;

/// Offsets of registers (virtio 1.2, section 4.2.2).
mod regs {
    pub(crate) const DEVICE_FEATURES: u64 = 0x010;
    pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(crate) const DRIVER_FEATURES: u64 = 0x020;
    pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(crate) const QUEUE_SEL: u64 = 0x030;
    pub(crate) const QUEUE_NUM: u64 = 0x038;
    pub(crate) const QUEUE_READY: u64 = 0x044;
    pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
    pub(crate) const STATUS: u64 = 0x070;
    pub(crate) const QUEUE_DESC: u64 = 0x080;
    pub(crate) const QUEUE_DRIVER: u64 = 0x090;
    pub(crate) const QUEUE_DEVICE: u64 = 0x0a0;
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const TABLE: u16 = 4;

/// A driver of one device.
pub(crate) struct Driver {
    pub bench: Bench,
    epoch: u64,
    /// By queue, how many chains were made available.
    available: [u16; 4],
}

impl Driver {
    /// A driver that has done nothing.
    pub(crate) fn new(bench: Bench) -> Self {
        Self {
            bench,
            epoch: 0,
            available: [0; 4],
        }
    }

    /// Does what the tape says, to its end.
    pub(crate) fn play(&mut self, tape: &mut Tape<'_>) {
        for _ in 0..STEPS_MAX {
            if tape.is_empty() {
                break;
            }
            self.step(tape);
        }
    }

    /// What a machine that ends does: nothing waits for anything any more.
    pub(crate) fn end(self) {
        self.bench.hub.hold_output(false);
        self.bench.device.release_all();
        self.bench.device.abandon();
    }

    fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.u8() % 20 {
            0 | 1 => {
                let (offset, value) = (u64::from(tape.u8() & 0x7f) * 4, tape.u32());
                self.write_register(offset, value);
            }
            2 => self.write_odd(tape),
            3 => self.read_odd(tape),
            4 => self.write_memory(tape),
            5 => self.chain(tape),
            6 | 7 => self.request(tape),
            8 => {
                let (queue, head) = (self.queue(tape), tape.u16());
                self.offer(queue, head);
            }
            9 | 10 => {
                let queue = self.queue(tape);
                self.kick(queue);
            }
            11 => {
                self.epoch += 1;
                self.bench.device.capture(self.epoch);
            }
            12 => self.bench.device.release(self.epoch),
            13 => self.bench.device.uncapture(self.epoch),
            14 => self.bench.hub.hold_output(tape.u8() & 1 != 0),
            15 => self.bench.device.wake(),
            16 => self.move_on(tape.u8() & 1 != 0),
            17 => {
                let refused = u64::from(tape.u8()) << 24;
                self.begin_well(refused);
            }
            18 => {
                let queue = self.queue(tape);
                let index = tape.u16();
                self.put(ring(queue) + 0x1002, &index.to_le_bytes());
            }
            _ => {
                self.write_memory(tape);
                let queue = self.queue(tape);
                self.kick(queue);
            }
        }
    }

    fn queue(&self, tape: &mut Tape<'_>) -> u32 {
        u32::from(tape.u8()) % self.bench.kind.queues().max(1)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // A guest that writes where no memory is writes nothing.
        let _ = self.bench.hub.memory.write_slice(bytes, GuestAddress(at));
    }

    /// A reset waits for acks, which come from this thread: so they come before.
    fn write_register(&self, offset: u64, value: u32) {
        if value == 0 && (offset == regs::STATUS || offset == regs::QUEUE_READY) {
            self.bench.device.release(u64::MAX);
        }
        self.bench.device.write(offset, &value.to_le_bytes());
    }

    fn read_register(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.bench.device.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn write_odd(&self, tape: &mut Tape<'_>) {
        let (offset, count) = (u64::from(tape.u16()), usize::from(tape.u8() % 9));
        let bytes = tape.bytes(count);
        match <[u8; 4]>::try_from(bytes) {
            Ok(word) => self.write_register(offset, u32::from_le_bytes(word)),
            Err(_) => self.bench.device.write(offset, bytes),
        }
    }

    fn read_odd(&self, tape: &mut Tape<'_>) {
        let offset = u64::from(tape.u16());
        let mut bytes = vec![0; usize::from(tape.u8() % 72)];
        self.bench.device.read(offset, &mut bytes);
    }

    /// Any bytes anywhere.
    pub(crate) fn write_memory(&self, tape: &mut Tape<'_>) {
        let at = tape.number(MEMORY_BYTES);
        let count = usize::from(tape.u8());
        self.put(at, tape.bytes(count));
    }

    /// A chain as long as may be: descriptors that follow one another in the ring, or anywhere.
    fn chain(&self, tape: &mut Tape<'_>) {
        let queue = self.queue(tape);
        let at = match tape.u8() % 3 {
            0 => tape.number(MEMORY_BYTES),
            _ => ring(queue) + 16 * u64::from(tape.u8()),
        };
        let flags = tape.u8();
        let count = u32::from(tape.u8()) * if flags & 1 != 0 { 256 } else { 1 };
        let (address, length) = (tape.number(MEMORY_BYTES), tape.number(MEMORY_BYTES) as u32);
        let (step, writable_from) = (u64::from(tape.u8()) * 16, u32::from(tape.u8()));
        let mut bytes = Vec::with_capacity(count as usize * 16);
        for index in 0..count {
            let is_last = index + 1 == count;
            // A chain that ends well, has no end, or bites its own tail.
            let (more, next) = match (is_last, flags & 6) {
                (true, 2) => (NEXT, 0),
                (true, 4) => (NEXT, index as u16),
                (true, _) => (0, 0),
                (false, _) => (NEXT, (index + 1) as u16),
            };
            let writes = if index >= writable_from { WRITE } else { 0 };
            let address = address.wrapping_add(step.wrapping_mul(index.into()));
            bytes.extend_from_slice(&descriptor(address, length, more | writes, next));
        }
        self.put(at, &bytes);
    }

    /// A request whose shape is often right: a header, data, and a byte for the status.
    fn request(&mut self, tape: &mut Tape<'_>) {
        let queue = self.queue(tape);
        let shape = tape.u8();
        let slot = u16::from(tape.u8() % 8) * 4;
        let header_at = 0x8_0000 + 64 * u64::from(slot);
        let header = [u64::from(tape.u8() % 16), tape.number(0x200)].map(u64::to_le_bytes);
        self.put(header_at, &header.concat());
        let data = (tape.number(MEMORY_BYTES), tape.number(0x2_0000) as u32);
        let writes = if shape & 1 != 0 { WRITE } else { 0 };
        let (next, base) = match shape & 2 {
            0 => (slot, ring(queue) + 16 * u64::from(slot)),
            _ => (0, ring(queue) + 0x3000 + 64 * u64::from(slot)),
        };
        let chain = [
            descriptor(header_at, 16, NEXT, next + 1),
            descriptor(data.0, data.1, NEXT | writes, next + 2),
            descriptor(header_at + 32, 1 + u32::from(shape >> 4), WRITE, 0),
        ];
        self.put(base, &chain.concat());
        if shape & 2 != 0 {
            let table = descriptor(base, 48, TABLE, 0);
            self.put(ring(queue) + 16 * u64::from(slot), &table);
        }
        self.offer(queue, slot);
        if shape & 4 != 0 {
            self.kick(queue);
        }
    }

    /// Makes a chain available.
    fn offer(&mut self, queue: u32, head: u16) {
        let index = &mut self.available[queue as usize];
        let at = ring(queue) + 0x1004 + 2 * u64::from(*index % ENTRIES as u16);
        *index = index.wrapping_add(1);
        let index = *index;
        self.put(at, &head.to_le_bytes());
        self.put(ring(queue) + 0x1002, &index.to_le_bytes());
    }

    fn kick(&self, queue: u32) {
        self.write_register(regs::QUEUE_NOTIFY, queue);
    }

    /// As a good driver begins, but that it may refuse features.
    pub(crate) fn begin_well(&mut self, refused: u64) {
        self.write_register(regs::STATUS, 0);
        self.write_register(regs::STATUS, 3);
        for half in 0..2u32 {
            self.write_register(regs::DEVICE_FEATURES_SEL, half);
            let offered = self.read_register(regs::DEVICE_FEATURES);
            let accepted = offered & !((refused >> (32 * half)) as u32);
            self.write_register(regs::DRIVER_FEATURES_SEL, half);
            self.write_register(regs::DRIVER_FEATURES, accepted);
        }
        self.write_register(regs::STATUS, 3 | 8);
        for queue in 0..self.bench.kind.queues() {
            self.put(ring(queue), &[0; 0x3000]);
            self.write_register(regs::QUEUE_SEL, queue);
            self.write_register(regs::QUEUE_NUM, ENTRIES);
            for (register, offset) in [
                (regs::QUEUE_DESC, 0),
                (regs::QUEUE_DRIVER, 0x1000),
                (regs::QUEUE_DEVICE, 0x2000),
            ] {
                self.write_register(register, (ring(queue) + offset) as u32);
                self.write_register(register + 4, 0);
            }
            self.write_register(regs::QUEUE_READY, 1);
        }
        self.available = [0; 4];
        self.write_register(regs::STATUS, 3 | 8 | 4);
    }

    /// What the device is, saved as at a capture.
    pub(crate) fn save(&self) -> StateBlob {
        let _freeze = self.bench.hub.freeze();
        self.bench.device.save()
    }

    /// Whatever was done: what is saved is within its budget, loads elsewhere and is the same there. `stays`:
    /// it goes on there.
    pub(crate) fn move_on(&mut self, stays: bool) {
        let (state, there) = {
            let _freeze = self.bench.hub.freeze();
            (self.bench.device.save(), self.bench.elsewhere())
        };
        assert!(
            state.bytes.len() <= DEVICE_STATE_BYTES_MAX,
            "it is over its budget"
        );
        there.device.load(&state).expect("what is saved loads");
        assert!(there.device.save() == state, "what was loaded is what was saved");
        if stays {
            self.bench.device.abandon();
            self.bench = there;
            self.go_on();
        }
    }

    /// What a takeover does with a device whose state was loaded.
    pub(crate) fn go_on(&self) {
        self.bench.device.release_all();
        self.bench.device.wake();
    }
}

fn ring(queue: u32) -> u64 {
    RINGS + RING_STEP * u64::from(queue)
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
