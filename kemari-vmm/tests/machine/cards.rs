//! A TAP that is deleted under a running machine, and made anew.

use kemari_vmm::virtio::tap::TapDevice;

use crate::support::network::{self, TAP};
use crate::support::resp::Client;
use crate::support::rig::Rig;
use crate::support::watchdog::Watchdog;

#[test]
fn a_card_is_plugged_into_a_tap_that_was_made_anew_and_the_guest_goes_on() {
    let _watchdog = Watchdog::new("a new TAP", 120);
    let rig = Rig::new("", 64);
    let machine = rig.running();
    let mut client = Client::connect();
    client.ok("CHECK");
    assert!(machine.cut_nets().is_empty());
    network::delete_tap();
    assert_eq!(machine.cut_nets(), ["net0"]);
    let error = TapDevice::open(TAP).map(drop).expect_err("there is no TAP");
    assert!(error.to_string().contains("there is no TAP device"), "{error}");
    network::make_tap();
    assert_eq!(machine.cut_nets(), ["net0"], "the new one is another");
    let tap = TapDevice::open(TAP).expect("the new TAP is free");
    machine.attach_net("net0", tap).expect("it is watched");
    assert!(machine.cut_nets().is_empty());
    // The same connection: what was lost meanwhile is sent again.
    client.ok("CHECK");
    client.ok("BLKTEST 10 8");
}
