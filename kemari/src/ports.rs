//! The guest's ports on this host: for each card a TAP, mostly on a bridge, and a way out to other hosts.
//!
//! By default the ways out are the other ports of the bridge that the card's TAP is a port of, other guests'
//! TAPs excepted; the configuration may name them instead. A card whose TAP never was on a bridge, or is
//! alone on it, has none to watch.

use std::collections::BTreeMap;

use crate::config::{Config, HostNet};
use crate::links::Link;

/// Watches the ports of one host: it remembers the bridges that the TAPs were on, and what led out of those.
#[derive(Debug, Default)]
pub struct Ports {
    bridges: BTreeMap<String, String>,
    uplinks: BTreeMap<String, Vec<String>>,
}

impl Ports {
    /// Why the guest's packets do not get out of the host `name`, whose devices `links` are:
    /// the first card's reason.
    pub fn trouble(&mut self, links: &[Link], config: &Config, name: &str) -> Option<String> {
        let host = config.host(name);
        let mut nets = config.nets_of(name).into_iter();
        nets.find_map(|net| {
            let id = &net.net.id;
            self.port_trouble(links, &net, host.bridges.get(id))
                .or_else(|| address_trouble(links, &net))
                .or_else(|| self.lost_way(links, &net, host.uplinks.contains_key(id)))
                .or_else(|| way_trouble(links, id, &net.tap, host.uplinks.get(id)))
        })
    }

    /// Why the card's TAP leads nowhere on this host; `None` if it does not,
    /// or if nobody knows where it should lead.
    fn port_trouble(&mut self, links: &[Link], net: &HostNet<'_>, wanted: Option<&String>) -> Option<String> {
        let (id, tap) = (&net.net.id, &net.tap);
        let Some(link) = links.iter().find(|link| &link.name == tap) else {
            return Some(format!("the TAP {tap} of the card {id} is gone"));
        };
        if !link.is_up {
            return Some(format!(
                "the TAP {tap} of the card {id} is down: `ip link set {tap} up`"
            ));
        }
        let bridge = link
            .bridge
            .and_then(|index| links.iter().find(|link| link.index == index));
        let expected = wanted.or_else(|| self.bridges.get(id));
        match (bridge, expected) {
            (None, Some(expected)) => Some(format!(
                "the TAP {tap} of the card {id} is not on the bridge {expected}: \
                 `ip link set {tap} master {expected}`"
            )),
            (Some(bridge), _) if wanted.is_some_and(|wanted| wanted != &bridge.name) => Some(format!(
                "the TAP {tap} of the card {id} is on the bridge {}, not on {}",
                bridge.name,
                wanted.map_or("", String::as_str)
            )),
            // Who has renamed that bridge, or made another one instead, knows what he does.
            (Some(bridge), Some(first))
                if &bridge.name != first && links.iter().any(|link| &link.name == first) =>
            {
                Some(format!(
                    "the TAP {tap} of the card {id} is on the bridge {}, and was on {first}: \
                     `ip link set {tap} master {first}`, or say in `bridges` where it belongs",
                    bridge.name
                ))
            }
            (Some(bridge), _) if bridge.is_bridge && !bridge.is_up => Some(format!(
                "the bridge {0} of the card {id} is down: `ip link set {0} up`",
                bridge.name
            )),
            (Some(bridge), _) => {
                self.bridges.insert(id.clone(), bridge.name.clone());
                None
            }
            (None, None) => None,
        }
    }

    /// Why the card's bridge leads nowhere that once led to other hosts; `None` if it does not, or if the
    /// ways are `named`: then they need not be ports of it.
    fn lost_way(&mut self, links: &[Link], net: &HostNet<'_>, named: bool) -> Option<String> {
        let id = &net.net.id;
        let now = uplinks(links, &net.tap);
        if named || !now.is_empty() {
            let names = now.iter().map(|link| link.name.clone()).collect();
            self.uplinks.insert(id.clone(), names);
            return None;
        }
        let lost = self.uplinks.get(id).filter(|names| !names.is_empty())?;
        let bridge = self.bridges.get(id)?;
        Some(format!(
            "the bridge {bridge} of the card {id} has lost its uplink {0}: `ip link set {0} master {bridge}`",
            lost.join(", ")
        ))
    }
}

/// Why the card's bridge keeps what is sent to the guest: it, or one of its ports, has the guest's address as
/// its own, and a bridge takes what is for itself.
fn address_trouble(links: &[Link], net: &HostNet<'_>) -> Option<String> {
    let (id, mac) = (&net.net.id, net.net.mac);
    let bridge = links.iter().find(|link| link.name == net.tap)?.bridge?;
    let its = links
        .iter()
        .filter(|link| link.index == bridge || link.bridge == Some(bridge));
    let same = its.into_iter().find(|link| link.address == Some(mac.0))?;
    Some(format!(
        "the device {0} has the address {mac} of the card {id} as its own, and so this host takes the \
         guest's packets for its own: `ip link set {0} address` with another one",
        same.name
    ))
}

