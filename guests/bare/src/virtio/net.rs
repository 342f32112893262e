//! A virtio network card (virtio 1.2, section 5.1) as a device of smoltcp.

use alloc::vec::Vec;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::memory::Dma;
use super::mmio::{F_EVENT_IDX, F_INDIRECT_DESC, Registers};
use super::queue::{Queue, Segment};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Feature: the configuration begins with the MAC address.
const F_MAC: u64 = 1 << 5;
/// The address of a card that has none of its own (locally administered).
const MAC_DEFAULT: [u8; 6] = [0x52, 0x54, 0x00, 0x4b, 0x65, 0x6d];
/// Bytes of `struct virtio_net_hdr` before each packet; all zero, since no offload is accepted.
const HEADER_BYTES: usize = 12;
/// Largest Ethernet frame, without checksum.
const FRAME_BYTES_MAX: usize = 1514;
/// One packet with its header, so that two share a page.
const BUFFER_BYTES: usize = 2048;
/// Buffers for received packets, and for packets on their way out. A machine may hold output back: when all
/// are on their way, smoltcp waits.
const RECEIVE_BUFFERS: usize = 64;
const TRANSMIT_BUFFERS: usize = 64;

/// The card.
pub struct Nic {
    registers: Registers,
    mac: [u8; 6],
    features: u64,
    resetting: bool,
    receiver: Receiver,
    transmitter: Transmitter,
}

/// The receiving half. The token of a request is its buffer.
pub struct Receiver {
    queue: Queue<Dma>,
}

/// The transmitting half. The token of a request is its place in the order, its buffer and the bytes to send.
pub struct Transmitter {
    queue: Queue<Packet>,
    free: Vec<Dma>,
    /// Packets that smoltcp has sent while a reset was under way.
    waiting: Vec<Packet>,
    sent: u64,
}

struct Packet {
    order: u64,
    buffer: Dma,
    bytes: usize,
}

impl Nic {
    /// Initialises the card; `features` are those wanted of the rings.
    pub fn new(registers: Registers, features: u64) -> Nic {
        let features = features & (F_EVENT_IDX | F_INDIRECT_DESC);
        let mut nic = Nic {
            registers,
            mac: MAC_DEFAULT,
            features,
            resetting: true,
            receiver: Receiver {
                queue: Queue::new(false, false),
            },
            transmitter: Transmitter {
                queue: Queue::new(false, false),
                free: (0..TRANSMIT_BUFFERS)
                    .map(|_| Dma::new(BUFFER_BYTES, BUFFER_BYTES))
                    .collect(),
                waiting: Vec::new(),
                sent: 0,
            },
        };
        registers.reset();
        nic.restart(|| Dma::new(BUFFER_BYTES, BUFFER_BYTES));
        nic
    }

    /// The card's address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Available and used index of the receive queue, then of the transmit queue.
    pub fn indexes(&self) -> [(u16, u16); 2] {
        [self.receiver.queue.indexes(), self.transmitter.queue.indexes()]
    }

    /// Resets the card, whatever is in flight. It works again once [`Nic::poll`] has found the reset
    /// complete; packets that were in flight are sent again, since the card may or may not have sent them.
    pub fn begin_reset(&mut self) {
        self.resetting = true;
        self.registers.begin_reset();
    }

    /// A reset is under way: [`Nic::poll`] must be called again soon, since no interrupt tells its end.
    pub fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// Nothing can be sent until the card has finished something (for which an interrupt then comes).
    pub fn is_full(&mut self) -> bool {
        self.transmitter.reclaim();
        let full = self.transmitter.free.is_empty();
        // Otherwise nobody waits for finished packets, and an interrupt for each would be wasted.
        if self.transmitter.queue.set_interrupts(full) && full {
            self.transmitter.reclaim();
            return self.transmitter.free.is_empty();
        }
        full
    }

    /// Every packet has left.
    pub fn is_drained(&mut self) -> bool {
        self.transmitter.reclaim();
        self.transmitter.free.len() == TRANSMIT_BUFFERS
    }

    /// Its registers are at this address.
    pub fn is_at(&self, base: u64) -> bool {
        self.registers.base() == base
    }

    /// After an interrupt.
    pub fn acknowledge(&self) {
        self.registers.acknowledge();
    }

