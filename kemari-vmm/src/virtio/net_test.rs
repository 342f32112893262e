//! A card without a cable: what it remembers, and what it forgets.

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
