//! Frames that tell switches and neighbours where a guest's MAC address now is.
//!
//! A takeover moves a guest to another port of the network. Until a frame with its source address comes from
//! there, switches deliver to the dead host: seconds to minutes. Send these several times, since nobody
//! acknowledges them.

use std::net::Ipv4Addr;

use crate::config::Mac;

/// Length of the frames, in bytes: the least that Ethernet carries, without its checksum.
pub const FRAME_BYTES: usize = 60;

const BROADCAST: Mac = Mac([0xff; 6]);
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const HARDWARE_ETHERNET: u16 = 1;
const PROTOCOL_IPV4: u16 = 0x0800;
const REQUEST: u16 = 1;
const REVERSE_REQUEST: u16 = 3;

/// A RARP request for the own address (RFC 903): needs no knowledge of the guest's IP address, and switches
/// learn the port from its source address. Nobody has to answer it.
pub fn rarp(mac: Mac) -> [u8; FRAME_BYTES] {
    let unknown = Ipv4Addr::UNSPECIFIED;
    frame(
        mac,
        ETHERTYPE_RARP,
        REVERSE_REQUEST,
        (mac, unknown),
        (mac, unknown),
    )
}

/// An ARP announcement (RFC 5227, section 3; a gratuitous ARP request):
/// neighbours renew the entry for `address`.
pub fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> [u8; FRAME_BYTES] {
    frame(
        mac,
        ETHERTYPE_ARP,
        REQUEST,
        (mac, address),
        (Mac([0; 6]), address),
    )
}

/// An Ethernet II frame from `source` to all, with an ARP packet as of RFC 826, padded with zeros.
fn frame(
    source: Mac,
    ethertype: u16,
    operation: u16,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
) -> [u8; FRAME_BYTES] {
    let mut bytes = Vec::with_capacity(FRAME_BYTES);
    bytes.extend(BROADCAST.0);
    bytes.extend(source.0);
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(HARDWARE_ETHERNET.to_be_bytes());
    bytes.extend(PROTOCOL_IPV4.to_be_bytes());
    bytes.extend([6, 4]);
    bytes.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        bytes.extend(mac.0);
        bytes.extend(address.octets());
    }
    let mut frame = [0; FRAME_BYTES];
    frame[..bytes.len()].copy_from_slice(&bytes);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);

    #[test]
    fn rarp_is_as_rfc_903_lays_it_out() {
        let expected: [&[u8]; 10] = [
            &[0xff; 6],
            &[0x52, 0x54, 0, 1, 2, 3],
            &[0x80, 0x35],
            &[0, 1, 8, 0, 6, 4],
            &[0, 3],
            &[0x52, 0x54, 0, 1, 2, 3],
            &[0; 4],
            &[0x52, 0x54, 0, 1, 2, 3],
            &[0; 4],
            &[0; 18],
        ];
        assert_eq!(rarp(MAC).as_slice(), expected.concat());
    }

    #[test]
    fn announcement_is_as_rfc_5227_lays_it_out() {
        let expected: [&[u8]; 10] = [
            &[0xff; 6],
            &[0x52, 0x54, 0, 1, 2, 3],
            &[8, 6],
            &[0, 1, 8, 0, 6, 4],
            &[0, 1],
            &[0x52, 0x54, 0, 1, 2, 3],
            &[10, 1, 0, 7],
            &[0; 6],
            &[10, 1, 0, 7],
            &[0; 18],
        ];
        assert_eq!(
            gratuitous_arp(MAC, Ipv4Addr::new(10, 1, 0, 7)).as_slice(),
            expected.concat()
        );
    }
}