    /// Goes on with a reset, and notifies the card of new buffers: once for all that were added.
    pub fn poll(&mut self) {
        if self.resetting {
            if !self.registers.is_reset() {
                return;
            }
            let mut buffers: Vec<Dma> = self.receiver.queue.take_in_flight();
            self.restart(|| {
                buffers
                    .pop()
                    .unwrap_or_else(|| Dma::new(BUFFER_BYTES, BUFFER_BYTES))
            });
        }
        if self.receiver.queue.must_notify() {
            self.registers.notify(RECEIVE);
        }
        if self.transmitter.queue.must_notify() {
            self.registers.notify(TRANSMIT);
        }
    }

    /// Initialises the card after a reset.
    fn restart(&mut self, mut buffer: impl FnMut() -> Dma) {
        let accepted = self.registers.negotiate(self.features | F_MAC);
        if accepted & F_MAC != 0 {
            for (i, byte) in self.mac.iter_mut().enumerate() {
                *byte = self.registers.config_byte(i as u64);
            }
        }
        let (event_idx, indirect) = (accepted & F_EVENT_IDX != 0, accepted & F_INDIRECT_DESC != 0);
        // What the card had finished has left; the rest is sent again.
        self.transmitter.reclaim();
        let mut packets = self.transmitter.queue.take_in_flight();
        packets.append(&mut self.transmitter.waiting);
        packets.sort_by_key(|packet| packet.order);
        self.receiver.queue = Queue::new(event_idx, indirect);
        self.transmitter.queue = Queue::new(event_idx, indirect);
        self.transmitter.queue.set_interrupts(false);
        self.registers
            .set_queue(RECEIVE, super::queue::QUEUE_SIZE, self.receiver.queue.addresses());
        self.registers.set_queue(
            TRANSMIT,
            super::queue::QUEUE_SIZE,
            self.transmitter.queue.addresses(),
        );
        for _ in 0..RECEIVE_BUFFERS {
            self.receiver.offer(buffer());
        }
        for packet in packets {
            self.transmitter.offer(packet);
        }
        self.registers.finish();
        self.resetting = false;
    }
}

impl Receiver {
    fn offer(&mut self, buffer: Dma) {
        let segment = Segment {
            address: buffer.address(),
            bytes: BUFFER_BYTES as u32,
            device_writes: true,
        };
        self.queue.add(&[segment], buffer);
    }
}

impl Transmitter {
    fn offer(&mut self, packet: Packet) {
        let segment = Segment {
            address: packet.buffer.address(),
            bytes: (HEADER_BYTES + packet.bytes) as u32,
            device_writes: false,
        };
        self.queue.add(&[segment], packet);
    }

    fn reclaim(&mut self) {
        while let Some((packet, _)) = self.queue.pop() {
            self.free.push(packet.buffer);
        }
    }
}

/// A received packet, taken from the queue when it is consumed.
pub struct Received<'a>(&'a mut Receiver);

/// Room for a packet to send, taken when it is consumed.
pub struct Room<'a> {
    transmitter: &'a mut Transmitter,
    resetting: bool,
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let (buffer, bytes) = self.0.queue.pop().expect("`receive` found a packet");
        let end = (bytes as usize).clamp(HEADER_BYTES, BUFFER_BYTES);
        let result = f(&buffer.bytes()[HEADER_BYTES..end]);
        self.0.offer(buffer);
        result
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, f: F) -> R {
        let mut buffer = self.transmitter.free.pop().expect("`transmit` found room");
        let result = f(&mut buffer.bytes_mut()[HEADER_BYTES..HEADER_BYTES + bytes]);
        let packet = Packet {
            order: self.transmitter.sent,
            buffer,
            bytes,
        };
        self.transmitter.sent += 1;
        if self.resetting {
            self.transmitter.waiting.push(packet);
        } else {
            self.transmitter.offer(packet);
        }
        result
    }
}

impl Device for Nic {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, timestamp: Instant) -> Option<(Received<'_>, Room<'_>)> {
        if self.resetting || !self.receiver.queue.is_ready() {
            return None;
        }
        self.transmit(timestamp)?;
        let room = Room {
            transmitter: &mut self.transmitter,
            resetting: false,
        };
        Some((Received(&mut self.receiver), room))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        if self.transmitter.free.is_empty() {
            self.transmitter.reclaim();
        }
        let resetting = self.resetting;
        (!self.transmitter.free.is_empty()).then_some(Room {
            transmitter: &mut self.transmitter,
            resetting,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES_MAX;
        capabilities
    }
}
