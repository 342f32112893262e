//! The network devices of this host, as the kernel tells them (rtnetlink(7)).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    BridgePortState, InfoBridgePort, InfoData, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Longest wait for one part of the kernel's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Largest part of the kernel's answer, in bytes (it uses 32 KiB at most).
const PART_BYTES_MAX: usize = 64 << 10;
/// The group of those who are told of changes of network devices (`RTMGRP_LINK`).
const LINK_GROUP: u32 = 1;
/// The message of <linux/rtnetlink.h> that tells of a device: `RTM_NEWLINK`.
const NEW_LINK: u16 = 16;
/// Attribute of <linux/if_link.h>: `IFLA_TUN_MULTI_QUEUE`.
const TUN_MULTI_QUEUE: u16 = 7;
/// After so long the devices are looked at again although the kernel has told no change.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What is special about a TAP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tun {
    /// It was made for several queues, so that it cannot be attached to with one.
    pub multi_queue: bool,
}

/// A network device of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number, never used again while the host runs.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The bridge that it is a port of.
    pub bridge: Option<u32>,
    /// Whether it is a bridge of the kernel's: the device that stands for Open vSwitch's is another thing,
    /// and always down.
    pub(crate) is_bridge: bool,
    /// If it is a TAP (or TUN).
    pub tun: Option<Tun>,
    /// The largest packet that it takes, in bytes; 0: the kernel does not say.
    pub mtu: u32,
    /// Its own address, if it has one of six bytes.
    pub address: Option<[u8; 6]>,
    /// Whether its owner has set it up.
    pub(crate) is_up: bool,
    /// Whether it is up, and something is at its other end.
    pub has_carrier: bool,
    /// Whether its bridge lets nothing through it, as its spanning tree or somebody wants it. A port that is
    /// about to be used (listening, learning) is not.
    pub(crate) is_blocked: bool,
}

/// All network devices of this host (of the namespace of the calling thread), as they are now.
pub fn links() -> io::Result<Vec<Link>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let timeout = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(ANSWER_TIMEOUT))?;
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(question));
    message.header.flags = NLM_F_DUMP | NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut links = Vec::new();
    let mut part = Vec::with_capacity(PART_BYTES_MAX);
    loop {
        part.clear();
        socket.recv(&mut part, 0)?;
        if read_part(&part, &mut links)? {
            return Ok(links);
        }
    }
}

/// Reads a part of the kernel's answer; returns whether it was the last one. A device that is not understood,
/// as those of a kernel from tomorrow, is left out: the others are there all the same.
pub(crate) fn read_part(part: &[u8], links: &mut Vec<Link>) -> io::Result<bool> {
    let mut rest = part;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
        // Each message begins at a multiple of four bytes.
        let length = (message.length() as usize).next_multiple_of(4);
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map(|message| message.payload) {
            Ok(NetlinkPayload::Done(_)) => return Ok(true),
            Ok(NetlinkPayload::Error(error)) => return Err(refusal(error.raw_code())),
            Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => {
                links.push(Link::from(link));
            }
            Err(error) if message.message_type() != NEW_LINK => return Err(io::Error::other(error)),
            _ => {}
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(false)
}

/// What the kernel means by a negative number, which need not be one.
fn refusal(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            is_up: flags.contains(LinkFlags::Up),
            has_carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            ..Link::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(address) => link.address = address.try_into().ok(),
                LinkAttribute::Controller(bridge) => link.bridge = Some(bridge),
                LinkAttribute::LinkInfo(infos) => {
                    link.tun = tun(&infos);
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    link.is_blocked = infos.iter().any(is_blocked);
                }
                _ => {}
            }
        }
        link
    }
}

fn is_blocked(info: &LinkInfo) -> bool {
    let LinkInfo::PortData(InfoPortData::BridgePort(port)) = info else {
        return false;
    };
    [BridgePortState::Disabled, BridgePortState::Blocking]
        .into_iter()
        .any(|state| port.contains(&InfoBridgePort::State(state)))
}

fn tun(infos: &[LinkInfo]) -> Option<Tun> {
    if !infos.contains(&LinkInfo::Kind(InfoKind::Tun)) {
        return None;
    }
    let mut tun = Tun::default();
    for info in infos {
        let LinkInfo::Data(InfoData::Tun(attributes)) = info else {
            continue;
        };
        for attribute in attributes {
            let mut bytes = vec![0; attribute.value_len()];
            attribute.emit_value(&mut bytes);
            if let (TUN_MULTI_QUEUE, [multi, ..]) = (attribute.kind(), &bytes[..]) {
                tun.multi_queue = *multi != 0;
            }
        }
    }
    Some(tun)
}

