//! virtio-net: a network card on a TAP (virtio 1.2, section 5.1).

use std::io;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::budget::Cost;
use super::offload;
use super::rate::{self, Limiter, RateSpec};
use super::tap::{PACKET_BYTES_MAX, TapDevice, VNET_HEADER_BYTES};
use super::{Backend, Chain, Completions, GuestFault, Input, Nature, QueueRole, QueueSpec, Submission};
use crate::memory::{Memory, Segments, check_range};

const TRANSMIT: usize = 1;

/// Most packets that are received in one turn: however many come, nobody else is kept from the card.
const PACKETS_AT_ONCE: usize = 512;

/// Where the header says over how many buffers a received packet is spread.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

/// A network card.
pub struct Net {
    mac: [u8; 6],
    offload: bool,
    tap: Option<TapDevice>,
    completions: Option<Weak<dyn Completions>>,
    features: u64,
    announce_wanted: bool,
    config_changed: bool,
    /// A packet read from the TAP for which the guest had no room yet, and its length.
    waiting: (Box<[u8]>, usize),
    /// What it may receive and transmit, if that is limited.
    rates: Option<Rates>,
}

/// Each direction has buckets of its own.
struct Rates {
    receive: Limiter,
    transmit: Limiter,
}

/// What a guest asks of its network card.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NetRequest {
    /// Send the packet (with its virtio-net header) in these buffers.
    Transmit(Segments),
    /// A command on the control queue, and where its answer goes.
    Control {
        /// Class and command.
        command: [u8; 2],
        /// Guest physical address of the answer.
        answer: u64,
    },
}

/// What of a network card is neither transport nor queue nor request.
#[derive(Serialize, Deserialize)]
pub struct NetState {
    mac: [u8; 6],
    offload: bool,
    announce_wanted: bool,
}

impl Net {
    /// A card whose cable is not plugged in yet.
    pub fn new(mac: [u8; 6], offload: bool) -> Self {
        Self {
            mac,
            offload,
            tap: None,
            completions: None,
            features: 0,
            announce_wanted: false,
            config_changed: false,
            waiting: (vec![0; PACKET_BYTES_MAX].into_boxed_slice(), 0),
            rates: None,
        }
    }

    /// Limits what it receives, and what it transmits, to this rate each.
    pub fn set_rate(&mut self, rate: RateSpec) {
        let limiter = || Limiter::new(rate, Instant::now());
        self.rates = (!rate.is_unlimited()).then(|| Rates {
            receive: limiter(),
            transmit: limiter(),
        });
    }

    /// The next packet from the TAP: its length, if there is one that may be received now.
    fn receive(&mut self) -> Result<Option<usize>, Instant> {
        let Some(tap) = &self.tap else { return Ok(None) };
        if let Some(rates) = &mut self.rates {
            rates.receive.is_open(Instant::now())?;
        }
        let received = tap.receive(&mut self.waiting.0);
        if let (Some(rates), Some(length)) = (&mut self.rates, received) {
            rates.receive.spend(packet_bytes(length as u64));
        }
        Ok(received)
    }

    /// Plugs the cable in: into a TAP, which has its carrier since it is open. A cable that was in is pulled
    /// out; what the guest has in its queues stays there.
    ///
    /// # Errors
    /// If the TAP cannot be watched.
    pub fn attach(&mut self, tap: TapDevice) -> io::Result<()> {
        if let Some(completions) = &self.completions {
            tap.watch(completions.clone())?;
        }
        self.tap = Some(tap);
        self.set_offloads();
        Ok(())
    }

    /// The TAP may leave to the guest only what its driver has accepted.
    fn set_offloads(&self) {
        let has = |feature: u32| self.features & (1 << feature) != 0;
        if let Some(tap) = &self.tap {
            tap.set_offloads(
                has(VIRTIO_NET_F_GUEST_CSUM),
                has(VIRTIO_NET_F_GUEST_TSO4),
                has(VIRTIO_NET_F_GUEST_TSO6),
            );
        }
    }

    /// Whether it is plugged in.
    pub(crate) fn is_attached(&self) -> bool {
        self.tap.is_some()
    }

    /// Whether the TAP that the cable is in was deleted.
    pub(crate) fn is_cut(&self) -> bool {
        self.tap.as_ref().is_some_and(|tap| !tap.is_there())
    }

    /// Pulls the cable out: nothing leaves from here on.
    pub fn detach(&mut self) {
        self.tap = None;
    }

    /// Tells the network where this card now is: sends `frames` (whole Ethernet frames) as if the guest had,
    /// and asks the guest to announce itself (virtio 1.2, section 5.1.6.5.4).
    pub fn announce(&mut self, frames: &[Vec<u8>]) {
        if let Some(tap) = &self.tap {
            for frame in frames {
                tap.send(&[&[0; VNET_HEADER_BYTES], &frame[..]].concat());
            }
        }
        if self.features & (1 << VIRTIO_NET_F_GUEST_ANNOUNCE) != 0 {
            self.announce_wanted = true;
            self.config_changed = true;
        }
    }

