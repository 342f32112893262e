//! The kernel's answer about network devices: netlink messages with their attributes.

use kemari::fuzzing;

pub(crate) fn run(bytes: &[u8]) {
    if let Ok(links) = fuzzing::take_links(bytes) {
        let _ = format!("{links:?}");
    }
}

/// A device with a name, and one on a bridge; then the end.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let attribute = |kind: u16, value: &[u8]| {
        let mut bytes = Vec::new();
        bytes.extend((4 + value.len() as u16).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let message = |kind: u16, body: &[u8]| {
        let mut bytes = (16 + body.len() as u32).to_le_bytes().to_vec();
        bytes.extend(kind.to_le_bytes());
        bytes.extend([2, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(body);
        bytes
    };
    // struct ifinfomsg: family, type, index, flags, change.
    let device = |index: u32, attributes: &[Vec<u8>]| {
        let mut body = vec![0, 0, 1, 0];
        body.extend(index.to_le_bytes());
        body.extend(0x1_0003u32.to_le_bytes());
        body.extend([0; 4]);
        body.extend(attributes.concat());
        message(16, &body)
    };
    let (name, controller, info) = (3, 10, 18);
    let tun = [
        attribute(1, b"tun\0"),
        attribute(2, &[attribute(7, &[1]), attribute(3, &[2])].concat()),
    ];
    let bridge = attribute(1, b"bridge\0");
    let devices = [
        device(2, &[attribute(name, b"br0\0"), attribute(info, &bridge)]),
        device(
            3,
            &[
                attribute(name, b"tap0\0"),
                attribute(controller, &2u32.to_le_bytes()),
                attribute(info, &tun.concat()),
            ],
        ),
    ];
    let done = message(3, &[0; 4]);
    vec![
        devices.concat(),
        [devices.concat(), done].concat(),
        message(2, &[0; 20]),
    ]
}
