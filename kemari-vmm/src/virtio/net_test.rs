//! A card without a cable: what it remembers, and what it forgets.

use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use vm_memory::{Bytes, GuestAddress};

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ANNOUNCING: u64 = 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;

fn card(features: u64) -> Net {
    let mut net = Net::new(MAC, false);
    net.activate(features);
    net
}

/// Whether the guest is told to announce itself.
fn asks(net: &Net) -> bool {
    let config = net.config();
    let status = u16::from_le_bytes([config[6], config[7]]);
    u32::from(status) & VIRTIO_NET_S_ANNOUNCE != 0
}

#[test]
fn a_guest_is_asked_to_announce_itself_until_it_has_also_by_who_takes_over() {
    let mut net = card(ANNOUNCING);
    net.announce(&[]);
    assert!(asks(&net) && net.take_config_change() && !net.take_config_change());
    let mut next = card(0);
    next.load(net.save()).expect("a card of the same kind");
    assert!(asks(&next));
    assert_ne!(next.control([0, 0]), 0, "no command that is known");
    assert!(asks(&next));
    let answer = next.control([VIRTIO_NET_CTRL_ANNOUNCE as u8, VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8]);
    assert!(answer == 0 && !asks(&next));
}

#[test]
fn a_guest_that_does_not_know_how_is_not_asked() {
    let mut net = card(0);
    net.announce(&[]);
    assert!(!asks(&net) && !net.take_config_change());
}

#[test]
fn a_reset_forgets_the_packet_that_waits_and_what_was_asked() {
    let mut net = card(ANNOUNCING);
    net.announce(&[]);
    net.waiting.1 = 60;
    net.reset();
    assert_eq!((net.waiting.1, net.features, asks(&net)), (0, 0, false));
}

#[test]
fn the_state_of_another_card_is_refused() {
    let mut other = Net::new([2, 0, 0, 0, 0, 2], false);
    assert!(other.load(card(0).save()).is_err());
    let mut offloading = Net::new(MAC, true);
    assert!(offloading.load(card(0).save()).is_err());
}

const BUFFERS: u64 = 0x1_0000;
const USED: u64 = 0x3000;

/// Memory of a guest that has given so many buffers of this length, one behind the other.
fn supply(count: u16, bytes: u32) -> (Memory, Queue) {
    const DESCRIPTORS: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("a little memory");
    let write = |bytes: &[u8], place| memory.write_slice(bytes, GuestAddress(place)).expect("memory");
    for index in 0..count {
        let place = BUFFERS + u64::from(index) * u64::from(bytes);
        let flags = VRING_DESC_F_WRITE as u16;
        let descriptor = [
            &place.to_le_bytes()[..],
            &bytes.to_le_bytes(),
            &flags.to_le_bytes(),
            &[0; 2],
        ];
        write(&descriptor.concat(), DESCRIPTORS + 16 * u64::from(index));
        write(&index.to_le_bytes(), AVAILABLE + 4 + 2 * u64::from(index));
    }
    write(&count.to_le_bytes(), AVAILABLE + 2);
    let mut queue = Queue::new(16).expect("a power of two");
    queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_ready(true);
    (memory, queue)
}

#[test]
fn a_packet_says_over_how_many_buffers_it_is_spread() {
    let mergeable = 1 << VIRTIO_NET_F_MRG_RXBUF;
    for (features, length, buffers) in [(mergeable, 64, 1_u16), (mergeable, 150, 3), (0, 64, 1)] {
        let (memory, mut queue) = supply(4, 64);
        let mut net = card(features);
        net.waiting.0[..length].fill(7);
        net.waiting.1 = length;
        assert!(net.deliver(&mut queue, &memory).expect("good buffers"));
        let mut packet = vec![0; length];
        memory
            .read_slice(&mut packet, GuestAddress(BUFFERS))
            .expect("memory");
        assert_eq!(packet[NUM_BUFFERS], buffers.to_le_bytes());
        packet[NUM_BUFFERS].fill(7);
        assert_eq!(packet, vec![7; length]);
        let mut used = [0; 2];
        memory
            .read_slice(&mut used, GuestAddress(USED + 2))
            .expect("memory");
        assert_eq!(used, buffers.to_le_bytes());
    }
}
