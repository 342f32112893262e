//! Requests that no driver makes.

use super::Victims;
use super::ring::{Pieces, QUEUE_SIZE, REQUESTS, Request, Ring, TABLE_MAX, TRANSMIT};
use crate::abi::{HIGH_MEMORY, IO_APIC, LOCAL_APIC};
use crate::cpu;
use crate::virtio::memory::Dma;

/// Data to write, which is whatever lies there.
const DATA: u64 = 0x10_0000;
const DATA_BYTES: u32 = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// Most pieces of a request that a device takes, with its header and its status.
const PIECES_MAX: usize = QUEUE_SIZE as usize - 2;
/// Sectors of the largest discard, and the last sector that there is a number for.
const SECTORS_MAX: u32 = u32::MAX;
const LAST_SECTOR: u64 = u64::MAX >> 9;

const fn of_data(count: usize, bytes: u32) -> Pieces {
    Pieces {
        count,
        address: DATA,
        bytes,
    }
}

/// Tens of thousands of empty descriptors.
pub fn chains(victims: &mut Victims) {
    let mut ring = Ring::new(victims.disk, REQUESTS);
    let descriptors = ring.disk(Request::Write, of_data(TABLE_MAX - 2, 0));
    while victims.goes_on() {
        ring.begin();
        ring.offer(1, descriptors);
    }
}

/// The last of a chain leads to its first, to itself, or to nowhere.
pub fn loops(victims: &mut Victims) {
    let mut rings = [
        Ring::new(victims.disk, REQUESTS),
        Ring::new(victims.card, TRANSMIT),
    ];
    while victims.goes_on() {
        for ring in &mut rings {
            for to in [0, 1, 7, u16::MAX] {
                let descriptors = ring.packet(of_data(8, 512));
                ring.lead(descriptors - 1, to);
                ring.begin();
                ring.offer(QUEUE_SIZE, descriptors);
            }
        }
    }
}

/// Where no memory is: nowhere, at the end of all addresses, in devices, in the hole.
pub fn addresses(victims: &mut Victims) {
    let nowhere = [
        u64::MAX - 100,
        !0xfff,
        0x7fff_ffff_ffff_f000,
        HIGH_MEMORY - 1,
        HIGH_MEMORY << 8,
        LOCAL_APIC,
        IO_APIC,
        victims.disk.base,
    ];
    let mut disk = Ring::new(victims.disk, REQUESTS);
    let mut card = Ring::new(victims.card, TRANSMIT);
    while victims.goes_on() {
        for address in nowhere {
            for bytes in [1, 4096, 1 << 31, u32::MAX] {
                let pieces = Pieces {
                    count: 3,
                    address,
                    bytes,
                };
                for request in [Request::Read, Request::Write, Request::Discard] {
                    let descriptors = disk.disk(request, pieces);
                    disk.begin();
                    disk.offer(8, descriptors);
                }
                let descriptors = card.packet(pieces);
                card.begin();
                card.offer(8, descriptors);
            }
        }
    }
}

/// Packets in as many pieces as there can be, and in more.
pub fn transmits(victims: &mut Victims) {
    let mut ring = Ring::new(victims.card, TRANSMIT);
    while victims.goes_on() {
        for count in [usize::from(QUEUE_SIZE), 30_000] {
            let descriptors = ring.packet(of_data(count, (65_000 / count) as u32));
            ring.begin();
            ring.offer(QUEUE_SIZE, descriptors);
        }
    }
}

/// The largest writes.
pub fn writes(victims: &mut Victims) {
    let mut ring = Ring::new(victims.disk, REQUESTS);
    let descriptors = ring.disk(Request::Write, of_data(8, DATA_BYTES));
    while victims.goes_on() {
        ring.begin();
        ring.offer(QUEUE_SIZE, descriptors);
        // Some of them are on their way when the next reset comes.
        (0..3).for_each(|_| cpu::kick());
    }
}

/// The largest reads, into one page again and again.
pub fn reads(victims: &mut Victims) {
    let page = Dma::new(PAGE_BYTES, PAGE_BYTES);
    let mut ring = Ring::new(victims.disk, REQUESTS);
    let pieces = Pieces {
        count: PIECES_MAX,
        address: page.address(),
        bytes: PAGE_BYTES as u32,
    };
    let descriptors = ring.disk(Request::Read, pieces);
    while victims.goes_on() {
        ring.begin();
        ring.offer(QUEUE_SIZE, descriptors);
        (0..3).for_each(|_| cpu::kick());
    }
    // The device is done with the page before it is given back.
    drop(ring);
}

/// What is read lands where the queue is.
pub fn overwrites(victims: &mut Victims) {
    let mut ring = Ring::new(victims.disk, REQUESTS);
    let at = ring.addresses();
    let pieces = Pieces {
        count: 3,
        address: at.descriptors,
        bytes: PAGE_BYTES as u32,
    };
    let descriptors = ring.disk(Request::Read, pieces);
    while victims.goes_on() {
        ring.begin();
        ring.offer(QUEUE_SIZE, descriptors);
        (0..3).for_each(|_| cpu::kick());
        ring.registers.notify(REQUESTS);
    }
}

/// All of the disk, and more.
pub fn discards(victims: &mut Victims) {
    let mut ring = Ring::new(victims.disk, REQUESTS);
    let sectors = u64::from(ring.registers.config_word(0)) | u64::from(ring.registers.config_word(4)) << 32;
    let all = u32::try_from(sectors).unwrap_or(SECTORS_MAX);
    while victims.goes_on() {
        for (first, sectors) in [(0, all), (1, all), (0, SECTORS_MAX), (LAST_SECTOR, 8), (0, 0)] {
            for request in [Request::Discard, Request::Zeroes] {
                let range = ring.range(first, sectors);
                let descriptors = ring.disk(request, range);
                ring.begin();
                ring.offer(16, descriptors);
                cpu::kick();
            }
        }
    }
}
