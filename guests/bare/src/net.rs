//! TCP/IP over the network card: smoltcp, with a fixed set of sockets that listen whenever they are free.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use crate::boot::Settings;
use crate::pattern::mix;
use crate::virtio::net::Nic;
use crate::{clock, cpu};

/// Connections that are served at a time.
pub const CONNECTIONS_MAX: usize = 64;
/// Sockets kept beyond that, so that some listen even then.
pub const SPARE_LISTENERS: usize = 8;
/// Bytes of each socket's receive buffer, and of its transmit buffer.
const BUFFER_BYTES: usize = 4096;
/// How long an acknowledgement waits for a reply to travel with. Alone it would be output, and cost a sync,
/// while the reply waits for the disk. (Linux waits as long; a client sends again after 200 ms at the
/// earliest.)
const ACK_DELAY: Duration = Duration::from_millis(40);

/// The network.
pub struct Net {
    /// The card.
    pub nic: Nic,
    interface: Interface,
    sockets: SocketSet<'static>,
    handles: Vec<SocketHandle>,
}

/// When the network wants to be polled again, unless something comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At once.
    Now,
    /// In so many microseconds.
    InUs(u64),
    /// Never.
    Idle,
}

impl Net {
    /// Brings the interface up; the sockets do not listen yet.
    pub fn new(mut nic: Nic, settings: &Settings) -> Net {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(nic.mac())));
        config.random_seed = mix(cpu::rdtsc());
        let mut interface = Interface::new(config, &mut nic, now());
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::new(IpAddress::Ipv4(settings.ip), settings.prefix_bits);
            addresses
                .push(address)
                .expect("an interface holds one address at least");
        });
        interface
            .routes_mut()
            .add_default_ipv4_route(settings.gateway)
            .expect("a routing table holds one route at least");
        let mut sockets = SocketSet::new(Vec::new());
        let handles = (0..CONNECTIONS_MAX + SPARE_LISTENERS)
            .map(|_| {
                let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
                let mut socket = tcp::Socket::new(buffer(), buffer());
                socket.set_nagle_enabled(false);
                socket.set_ack_delay(Some(ACK_DELAY));
                sockets.add(socket)
            })
            .collect();
        Net {
            nic,
            interface,
            sockets,
            handles,
        }
    }

    /// Number of sockets.
    pub fn sockets(&self) -> usize {
        self.handles.len()
    }

    /// A socket, by its number.
    pub fn socket(&mut self, i: usize) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handles[i])
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.handles
            .iter()
            .filter(|handle| self.sockets.get::<tcp::Socket>(**handle).is_active())
            .count()
    }

    /// Receives and sends what there is, and tells the card.
    pub fn poll(&mut self) {
        self.nic.poll();
        self.interface.poll(now(), &mut self.nic, &mut self.sockets);
        self.nic.poll();
    }

    /// When to poll again.
    pub fn next_poll(&mut self) -> Next {
        let delay = self.interface.poll_delay(now(), &self.sockets);
        match delay.map(|delay| delay.total_micros()) {
            // Whatever is due cannot leave before the card has room: its interrupt tells.
            _ if self.nic.is_full() => Next::Idle,
            Some(0) => Next::Now,
            Some(us) => Next::InUs(us),
            None => Next::Idle,
        }
    }
}

fn now() -> Instant {
    Instant::from_micros(clock::now_us() as i64)
}
