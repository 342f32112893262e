//! A driver of virtio devices: it writes rings into memory as a guest would, good ones and bad ones.

use kemari_vmm::devices::Device;
use kemari_vmm::memory::Memory;
use vm_memory::{Bytes, GuestAddress};

/// Offsets of registers (virtio 1.2, section 4.2.2).
pub(crate) mod regs {
    pub(crate) const DEVICE_FEATURES: u64 = 0x010;
    pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(crate) const DRIVER_FEATURES: u64 = 0x020;
    pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(crate) const QUEUE_SEL: u64 = 0x030;
    pub(crate) const QUEUE_NUM: u64 = 0x038;
    pub(crate) const QUEUE_READY: u64 = 0x044;
    pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
    pub(crate) const INTERRUPT_ACK: u64 = 0x064;
    pub(crate) const STATUS: u64 = 0x070;
    pub(crate) const QUEUE_DESC: u64 = 0x080;
    pub(crate) const QUEUE_DRIVER: u64 = 0x090;
    pub(crate) const QUEUE_DEVICE: u64 = 0x0a0;
}

pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const NEEDS_RESET: u32 = 0x40;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const TABLE: u16 = 4;

/// Descriptors of one request at most, in the ring or in its indirect table.
pub(crate) const CHAIN_MAX: u16 = 4;

pub(crate) fn write_register(device: &dyn Device, offset: u64, value: u32) {
    device.write(offset, &value.to_le_bytes());
}

pub(crate) fn read_register(device: &dyn Device, offset: u64) -> u32 {
    let mut word = [0; 4];
    device.read(offset, &mut word);
    u32::from_le_bytes(word)
}

/// Resets the device and agrees on features: what it offers, without `refused`.
pub(crate) fn agree(device: &dyn Device, refused: u64) -> u64 {
    write_register(device, regs::STATUS, 0);
    write_register(device, regs::STATUS, 3);
    let mut features = 0;
    for half in 0..2 {
        write_register(device, regs::DEVICE_FEATURES_SEL, half);
        let offered = u64::from(read_register(device, regs::DEVICE_FEATURES)) << (32 * half);
        features |= offered & !refused;
        write_register(device, regs::DRIVER_FEATURES_SEL, half);
        write_register(device, regs::DRIVER_FEATURES, (features >> (32 * half)) as u32);
    }
    write_register(device, regs::STATUS, 3 | 8);
    assert_eq!(
        read_register(device, regs::STATUS),
        3 | 8,
        "the features are accepted"
    );
    features
}

/// The driver is ready.
pub(crate) fn go(device: &dyn Device) {
    write_register(device, regs::STATUS, 3 | 8 | DRIVER_OK);
}

pub(crate) fn needs_reset(device: &dyn Device) -> bool {
    read_register(device, regs::STATUS) & NEEDS_RESET != 0
}

/// A buffer of a request: address, length, whether the device writes it.
pub(crate) type Buffer = (u64, u32, bool);

/// One queue, from the driver's side.
#[derive(Clone)]
pub(crate) struct Ring {
    pub memory: Memory,
    pub queue: u32,
    /// Where descriptors (4 KiB), available ring (4 KiB), used ring (4 KiB) and indirect tables lie.
    pub base: u64,
    pub size: u16,
    pub available: u16,
    pub seen: u16,
    event_idx: bool,
    indirect: bool,
    /// `available` at the last look whether to kick.
    told: u16,
}

impl Ring {
    /// Bytes that a ring takes.
    pub(crate) const BYTES: u64 = 0x3000 + 0x100 * 64;

    /// Sets a queue up, after [`agree`] and before [`go`].
    pub(crate) fn new(
        device: &dyn Device,
        memory: &Memory,
        queue: u32,
        base: u64,
        size: u16,
        features: u64,
    ) -> Self {
        memory
            .write_slice(&vec![0; Self::BYTES as usize], GuestAddress(base))
            .expect("room for the ring");
        write_register(device, regs::QUEUE_SEL, queue);
        write_register(device, regs::QUEUE_NUM, size.into());
        for (register, address) in [
            (regs::QUEUE_DESC, base),
            (regs::QUEUE_DRIVER, base + 0x1000),
            (regs::QUEUE_DEVICE, base + 0x2000),
        ] {
            write_register(device, register, address as u32);
            write_register(device, register + 4, (address >> 32) as u32);
        }
        write_register(device, regs::QUEUE_READY, 1);
        Self {
            memory: memory.clone(),
            queue,
            base,
            size,
            available: 0,
            seen: 0,
            event_idx: features & EVENT_IDX != 0,
            indirect: features & INDIRECT != 0,
            told: 0,
        }
    }

