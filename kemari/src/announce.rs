//! Frames that tell switches and neighbours where a guest's MAC address now is.
//!
//! A takeover moves a guest to another port of the network. Until a frame with its source address comes from
//! there, switches deliver to the dead host: seconds to minutes. Send these several times, since nobody
//! acknowledges them.

use std::net::Ipv4Addr;

use crate::config::Mac;

/// Length of the frames, in bytes: the least that Ethernet carries, without its checksum.
pub(crate) const FRAME_BYTES: usize = 60;

const BROADCAST: Mac = Mac([0xff; 6]);
const ETHERTYPE_RARP: u16 = 0x8035;
const HARDWARE_ETHERNET: u16 = 1;
const PROTOCOL_IPV4: u16 = 0x0800;
const REVERSE_REQUEST: u16 = 3;

/// A RARP request for the own address (RFC 903): needs no knowledge of the guest's IP address, and switches
/// learn the port from its source address. Nobody has to answer it. Padded with zeros.
pub(crate) fn rarp(mac: Mac) -> [u8; FRAME_BYTES] {
    let mut bytes = Vec::with_capacity(FRAME_BYTES);
    bytes.extend(BROADCAST.0);
    bytes.extend(mac.0);
    bytes.extend(ETHERTYPE_RARP.to_be_bytes());
    bytes.extend(HARDWARE_ETHERNET.to_be_bytes());
    bytes.extend(PROTOCOL_IPV4.to_be_bytes());
    bytes.extend([6, 4]);
    bytes.extend(REVERSE_REQUEST.to_be_bytes());
    // The sender, and who is asked for.
    for mac in [mac, mac] {
        bytes.extend(mac.0);
        bytes.extend(Ipv4Addr::UNSPECIFIED.octets());
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
}
