//! The virtio-net header before a packet that a guest sends (virtio 1.2, section 5.1.6): checked before the
//! host's TAP sees it, whatever was offered to the guest.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::tap::VNET_HEADER_BYTES;

/// Bytes of an Ethernet header: a shorter frame is none.
const ETHERNET_HEADER_BYTES: usize = 14;
/// Bytes of a checksum.
const CHECKSUM_BYTES: usize = 2;

/// Why a packet is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// The frame is shorter than an Ethernet header.
    Runt,
    /// It asks for a checksum at a place that the frame does not have.
    Checksum,
    /// It asks for a segmentation that was not agreed on, or of which sizes make no sense.
    Segmentation,
}

/// Makes the header of `packet` one that this driver may use, with the `features` that it has accepted: what
/// it has not agreed on is not asked of the TAP.
///
/// # Errors
/// There is nothing that could be sent.
pub(crate) fn check(packet: &mut [u8], features: u64) -> Result<(), Unfit> {
    let has = |feature: u32| features & (1 << feature) != 0;
    let (header, frame) = packet
        .split_first_chunk_mut::<VNET_HEADER_BYTES>()
        .filter(|(_, frame)| frame.len() >= ETHERNET_HEADER_BYTES)
        .ok_or(Unfit::Runt)?;
    if !has(VIRTIO_NET_F_CSUM) {
        // Segmentation is agreed on only together with checksums.
        header.fill(0);
        return Ok(());
    }
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (header_length, segment_length, start, offset) = (word(2), word(4), word(6), word(8));
    let needs_checksum = header[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 != 0;
    if needs_checksum && start + offset + CHECKSUM_BYTES > frame.len() {
        return Err(Unfit::Checksum);
    }
    let is_agreed_on = match u32::from(header[1]) {
        VIRTIO_NET_HDR_GSO_NONE => true,
        VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_HOST_TSO6),
        _ => false,
    };
    let is_whole = u32::from(header[1]) == VIRTIO_NET_HDR_GSO_NONE
        || needs_checksum && segment_length > 0 && header_length <= frame.len();
    // The other flags, and the number of buffers, are the device's to say.
    header[0] &= VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    header[10..].fill(0);
    (is_agreed_on && is_whole)
        .then_some(())
        .ok_or(Unfit::Segmentation)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFLOAD: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;

    /// Flags, type, length of the headers, length of a segment, where the checksum begins and where it goes.
    fn packet(flags: u8, gso: u8, words: [u16; 4], frame_bytes: usize) -> Vec<u8> {
        let words = words.into_iter().flat_map(u16::to_le_bytes);
        let mut packet: Vec<u8> = [flags, gso].into_iter().chain(words).collect();
        packet.resize(VNET_HEADER_BYTES + frame_bytes, 7);
        packet
    }

    #[test]
    fn what_was_not_agreed_on_is_not_asked_of_the_tap() {
        let mut odd = packet(0xff, 0xff, [u16::MAX; 4], 60);
        assert_eq!(check(&mut odd, 0), Ok(()));
        assert_eq!(odd, [vec![0; VNET_HEADER_BYTES], vec![7; 60]].concat());
        let mut six = packet(1, VIRTIO_NET_HDR_GSO_TCPV6 as u8, [54, 1000, 34, 16], 3000);
        assert_eq!(check(&mut six, OFFLOAD), Err(Unfit::Segmentation));
        assert_eq!(check(&mut six, OFFLOAD | 1 << VIRTIO_NET_F_HOST_TSO6), Ok(()));
    }

    #[test]
    fn frames_without_an_ethernet_header_are_not_sent() {
        for features in [0, OFFLOAD] {
            for bytes in [0, 1, 13] {
                assert_eq!(
                    check(&mut packet(0, 0, [0; 4], bytes), features),
                    Err(Unfit::Runt)
                );
            }
            assert_eq!(check(&mut packet(0, 0, [0; 4], 14), features), Ok(()));
            assert_eq!(check(&mut [0; 5], features), Err(Unfit::Runt));
        }
    }

    #[test]
    fn a_checksum_lies_in_its_frame() {
        assert_eq!(check(&mut packet(1, 0, [0, 0, 34, 16], 52), OFFLOAD), Ok(()));
        assert_eq!(
            check(&mut packet(1, 0, [0, 0, 34, 16], 51), OFFLOAD),
            Err(Unfit::Checksum)
        );
        let far = [0, 0, u16::MAX, u16::MAX];
        assert_eq!(check(&mut packet(1, 0, far, 60), OFFLOAD), Err(Unfit::Checksum));
        assert_eq!(
            check(&mut packet(0, 0, far, 60), OFFLOAD),
            Ok(()),
            "none is asked for"
        );
    }

    #[test]
    fn a_segmentation_makes_sense() {
        let tcp = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
        assert_eq!(
            check(&mut packet(1, tcp, [54, 1460, 34, 16], 3000), OFFLOAD),
            Ok(())
        );
        for (flags, words) in [
            (1, [54, 0, 34, 16]),
            (1, [3001, 1460, 34, 16]),
            (0, [54, 1460, 34, 16]),
        ] {
            let mut packet = packet(flags, tcp, words, 3000);
            assert_eq!(check(&mut packet, OFFLOAD), Err(Unfit::Segmentation), "{words:?}");
        }
    }
}