/// The uplinks of the card with this TAP.
fn uplinks<'a>(links: &'a [Link], tap: &str) -> Vec<&'a Link> {
    let bridge = links
        .iter()
        .find(|link| link.name == tap)
        .and_then(|link| link.bridge);
    links
        .iter()
        .filter(|link| bridge.is_some() && link.bridge == bridge && link.tun.is_none())
        .collect()
}

/// Why packets of one card do not get from its port to other hosts; `None` if they do, or if nobody knows.
fn way_trouble(links: &[Link], id: &str, tap: &str, named: Option<&Vec<String>>) -> Option<String> {
    let (names, ways): (Vec<String>, Vec<&Link>) = match named {
        Some(named) => {
            let named_ones = links.iter().filter(|link| named.contains(&link.name));
            (named.clone(), named_ones.collect())
        }
        None => {
            let uplinks = uplinks(links, tap);
            (uplinks.iter().map(|link| link.name.clone()).collect(), uplinks)
        }
    };
    if names.is_empty() || ways.iter().any(|link| link.has_carrier && !link.is_blocked) {
        return None;
    }
    if let Some(blocked) = ways.iter().find(|link| link.has_carrier) {
        return Some(format!(
            "the bridge of the card {id} lets nothing through its uplink {0}: look at its spanning tree, or \
             `bridge link set dev {0} state 3`",
            blocked.name
        ));
    }
    Some(match &names[..] {
        [name] => format!("the uplink {name} of the card {id} has no carrier"),
        _ => format!(
            "none of the uplinks {} of the card {id} has a carrier",
            names.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Net;
    use crate::links::Tun;

    fn link(index: u32, name: &str, bridge: Option<u32>, is_tap: bool, has_carrier: bool) -> Link {
        Link {
            index,
            name: name.into(),
            bridge,
            is_bridge: name.starts_with("br"),
            tun: is_tap.then(Tun::default),
            mtu: 1500,
            address: Some([2, 0, 0, 0, 0, index as u8]),
            is_up: true,
            has_carrier,
            is_blocked: false,
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
        assert_eq!(way_trouble(&host(true), "net0", "tap0", None), None);
        let text = way_trouble(&host(false), "net0", "tap0", None).unwrap();
        assert!(text.contains("eth1") && text.contains("net0"), "{text}");
    }

    #[test]
    fn an_uplink_that_its_bridge_blocks_leads_nowhere_and_one_that_leads_is_enough() {
        let mut links = host(true);
        links[3].is_blocked = true;
        let text = way_trouble(&links, "net0", "tap0", None).unwrap();
        assert!(text.contains("nothing through its uplink eth1"), "{text}");
        let mut two = links.clone();
        two.push(link(10, "eth2", Some(3), false, true));
        assert_eq!(way_trouble(&two, "net0", "tap0", None), None);
        // What is at its other end counts first: a port without a carrier is blocked, too.
        links[3].has_carrier = false;
        assert!(
            way_trouble(&links, "net0", "tap0", None)
                .unwrap()
                .contains("no carrier")
        );
    }

    #[test]
    fn a_tap_without_a_bridge_has_no_uplink_to_watch() {
        assert_eq!(way_trouble(&host(false), "net0", "tap2", None), None);
        assert_eq!(way_trouble(&host(false), "net0", "tap9", None), None);
    }

    #[test]
    fn one_of_the_named_uplinks_is_enough_and_a_missing_one_has_no_carrier() {
        let named = |names: &[&str]| Some(names.iter().map(|name| name.to_string()).collect::<Vec<_>>());
        let trouble = |names: &[&str]| way_trouble(&host(false), "net0", "tap2", named(names).as_ref());
        assert_eq!(trouble(&["eth0"]), None);
        assert_eq!(trouble(&["eth1", "eth0"]), None);
        assert_eq!(trouble(&[]), None);
        assert!(trouble(&["eth1"]).unwrap().contains("eth1"));
        assert!(trouble(&["gone", "eth1"]).unwrap().contains("gone, eth1"));
    }

    /// What is said of the card `net0` on `tap`, one after the other, as its host changes.
    fn said(tap: &str, wanted: Option<&str>, changes: &[fn(&mut Vec<Link>)]) -> Vec<Option<String>> {
        let mut ports = Ports::default();
        let card: Net = toml::from_str("id = \"net0\"\nmac = \"52:54:00:00:00:01\"").unwrap();
        let net = HostNet {
            net: &card,
            tap: tap.to_owned(),
        };
        let wanted = wanted.map(str::to_owned);
        let mut links = host(true);
        let mut say = |change: &fn(&mut Vec<Link>)| {
            change(&mut links);
            ports
                .port_trouble(&links, &net, wanted.as_ref())
                .or_else(|| ports.lost_way(&links, &net, false))
        };
        changes.iter().map(&mut say).collect()
    }

    fn says(said: &Option<String>, what: &str) -> bool {
        said.as_ref().is_some_and(|said| said.contains(what))
    }

    #[test]
    fn a_tap_that_leads_nowhere_is_told() {
        let all = said(
            "tap0",
            None,
            &[
                |_| {},
                |links| links[4].bridge = None,
                |links| links[4].is_up = false,
                |links| drop(links.remove(4)),
                |links| links.insert(4, link(9, "tap0", Some(3), true, false)),
                |links| links[2].is_up = false,
            ],
        );
        assert_eq!((&all[0], &all[4]), (&None, &None), "{all:?}");
        assert!(says(&all[1], "not on the bridge br0"), "{all:?}");
        assert!(says(&all[2], "is down"), "{all:?}");
        assert!(says(&all[3], "is gone"), "{all:?}");
        assert!(says(&all[5], "the bridge br0"), "{all:?}");
    }

    #[test]
    fn a_tap_that_was_moved_to_another_bridge_is_told_unless_its_own_is_gone() {
        let all = said(
            "tap0",
            None,
            &[
                |_| {},
                |links| {
                    links.push(link(8, "br1", None, false, true));
                    links[4].bridge = Some(8);
                },
                |links| links[4].bridge = Some(3),
                |links| links[2].name = "br9".to_owned(),
            ],
        );
        assert!(says(&all[1], "on the bridge br1, and was on br0"), "{all:?}");
        assert_eq!((&all[0], &all[2], &all[3]), (&None, &None, &None), "{all:?}");
    }

    #[test]
    fn a_bridge_that_has_lost_its_way_out_is_told() {
        let all = said(
            "tap0",
            None,
            &[
                |_| {},
                |links| links[3].bridge = None,
                |links| links[3].bridge = Some(3),
                |links| drop(links.remove(3)),
            ],
        );
        assert_eq!((&all[0], &all[2]), (&None, &None), "{all:?}");
        assert!(says(&all[1], "has lost its uplink eth1"), "{all:?}");
        assert!(says(&all[3], "has lost its uplink eth1"), "{all:?}");
        let alone = said("tap0", None, &[|links| drop(links.remove(3))]);
        assert_eq!(alone, [None], "a bridge that never led anywhere");
    }

    #[test]
    fn named_ways_out_need_not_be_ports_of_the_bridge() {
        let mut ports = Ports::default();
        let card: Net = toml::from_str("id = \"net0\"\nmac = \"52:54:00:00:00:01\"").unwrap();
        let net = HostNet {
            net: &card,
            tap: "tap0".to_owned(),
        };
        let mut links = host(true);
        assert_eq!(ports.port_trouble(&links, &net, None), None);
        assert_eq!(ports.lost_way(&links, &net, true), None);
        links[3].bridge = None;
        assert_eq!(ports.lost_way(&links, &net, true), None);
    }

    #[test]
    fn a_bridge_that_takes_the_guests_packets_for_its_own_is_told() {
        let card: Net = toml::from_str("id = \"net0\"\nmac = \"52:54:00:00:00:01\"").unwrap();
        let trouble = |tap: &str, whose: &str| {
            let mut links = host(true);
            let link = links.iter_mut().find(|link| link.name == whose).unwrap();
            link.address = Some(card.mac.0);
            let net = HostNet {
                net: &card,
                tap: tap.to_owned(),
            };
            address_trouble(&links, &net)
        };
        for whose in ["tap0", "br0", "eth1", "tap1"] {
            let said = trouble("tap0", whose);
            assert!(says(&said, whose) && says(&said, "52:54:00:00:00:01"), "{said:?}");
        }
        for whose in ["eth0", "tap2"] {
            assert_eq!(trouble("tap0", whose), None, "{whose} is no port of its bridge");
        }
        assert_eq!(trouble("tap2", "tap2"), None, "there is no bridge");
    }

    #[test]
    fn the_device_that_stands_for_open_vswitch_is_always_down() {
        let onto_ovs = |links: &mut Vec<Link>| {
            links.push(Link {
                is_up: false,
                ..link(20, "ovs-system", None, false, false)
            });
            links[4].bridge = Some(20);
        };
        assert_eq!(said("tap0", None, &[onto_ovs]), [None]);
    }

    #[test]
    fn a_tap_that_never_was_on_a_bridge_needs_none_unless_one_is_named() {
        assert_eq!(said("tap2", None, &[|_| {}]), [None]);
        assert!(says(
            &said("tap2", Some("br0"), &[|_| {}])[0],
            "not on the bridge br0"
        ));
        assert_eq!(said("tap0", Some("br0"), &[|_| {}]), [None]);
        assert!(says(&said("tap0", Some("br1"), &[|_| {}])[0], "not on br1"));
    }
}
