//! What goes on without end, and what changes under a device's hands.

use super::Victims;
use super::ring::{Pieces, QUEUE_SIZE, REQUESTS, Request, Ring, TRANSMIT};
use crate::abi::LOCAL_APIC;
use crate::virtio::mmio::{self, F_INDIRECT_DESC};
use crate::virtio::queue::Addresses;
use crate::{clock, cpu, traps};

/// The register of the local APIC that sends interrupts, and the word for "to oneself".
const COMMAND: u64 = LOCAL_APIC + 0x300;
const TO_SELF: u32 = 1 << 18;
/// Data port of the console.
const CONSOLE: u16 = 0x3f8;
/// Pages written between two kicks.
const DIRTY_PAGES: usize = 64;
/// Where no memory is.
const NOWHERE: u64 = 0x7fff_ffff_ffff_f000;
/// A request of the least trouble.
const SMALL: Pieces = Pieces {
    count: 1,
    address: 0x10_0000,
    bytes: 4096,
};

/// Numbers that nobody foresees.
fn numbers() -> impl FnMut() -> u64 {
    let mut random = clock::now_us() | 1;
    move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    }
}

/// A queue where no memory is.
pub fn bad_queue(victims: &mut Victims) {
    let ring = Ring::new(victims.disk, REQUESTS);
    ring.registers.reset();
    ring.registers.negotiate(F_INDIRECT_DESC);
    let addresses = Addresses {
        descriptors: NOWHERE,
        driver: NOWHERE,
        device: NOWHERE,
    };
    ring.registers.set_queue(REQUESTS, QUEUE_SIZE, addresses);
    ring.registers.finish();
    while victims.goes_on() {
        ring.registers.notify(REQUESTS);
        cpu::kick();
    }
}

/// Any value in any register.
pub fn registers(victims: &mut Victims) {
    let mut next = numbers();
    while victims.goes_on() {
        let device = victims.all[next() as usize % victims.all.len()];
        let offset = next() % 0x40 * 4;
        // SAFETY: a register page of this machine. Memory that a device could write by it is in no queue that
        // is set up here, but by chance.
        unsafe { ((device.base + offset) as *mut u32).write_volatile(next() as u32 & 0x8000_000f) };
    }
}

/// Resets with requests in flight, and in the middle of another.
pub fn resets(victims: &mut Victims) {
    let mut disk = Ring::new(victims.disk, REQUESTS);
    let mut card = Ring::new(victims.card, TRANSMIT);
    let requests = (disk.disk(Request::Write, SMALL), card.packet(SMALL));
    while victims.goes_on() {
        disk.begin();
        card.begin();
        disk.offer(64, requests.0);
        card.offer(64, requests.1);
        for _ in 0..8 {
            disk.registers.begin_reset();
            card.registers.begin_reset();
        }
    }
}

/// What a queue is changes while the device works on it.
pub fn sizes(victims: &mut Victims) {
    let mut ring = Ring::new(victims.disk, REQUESTS);
    let descriptors = ring.disk(Request::Write, SMALL);
    let mut next = numbers();
    let sizes = [0, 1, 3, 128, 255, 257, 32_768, 65_535, u32::MAX];
    while victims.goes_on() {
        ring.begin();
        ring.offer(QUEUE_SIZE, descriptors);
        for _ in 0..16 {
            let registers = ring.registers;
            let size = sizes[next() as usize % sizes.len()];
            let half = mmio::QUEUE_DESCRIPTORS + next() % 6 * 8;
            // SAFETY: the device writes to its rings and to the status of the request, which are ours, or
            // nowhere: of the addresses only the upper half changes, and there is no memory at any of them
            // then.
            unsafe {
                registers.poke(mmio::QUEUE_SELECT, next() as u32 % 3);
                registers.poke(mmio::QUEUE_SIZE, size);
                registers.poke(half + 4, 0x7fff_ffff);
                registers.poke(mmio::QUEUE_READY, next() as u32 % 2);
            }
            registers.notify(REQUESTS);
        }
        cpu::kick();
    }
}

/// Notifications of any queue.
pub fn doorbells(victims: &mut Victims) {
    let mut disk = Ring::new(victims.disk, REQUESTS);
    let mut card = Ring::new(victims.card, TRANSMIT);
    disk.begin();
    card.begin();
    let mut next = numbers();
    while victims.goes_on() {
        for _ in 0..64 {
            let queue = [0, 1, 2, next() as u16][next() as usize % 4];
            disk.registers.notify(queue);
            card.registers.notify(queue);
        }
    }
}

/// Bytes on the console.
pub fn console(victims: &mut Victims) {
    while victims.goes_on() {
        for byte in b"x".repeat(63).into_iter().chain(*b"\n") {
            cpu::outb(CONSOLE, byte);
        }
    }
}

/// Pages, faster than any link.
pub fn dirty(victims: &mut Victims) {
    while victims.goes_on() && victims.area.pages() > 0 {
        (0..DIRTY_PAGES).for_each(|_| victims.area.dirty_page());
        cpu::kick();
    }
}

/// Interrupts that only end a wait.
pub fn interrupts(victims: &mut Victims) {
    let word = TO_SELF | u32::from(traps::WORKER_VECTOR);
    while victims.goes_on() {
        for _ in 0..64 {
            // SAFETY: the local APIC's page is mapped one to one,
            // and there is a gate for this vector that returns.
            unsafe { (COMMAND as *mut u32).write_volatile(word) };
        }
    }
}