    /// The card's address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn control(&mut self, command: [u8; 2]) -> u8 {
        const OK: u8 = 0;
        const ERROR: u8 = 1;
        let known = [VIRTIO_NET_CTRL_ANNOUNCE as u8, VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8];
        if command != known {
            return ERROR;
        }
        self.announce_wanted = false;
        OK
    }

    /// Fills the waiting packet into receive buffers. Returns false if the guest has not given enough of
    /// them.
    fn deliver(&mut self, queue: &mut Queue, memory: &Memory) -> Result<bool, GuestFault> {
        let mergeable = self.features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
        let start = queue.next_avail();
        let (packet, length) = (&mut self.waiting.0, self.waiting.1);
        let mut buffers: Vec<(u16, Segments)> = Vec::new();
        let mut room = 0;
        while room < length as u64 {
            let chain = queue.iter(memory).map_err(fault)?.next();
            let Some(chain) = chain else {
                queue.set_next_avail(start);
                return Ok(false);
            };
            let chain = Chain::new(chain, queue.size());
            let head = chain.head_index();
            let (_, writable) = chain.buffers(memory)?;
            room += writable.len();
            buffers.push((head, writable));
            if !mergeable {
                break;
            }
            if buffers.len() > usize::from(queue.size()) {
                return Err(GuestFault("receive buffers without room".into()));
            }
        }
        packet[NUM_BUFFERS].copy_from_slice(&(buffers.len() as u16).to_le_bytes());
        // What does not fit into the only buffer that a driver without mergeable buffers gave is cut off: it
        // broke its promise of room for the largest packet.
        let mut rest = &packet[..length];
        for (head, segments) in buffers {
            let written = segments.write(rest, memory)?;
            rest = &rest[written as usize..];
            queue.add_used(memory, head, written).map_err(fault)?;
        }
        self.waiting.1 = 0;
        Ok(true)
    }
}

impl Backend for Net {
    type Request = NetRequest;
    type State = NetState;

    fn device_id(&self) -> u32 {
        1
    }

    fn features(&self) -> u64 {
        let mut features = vec![
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
            VIRTIO_NET_F_MRG_RXBUF,
        ];
        if self.offload {
            features.extend([
                VIRTIO_NET_F_CSUM,
                VIRTIO_NET_F_GUEST_CSUM,
                VIRTIO_NET_F_GUEST_TSO4,
                VIRTIO_NET_F_GUEST_TSO6,
                VIRTIO_NET_F_HOST_TSO4,
                VIRTIO_NET_F_HOST_TSO6,
            ]);
        }
        features.into_iter().fold(0, |all, feature| all | 1 << feature)
    }