    /// Requests that the queue has room for.
    pub(crate) fn slots(&self) -> u16 {
        (self.size / CHAIN_MAX).min(64)
    }

    /// Writes one descriptor into the ring's table.
    pub(crate) fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.descriptor_at(self.base + 16 * u64::from(index), address, length, flags, next);
    }

    /// Writes one descriptor anywhere.
    pub(crate) fn descriptor_at(&self, at: u64, address: u64, length: u32, flags: u16, next: u16) {
        self.put(at, address);
        self.put(at + 8, length);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("inside the memory");
    }

    fn get(&self, address: u64) -> u16 {
        self.memory
            .read_obj(GuestAddress(address))
            .expect("inside the memory")
    }

    /// Where the indirect table of a slot lies.
    pub(crate) fn table(&self, slot: u16) -> u64 {
        self.base + 0x3000 + 0x100 * u64::from(slot)
    }

    /// Writes a request into a slot; returns its head.
    pub(crate) fn request(&self, slot: u16, buffers: &[Buffer]) -> u16 {
        assert!(buffers.len() <= usize::from(CHAIN_MAX) && slot < self.slots());
        let head = slot * CHAIN_MAX;
        let (table, first) = match self.indirect {
            true => (self.table(slot), 0),
            false => (self.base, head),
        };
        for (number, &(address, length, writable)) in buffers.iter().enumerate() {
            let index = first + number as u16;
            let last = number + 1 == buffers.len();
            let flags = if last { 0 } else { NEXT } | if writable { WRITE } else { 0 };
            self.descriptor_at(table + 16 * u64::from(index), address, length, flags, index + 1);
        }
        if self.indirect {
            self.descriptor(head, table, 16 * buffers.len() as u32, TABLE, 0);
        }
        head
    }

    /// Makes a chain available.
    pub(crate) fn offer(&mut self, head: u16) {
        self.put(
            self.base + 0x1004 + 2 * u64::from(self.available % self.size),
            head,
        );
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    /// Says how many chains were made available.
    pub(crate) fn set_available(&self, index: u16) {
        self.put(self.base + 0x1002, index);
    }

    /// Kicks, if the device wants to be told.
    pub(crate) fn kick(&mut self, device: &dyn Device) {
        if self.event_idx {
            let event = self.get(self.base + 0x2004 + 8 * u64::from(self.size));
            let new = self.available.wrapping_sub(event).wrapping_sub(1);
            let wanted = new < self.available.wrapping_sub(self.told);
            self.told = self.available;
            if !wanted {
                return;
            }
        }
        self.kick_always(device);
    }

    /// Kicks.
    pub(crate) fn kick_always(&self, device: &dyn Device) {
        write_register(device, regs::QUEUE_NOTIFY, self.queue);
    }

    /// The next used request: its head and the bytes written.
    pub(crate) fn used(&mut self) -> Option<(u16, u32)> {
        if self.get(self.base + 0x2002) == self.seen {
            return None;
        }
        let at = self.base + 0x2004 + 8 * u64::from(self.seen % self.size);
        let length = self
            .memory
            .read_obj(GuestAddress(at + 4))
            .expect("inside the memory");
        self.seen = self.seen.wrapping_add(1);
        // Interrupt again at the next one.
        self.put(self.base + 0x1004 + 2 * u64::from(self.size), self.seen);
        Some((self.get(at), length))
    }

    /// Waits for the next used request.
    pub(crate) fn wait_used(&mut self) -> (u16, u32) {
        let begin = std::time::Instant::now();
        loop {
            if let Some(used) = self.used() {
                return used;
            }
            assert!(begin.elapsed().as_secs() < 20, "no request is finished");
            std::thread::yield_now();
        }
    }
}
