//! The way out of a guest's card: the network devices of this host by which its packets reach other hosts.
//!
//! By default these are the ports of the bridge that the card's TAP is a port of, other guests' TAPs excepted; the
//! configuration may name them instead. A card whose TAP is on no bridge, or alone on it, has none to watch.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::config::Config;

/// Longest wait for one part of the kernel's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Largest part of the kernel's answer, in bytes (it uses 32 KiB at most).
const PART_BYTES_MAX: usize = 64 << 10;

/// A network device of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    index: u32,
    name: String,
    /// The bridge that it is a port of.
    bridge: Option<u32>,
    is_tap: bool,
    has_carrier: bool,
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
        let mut rest = &part[..];
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(links),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    links.push(Link::from(link))
                }
                _ => {}
            }
            // Each message begins at a multiple of four bytes.
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            bridge: None,
            is_tap: false,
            has_carrier: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Controller(bridge) => link.bridge = Some(bridge),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_tap |= infos.contains(&LinkInfo::Kind(InfoKind::Tun));
                }
                _ => {}
            }
        }
        link
    }
}

/// The uplinks of the card with this TAP.
fn uplinks<'a>(links: &'a [Link], tap: &str) -> Vec<&'a Link> {
    let bridge = links
        .iter()
        .find(|link| link.name == tap)
        .and_then(|link| link.bridge);
    links
        .iter()
        .filter(|link| bridge.is_some() && link.bridge == bridge && !link.is_tap)
        .collect()
}

/// Why packets of one card do not get out of this host; `None` if they do, or if nobody knows.
fn card_trouble(links: &[Link], id: &str, tap: &str, named: Option<&Vec<String>>) -> Option<String> {
    let (names, is_up) = match named {
        Some(named) => {
            let is_up = |link: &Link| link.has_carrier && named.contains(&link.name);
            (named.clone(), links.iter().any(is_up))
        }
        None => {
            let uplinks = uplinks(links, tap);
            let names = uplinks.iter().map(|link| link.name.clone()).collect();
            (names, uplinks.iter().any(|link| link.has_carrier))
        }
    };
    (!names.is_empty() && !is_up).then(|| match &names[..] {
        [name] => format!("the uplink {name} of the card {id} has no carrier"),
        _ => format!(
            "none of the uplinks {} of the card {id} has a carrier",
            names.join(", ")
        ),
    })
}

/// Why the guest's packets do not get out of the host `name`, which is this one: the first card's reason.
pub fn trouble(config: &Config, name: &str) -> io::Result<Option<String>> {
    let links = links()?;
    let host = config.host(name);
    Ok(config
        .nets_of(name)
        .iter()
        .find_map(|net| card_trouble(&links, &net.net.id, &net.tap, host.uplinks.get(&net.net.id))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, bridge: Option<u32>, is_tap: bool, has_carrier: bool) -> Link {
        Link {
            index,
            name: name.into(),
            bridge,
            is_tap,
            has_carrier,
        }
    }

    fn host(eth_has_carrier: bool) -> Vec<Link> {
        vec![
            link(1, "lo", None, false, true),
            link(2, "eth0", None, false, true),
            link(3, "br0", None, false, true),
            link(4, "eth1", Some(3), false, eth_has_carrier),
            link(5, "tap0", Some(3), true, true),
            link(6, "tap1", Some(3), true, true),
            link(7, "tap2", None, true, true),
        ]
    }

    #[test]
    fn the_uplinks_are_the_bridges_ports_but_for_taps() {
        assert_eq!(card_trouble(&host(true), "net0", "tap0", None), None);
        let text = card_trouble(&host(false), "net0", "tap0", None).unwrap();
        assert!(text.contains("eth1") && text.contains("net0"), "{text}");
    }

    #[test]
    fn a_tap_without_a_bridge_has_no_uplink_to_watch() {
        assert_eq!(card_trouble(&host(false), "net0", "tap2", None), None);
        assert_eq!(card_trouble(&host(false), "net0", "tap9", None), None);
    }

    #[test]
    fn one_of_the_named_uplinks_is_enough_and_a_missing_one_has_no_carrier() {
        let named = |names: &[&str]| Some(names.iter().map(|name| name.to_string()).collect::<Vec<_>>());
        let trouble = |names: &[&str]| card_trouble(&host(false), "net0", "tap2", named(names).as_ref());
        assert_eq!(trouble(&["eth0"]), None);
        assert_eq!(trouble(&["eth1", "eth0"]), None);
        assert_eq!(trouble(&[]), None);
        assert!(trouble(&["eth1"]).unwrap().contains("eth1"));
        assert!(trouble(&["gone", "eth1"]).unwrap().contains("gone, eth1"));
    }

    #[test]
    fn the_kernel_says_what_there_is() {
        let links = links().unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(!loopback.is_tap && loopback.bridge.is_none() && loopback.index > 0);
    }
}
