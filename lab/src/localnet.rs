//! Hosts as network namespaces on this machine.

use crate::error::Result;
use crate::netns::Netns;
use crate::network::{
    HOSTS_MAX, NETMASK_BITS, Network, bridge_mac, control_address, outside, replication_address, set_joined,
};

/// A MAC address that nobody has: frames sent to it arrive nowhere.
const NOBODY: &str = "02:00:00:00:de:ad";

/// Hosts on this machine, joined by bridges in a namespace that is the outside.
///
/// ```text
///   outside:  [control 10.78.0.1]    [replication]          [guests 10.77.0.1]      clients, arbiter
///                  |                      |                       |
///   host n:   control .11+n         replication .11+n       guests - br0 - tap0, tap1, ...
/// ```
///
/// Typical use:
///
/// ```no_run
/// # fn main() -> lab::Result<()> {
/// use std::net::TcpStream;
/// use lab::{LocalNet, Network, guest_address};
///
/// let net = LocalNet::new(2, 1)?;                       // two hosts with one TAP each
/// let a = net.host(0).netns().spawn("a", "kemari", &["run", "vm.toml"])?;     // killed when dropped
/// let _b = net.host(1).netns().spawn("b", "kemari", &["secondary", "vm.toml"])?;
/// let client = net.outside().run(|| TcpStream::connect((guest_address(0), 6379)))?;
/// net.cut(0, Network::Replication)?;                    // silence; `join` puts it back
/// net.down(0)?;                                         // all three networks of host 0
/// drop(a);                                              // SIGKILL behind the silence: a power cut
/// # drop(client); Ok(()) }
/// ```
///
/// The TAPs are persistent, on the host's bridge, made with a vnet header and one queue, owned by root
/// and *down*: who runs the VM opens them by name inside the host's namespace and brings them up.
#[derive(Debug)]
pub struct LocalNet {
    outside: Netns,
    hosts: Vec<LocalHost>,
}

/// One host of a [`LocalNet`].
#[derive(Debug)]
pub struct LocalHost {
    netns: Netns,
}

impl LocalHost {
    /// Its namespace, in which its programs run.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Name of its TAP device for guest `guest` (from 0).
    pub fn tap(&self, guest: usize) -> String {
        tap_name(guest)
    }
}

impl LocalNet {
    /// Makes `hosts` hosts (1 to 16), each with `taps` TAP devices `tap0`, `tap1`, ... on its bridge.
    pub fn new(hosts: usize, taps: usize) -> Result<LocalNet> {
        assert!(
            (1..=HOSTS_MAX).contains(&hosts),
            "a LocalNet has 1 to {HOSTS_MAX} hosts"
        );
        let outside = outside()?;
        let hosts = (0..hosts)
            .map(|host| LocalHost::new(&outside, host, taps))
            .collect::<Result<_>>()?;
        Ok(LocalNet { outside, hosts })
    }

    /// Where clients and the arbiter live: in the control network and in the guests' network.
    pub fn outside(&self) -> &Netns {
        &self.outside
    }

    /// Host `host`, from 0.
    pub fn host(&self, host: usize) -> &LocalHost {
        &self.hosts[host]
    }

    /// Number of hosts.
    pub fn host_count(&self) -> usize {
        self.hosts.len()
    }

    /// Cuts host `host` off a network: it keeps its carrier, and whatever it sends arrives nowhere.
    pub fn cut(&self, host: usize, network: Network) -> Result<()> {
        set_joined(&self.outside, host, network, false)
    }

    /// Ends a [`LocalNet::cut`].
    pub fn join(&self, host: usize, network: Network) -> Result<()> {
        set_joined(&self.outside, host, network, true)
    }

    /// Pulls the cable of host `host` in a network: it loses its carrier, and sees that.
    pub fn unplug(&self, host: usize, network: Network) -> Result<()> {
        self.outside.ip(&format!("link set {} down", network.port(host)))
    }

    /// Ends a [`LocalNet::unplug`].
    pub fn plug(&self, host: usize, network: Network) -> Result<()> {
        self.outside.ip(&format!("link set {} up", network.port(host)))
    }

    /// Cuts host `host` off all networks. Programs killed after it die in silence:
    /// nobody sees their FIN or RST.
    pub fn down(&self, host: usize) -> Result<()> {
        Network::ALL
            .into_iter()
            .try_for_each(|network| self.cut(host, network))
    }

    /// Ends a [`LocalNet::down`].
    pub fn up(&self, host: usize) -> Result<()> {
        Network::ALL
            .into_iter()
            .try_for_each(|network| self.join(host, network))
    }

    /// Loses everything that host `from` sends to host `to` in the replication network;
    /// the way back stays good.
    pub fn cut_one_way(&self, from: usize, to: usize) -> Result<()> {
        let address = replication_address(to);
        let netns = self.hosts[from].netns();
        netns.ip(&format!(
            "neigh replace {address} lladdr {NOBODY} nud permanent dev replication"
        ))
    }

    /// Gives the hosts' ends of the replication network another MTU than the switch between them has, which
    /// is 1500: larger frames are lost there, and nobody is told.
    pub fn set_replication_mtu(&self, mtu: u32) -> Result<()> {
        // With one segment a packet the kernel hands out frames as they are on a wire.
        let order = format!("link set replication mtu {mtu} gso_max_segs 1");
        self.hosts.iter().try_for_each(|host| host.netns().ip(&order))
    }

    /// Ends a [`LocalNet::cut_one_way`].
    pub fn join_one_way(&self, from: usize, to: usize) -> Result<()> {
        let address = replication_address(to);
        self.hosts[from]
            .netns()
            .ip(&format!("neigh del {address} dev replication"))
    }
}

impl LocalHost {
    fn new(outside: &Netns, host: usize, taps: usize) -> Result<LocalHost> {
        let netns = Netns::new(&format!("host {host}"))?;
        for network in Network::ALL {
            let (port, name, mac) = (network.port(host), network.name(), network.mac(host));
            outside.ip(&format!(
                "link add {port} type veth peer name {name} address {mac} netns {}\n\
                 link set {port} master {name} up",
                netns.path()
            ))?;
        }
        netns.ip(&format!(
            "link add br0 address {} type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
             link set guests master br0\n\
             addr add {}/{NETMASK_BITS} dev control\n\
             addr add {}/{NETMASK_BITS} dev replication\n\
             link set control up\nlink set replication up\nlink set guests up\nlink set br0 up",
            bridge_mac(host),
            control_address(host),
            replication_address(host),
        ))?;
        for tap in (0..taps).map(tap_name) {
            netns.ip(&format!(
                "tuntap add dev {tap} mode tap vnet_hdr\nlink set {tap} master br0"
            ))?;
        }
        Ok(LocalHost { netns })
    }
}

fn tap_name(guest: usize) -> String {
    format!("tap{guest}")
}

#[cfg(test)]
#[path = "localnet_test.rs"]
mod tests;
