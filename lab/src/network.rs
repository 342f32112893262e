//! The three networks of every lab, and who has which address in them.
//!
//! | network | prefix | the outside | host *n* | guest *n* |
//! |---|---|---|---|---|
//! | control | 10.78.0.0/24 | .1 (arbiter, tests) | .(11 + n) | |
//! | replication | 10.79.0.0/24 | | .(11 + n) | |
//! | guests | 10.77.0.0/24 | .1 (clients) | | .(2 + n) |
//!
//! Control is a network of its own so that a cut of the replication link leaves both hosts with the arbiter
//! and the tests with both hosts.

use std::net::Ipv4Addr;

use crate::error::Result;
use crate::netns::Netns;

/// Address of the outside (arbiter, tests) in the control network.
pub const OUTSIDE_CONTROL: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// Address of the outside (clients) in the guests' network.
pub const OUTSIDE_GUESTS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Prefix length of all three networks.
pub const NETMASK_BITS: u8 = 24;
/// Most hosts that a lab can have, by the address plan.
pub(crate) const HOSTS_MAX: usize = 16;

/// One of the networks between the hosts and the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// Hosts, arbiter and tests.
    Control,
    /// Between the hosts: what primary and secondary say to each other.
    Replication,
    /// Guests and their clients.
    Guests,
}

impl Network {
    /// All of them, in the order of the network cards of a host.
    pub const ALL: [Network; 3] = [Network::Control, Network::Replication, Network::Guests];

    /// Name of the network, of its bridge outside, and of a host's interface to it.
    pub fn name(self) -> &'static str {
        match self {
            Network::Control => "control",
            Network::Replication => "replication",
            Network::Guests => "guests",
        }
    }

    /// The name of host `host`'s port on the outer bridge (interface names have at most 15 bytes).
    pub(crate) fn port(self, host: usize) -> String {
        let kind = match self {
            Network::Control => "ctl",
            Network::Replication => "repl",
            Network::Guests => "guest",
        };
        format!("h{host}-{kind}")
    }

    /// MAC address of host `host`'s interface.
    pub(crate) fn mac(self, host: usize) -> String {
        format!("52:54:00:4b:{:02x}:{host:02x}", self.kind())
    }

    /// MAC address of the bridge outside, pinned for the same reason as [`bridge_mac`]:
    /// its ports come and go.
    fn outside_mac(self) -> String {
        format!("52:54:00:4b:05:{:02x}", self.kind())
    }

    fn kind(self) -> u8 {
        match self {
            Network::Control => 1,
            Network::Replication => 2,
            Network::Guests => 3,
        }
    }
}

/// Address of host `host` (from 0) in the control network.
pub fn control_address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, 11 + host as u8)
}

/// Address of host `host` (from 0) in the replication network.
pub fn replication_address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 0, 11 + host as u8)
}

/// Address of guest `guest` (from 0) in the guests' network.
pub fn guest_address(guest: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 2 + guest as u8)
}

/// MAC address of a host's bridge in the guests' network, pinned: a bridge without one takes that of its
/// lowest port and changes it when a TAP joins.
pub(crate) fn bridge_mac(host: usize) -> String {
    format!("52:54:00:4b:04:{host:02x}")
}

/// Makes the outside: a namespace with one bridge a network.
pub(crate) fn outside() -> Result<Netns> {
    let netns = Netns::new("outside")?;
    for network in Network::ALL {
        let name = network.name();
        netns.ip(&format!(
            "link add {name} address {} type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
             link set {name} up",
            network.outside_mac()
        ))?;
    }
    netns.ip(&format!(
        "addr add {OUTSIDE_CONTROL}/{NETMASK_BITS} dev control\n\
         addr add {OUTSIDE_GUESTS}/{NETMASK_BITS} dev guests"
    ))?;
    Ok(netns)
}

/// Takes host `host`'s port off the outer bridge, or puts it back. The host keeps its carrier and hears
/// nothing: a switch that died in between, not a pulled cable.
pub(crate) fn set_joined(outside: &Netns, host: usize, network: Network, joined: bool) -> Result<()> {
    let port = network.port(host);
    match joined {
        true => outside.ip(&format!("link set {port} master {}", network.name())),
        false => outside.ip(&format!("link set {port} nomaster")),
    }
}