/// The network devices of this host, looked at again when the kernel says that one has changed: with a
/// thousand of them looking costs much, and being told nothing costs nothing.
pub(crate) struct Watched {
    events: Socket,
    part: Vec<u8>,
    links: Arc<[Link]>,
    looked: Option<Instant>,
}

impl Watched {
    /// Begins to be told of changes, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel tells nobody.
    pub(crate) fn new() -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind(&SocketAddr::new(0, LINK_GROUP))?;
        events.set_non_blocking(true)?;
        Ok(Self {
            events,
            part: Vec::with_capacity(PART_BYTES_MAX),
            links: Arc::new([]),
            looked: None,
        })
    }

    /// The devices as they are now, and whether they may be others than the last time.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(crate) fn look(&mut self) -> io::Result<(Arc<[Link]>, bool)> {
        let is_old = self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN);
        let changed = self.were_told() || is_old;
        if changed {
            self.looked = None;
            self.links = links()?.into();
            self.looked = Some(Instant::now());
        }
        Ok((self.links.clone(), changed))
    }

    /// Throws away what the kernel has told. What it had no room to tell counts as told.
    fn were_told(&mut self) -> bool {
        let mut told = false;
        loop {
            self.part.clear();
            match self.events.recv(&mut self.part, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return told,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => told = true,
                // Then it is looked at again and again.
                Err(_) => return true,
                Ok(_) => told = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_there_is() {
        let links = links().unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(loopback.tun.is_none() && loopback.bridge.is_none() && loopback.index > 0);
        assert_eq!(loopback.address, Some([0; 6]));
    }

    /// Has a program of iproute2 change the calling thread's network namespace.
    fn ip(program: &str, words: &str) {
        let done = std::process::Command::new(program)
            .args(words.split(' '))
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .status();
        assert!(done.expect("iproute2 is there").success(), "{program} {words}");
    }

    #[test]
    fn a_port_that_its_bridge_blocks_is_told() {
        let looked = std::thread::spawn(|| {
            // SAFETY: nothing of this thread's is shared with others but what the namespace of networks does
            // not touch.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .expect("a namespace of its own");
            for words in [
                "link add br0 type bridge",
                "link add out type veth peer name far",
                "link set out master br0",
                "link set br0 up",
                "link set far up",
                "link set out up",
            ] {
                ip("ip", words);
            }
            let out = || {
                let all = links().expect("the kernel says");
                let found = all.into_iter().find(|link| link.name == "out");
                found.expect("it is there")
            };
            // The kernel opens a port a moment after it got its carrier.
            let begun = Instant::now();
            while out().is_blocked || !out().has_carrier {
                assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", out());
            }
            ip("bridge", "link set dev out state 0");
            let disabled = out();
            assert!(disabled.has_carrier && disabled.is_blocked, "{disabled:?}");
        });
        looked.join().expect("it is told");
    }

    #[test]
    fn devices_are_looked_at_once_and_then_only_when_something_changed() {
        let mut watched = Watched::new().unwrap();
        let (links, changed) = watched.look().unwrap();
        assert!(changed && links.iter().any(|link| link.name == "lo"));
        // Others may change devices of this machine meanwhile.
        let unchanged = (0..100).filter(|_| !watched.look().unwrap().1).count();
        assert!(unchanged > 50, "looked anew in {} of 100 times", 100 - unchanged);
    }

    /// A netlink message with its header.
    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = 16 + payload.len();
        let mut bytes = (length as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    /// A device's number, and one attribute.
    fn device(index: u8, attribute: u16, value: &[u8]) -> Vec<u8> {
        let mut payload = vec![0; 16];
        payload[4..8].copy_from_slice(&u32::from(index).to_ne_bytes());
        payload.extend((4 + value.len() as u16).to_ne_bytes());
        payload.extend(attribute.to_ne_bytes());
        payload.extend(value);
        message(NEW_LINK, &payload)
    }

    #[test]
    fn a_device_that_is_not_understood_hides_no_other() {
        const NAME: u16 = 3;
        const MTU: u16 = 4;
        let devices = [
            device(1, NAME, b"lo\0"),
            device(2, MTU, &[1]),
            device(3, NAME, b"tap0\0"),
        ];
        let mut links = Vec::new();
        assert!(!read_part(&devices.concat(), &mut links).unwrap());
        let names: Vec<_> = links.iter().map(|link| (link.index, &*link.name)).collect();
        assert_eq!(names, [(1, "lo"), (3, "tap0")]);
        let done = 3;
        assert!(read_part(&message(done, &[0; 4]), &mut links).unwrap());
        let error = 2;
        assert!(read_part(&message(error, &[]), &mut links).is_err());
        assert!(read_part(&[0; 8], &mut links).is_err(), "it is cut off");
    }
}
