//! A guest's accesses to each device: registers, rings, requests with long chains,
//! and a pair's doings meanwhile.
//!
//! The first byte says which device, the rest is what [`Driver::play`] does with it.

use super::support::bench::{Bench, Kind};
use super::support::driver::Driver;
use super::support::tape::Tape;

pub(crate) fn run(bytes: &[u8]) {
    let mut tape = Tape::new(bytes);
    let mut driver = Driver::new(Bench::new(Kind::from_byte(tape.u8())));
    driver.begin_well(0);
    driver.play(&mut tape);
    // However it is left, it loads elsewhere, and a reset mends it.
    driver.move_on(true);
    driver.begin_well(0);
    assert!(!driver.bench.device.is_broken(), "a reset mends everything");
    driver.end();
}

/// Of each device requests that are held, captured, released, and moved to another machine.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let request = |queue: u8, shape: u8, slot: u8, kind: u8| {
        // The header at sector 0, data in the midst of the memory, 512 bytes of them.
        [&[6, queue, shape, slot, kind, 0][..], &[6, 0, 0x80, 2, 0, 0xfe]].concat()
    };
    let mut seeds = Vec::new();
    for (number, kind) in Kind::ALL {
        let mut requests = Vec::new();
        for queue in 0..kind.queues() as u8 {
            for (slot, of_kind) in [0, 1, 4, 8, 11, 13].into_iter().enumerate() {
                requests.extend(request(queue, (slot as u8 & 3) | 4, slot as u8, of_kind));
            }
        }
        let held = [&[number, 14, 1][..], &requests, &[11, 16, 0, 12, 16, 1]].concat();
        let free = [&[number, 14, 0][..], &requests, &[16, 1, 15]].concat();
        // A chain of thousands, offered and kicked.
        let long = [
            &[number, 5, 0, 1, 0, 1, 40, 6, 0, 0x40, 6, 1, 0][..],
            &[1, 1, 8, 0, 0, 0, 9, 0, 16, 1],
        ]
        .concat();
        // Bytes at ports and odd offsets.
        let odd: Vec<u8> = (0..8)
            .flat_map(|offset| [2, offset, 0, 1, b'a', 3, offset, 0, 1])
            .collect();
        seeds.extend([held, free, long, [&[number][..], &odd].concat()]);
    }
    // A file that is selected, read in part, and read on elsewhere.
    let (select, data) = ([2, 0x10, 5, 2, 0x20, 0], [3, 0x11, 5, 3]);
    seeds.push([&[8][..], &select, &data, &[16, 1], &data, &data].concat());
    // Events that are enabled, a power-off, and what is read of both elsewhere.
    let (enable, sleep) = ([2, 2, 0, 2, 0x20, 1], [2, 4, 0, 2, 0, 0x34]);
    seeds.push([&[10, 14, 1][..], &enable, &sleep, &[11, 16, 1], &[3, 0, 0, 6]].concat());
    seeds
}