    fn queues(&self) -> &'static [QueueSpec] {
        &[
            QueueSpec {
                suffix: ".rx",
                entries_max: 256,
                role: QueueRole::Supply,
            },
            QueueSpec {
                suffix: ".tx",
                entries_max: 256,
                role: QueueRole::Requests,
            },
            QueueSpec {
                suffix: ".ctrl",
                entries_max: 64,
                role: QueueRole::Requests,
            },
        ]
    }

    fn config(&self) -> Vec<u8> {
        let announce = if self.announce_wanted {
            VIRTIO_NET_S_ANNOUNCE
        } else {
            0
        };
        let status = (VIRTIO_NET_S_LINK_UP | announce) as u16;
        [&self.mac[..], &status.to_le_bytes(), &1u16.to_le_bytes()].concat()
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        self.set_offloads();
    }

    fn reset(&mut self) {
        self.activate(0);
        self.announce_wanted = false;
        self.waiting.1 = 0;
    }

    fn connect(&mut self, completions: Weak<dyn Completions>) {
        self.completions = Some(completions);
    }

    fn parse(
        &mut self,
        queue: usize,
        chain: Chain<'_>,
        memory: &Memory,
    ) -> Result<(NetRequest, Nature), GuestFault> {
        let (mut readable, mut writable) = chain.buffers(memory)?;
        if queue == TRANSMIT {
            check_length(&readable)?;
            return Ok((NetRequest::Transmit(readable), Nature::Output));
        }
        let command = readable.split_front(2).and_then(|bytes| bytes.read(memory).ok());
        let command = command.and_then(|bytes| <[u8; 2]>::try_from(bytes).ok());
        match (command, writable.split_last_byte()) {
            (Some(command), Some(answer)) => Ok((NetRequest::Control { command, answer }, Nature::Input)),
            _ => Err(GuestFault(
                "a control command without a command or without room for the answer".into(),
            )),
        }
    }

    fn check(&self, request: &NetRequest, memory: &Memory) -> Result<(), GuestFault> {
        match request {
            NetRequest::Transmit(segments) => {
                check_length(segments)?;
                Ok(segments.check(memory)?)
            }
            NetRequest::Control { answer, .. } => Ok(check_range(memory, *answer, 1)?),
        }
    }

    fn cost(&self, request: &NetRequest) -> Cost {
        match request {
            NetRequest::Transmit(segments) => Cost {
                segments: segments.count(),
                bytes: segments.len(),
            },
            NetRequest::Control { .. } => Cost::default(),
        }
    }

    fn admit(&mut self, request: &NetRequest) -> Result<(), Instant> {
        match request {
            NetRequest::Transmit(packet) => {
                let rates = self.rates.as_mut().map(|rates| &mut rates.transmit);
                rate::admit(rates, packet_bytes(packet.len()))
            }
            NetRequest::Control { .. } => Ok(()),
        }
    }

    fn copy_aside(&self, request: &NetRequest, memory: &Memory) -> Result<Vec<u8>, GuestFault> {
        match request {
            NetRequest::Transmit(segments) => Ok(segments.read(memory)?),
            NetRequest::Control { .. } => Ok(Vec::new()),
        }
    }

    fn submit(
        &mut self,
        _: u64,
        request: &NetRequest,
        data: Option<Vec<u8>>,
        memory: &Memory,
    ) -> Result<Submission, GuestFault> {
        match request {
            NetRequest::Transmit(segments) => {
                let mut packet = data.map_or_else(|| segments.read(memory), Ok)?;
                match (offload::check(&mut packet, self.features), &self.tap) {
                    (Ok(()), Some(tap)) => tap.send(&packet),
                    (Ok(()), None) => {}
                    (Err(unfit), _) => tracing::debug!("a packet of the guest is not sent: {unfit:?}"),
                }
                Ok(Submission::Done(0))
            }
            NetRequest::Control { command, answer } => {
                let status = self.control(*command);
                let place = Segments::at(*answer, 1);
                Ok(Submission::Done(place.write(&[status], memory)?))
            }
        }
    }

    fn input(&mut self, queue: &mut Queue, memory: &Memory) -> Result<Input, GuestFault> {
        let mut used = false;
        for _ in 0..PACKETS_AT_ONCE {
            if self.waiting.1 == 0 {
                let length = match self.receive() {
                    Ok(Some(length)) => length,
                    Ok(None) => return Ok(Input::idle(used)),
                    Err(until) => {
                        let paced = Some(until);
                        return Ok(Input {
                            paced,
                            ..Input::idle(used)
                        });
                    }
                };
                if length < VNET_HEADER_BYTES {
                    continue;
                }
                self.waiting.1 = length;
            }
            if self.deliver(queue, memory)? {
                used = true;
            } else if !wants_more_buffers(queue, memory)? {
                return Ok(Input::idle(used));
            }
        }
        let more = true;
        Ok(Input {
            more,
            ..Input::idle(used)
        })
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    fn save(&self) -> NetState {
        NetState {
            mac: self.mac,
            offload: self.offload,
            announce_wanted: self.announce_wanted,
        }
    }

    fn load(&mut self, state: NetState) -> Result<(), String> {
        if (state.mac, state.offload) != (self.mac, self.offload) {
            return Err("another MAC address or other offloads".into());
        }
        self.announce_wanted = state.announce_wanted;
        Ok(())
    }
}

/// Asks the driver to kick when it gives receive buffers beyond those that it has given by now. Returns
/// whether it just did, so that one should look again.
fn wants_more_buffers(queue: &mut Queue, memory: &Memory) -> Result<bool, GuestFault> {
    let unused = queue.next_avail();
    let given = queue.avail_idx(memory, Ordering::Acquire).map_err(fault)?;
    // The kick is wanted behind the last buffer given, not behind the last one used.
    queue.set_next_avail(given.0);
    let more = queue.enable_notification(memory);
    queue.set_next_avail(unused);
    more.map_err(fault)
}

/// What a packet counts for: its header is between guest and host only.
fn packet_bytes(length: u64) -> u64 {
    length.saturating_sub(VNET_HEADER_BYTES as u64)
}

fn check_length(packet: &Segments) -> Result<(), GuestFault> {
    match packet.len() {
        length if length < VNET_HEADER_BYTES as u64 || length > PACKET_BYTES_MAX as u64 => {
            Err(GuestFault(format!("a packet of {length} bytes, header included")))
        }
        _ => Ok(()),
    }
}

fn fault(error: virtio_queue::Error) -> GuestFault {
    GuestFault(format!("a virtqueue is not usable: {error}"))
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
