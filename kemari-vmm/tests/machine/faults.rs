//! A guest that does something impossible with its rings: its device stops with NEEDS_RESET,
//! and a reset mends it.

use std::thread;
use std::time::Duration;

use kemari_vmm::devices::Device;
use kemari_vmm::virtio::block::Block;
use kemari_vmm::virtio::net::Net;
use kemari_vmm::virtio::rng::Rng;
use vm_memory::{Bytes, GuestAddress};

use crate::support::bench::{self, Bench, MEMORY_BYTES};
use crate::support::driver::{
    self, CHAIN_MAX, INDIRECT, NEXT, Ring, TABLE, WRITE, agree, go, needs_reset, regs, write_register,
};
use crate::support::watchdog::Watchdog;

const RING: u64 = 0x1_0000;
const HEADER: u64 = 0x8_0000;
const DATA: u64 = 0x8_1000;
const STATUS: u64 = 0x8_2000;

/// A disk in use, as the fault finds it.
struct Victim {
    bench: Bench<Block>,
    ring: Ring,
    _image: tempfile::NamedTempFile,
}

impl Victim {
    fn new(refused_features: u64) -> Self {
        let image = bench::image();
        let bench = bench::block_bench(&image);
        let features = agree(&*bench.device, refused_features);
        let ring = Ring::new(&*bench.device, bench.memory(), 0, RING, 64, features);
        go(&*bench.device);
        let mut victim = Self {
            bench,
            ring,
            _image: image,
        };
        victim.read_a_sector();
        victim
    }

    fn read_a_sector(&mut self) {
        self.bench
            .memory()
            .write_slice(&[0; 16], GuestAddress(HEADER))
            .expect("inside the memory");
        let head = self
            .ring
            .request(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        self.ring.offer(head);
        self.ring.kick_always(&*self.bench.device);
        assert_eq!(self.ring.wait_used(), (head, 513));
        assert!(!needs_reset(&*self.bench.device));
    }

    fn recovers(mut self) {
        let device = self.bench.device.clone();
        // It does nothing more, whatever the driver writes, but can be saved.
        self.ring.kick_always(&*device);
        write_register(&*device, regs::STATUS, 3 | 8 | driver::DRIVER_OK);
        assert!(needs_reset(&*device));
        device.wake();
        device.save();
        // A disk's thread may have something in hand still: the reset waits for it.
        let features = agree(&*device, 0);
        assert!(!needs_reset(&*device));
        self.ring = Ring::new(&*device, self.bench.memory(), 0, RING, 64, features);
        go(&*device);
        self.read_a_sector();
    }
}

/// Something that no driver may do.
type Fault = fn(&mut Victim);

/// Made available and kicked.
fn offer(victim: &mut Victim, head: u16) {
    victim.ring.offer(head);
    victim.ring.kick_always(&*victim.bench.device);
}

const FAULTS: &[(&str, Fault)] = &[
    ("a loop of readable descriptors", |v| {
        v.ring.descriptor(0, HEADER, 16, NEXT, 1);
        v.ring.descriptor(1, HEADER, 16, NEXT, 0);
        offer(v, 0);
    }),
    ("a loop that ends in writable descriptors", |v| {
        v.ring.descriptor(0, HEADER, 16, NEXT, 1);
        v.ring.descriptor(1, DATA, 512, NEXT | WRITE, 1);
        offer(v, 0);
    }),
    ("a chain into a descriptor that the ring does not have", |v| {
        v.ring.descriptor(0, HEADER, 16, NEXT, 1);
        v.ring.descriptor(1, STATUS, 1, NEXT | WRITE, 64);
        offer(v, 0);
    }),
    ("a chain longer than 4 GiB", |v| {
        v.ring.descriptor(0, HEADER, 16, NEXT, 1);
        v.ring.descriptor(1, DATA, 512, NEXT | WRITE, 2);
        v.ring.descriptor(2, DATA, u32::MAX, WRITE, 0);
        offer(v, 0);
    }),
    ("a buffer outside the memory", |v| {
        let head = v.ring.request(
            1,
            &[(HEADER, 16, false), (MEMORY_BYTES, 512, true), (STATUS, 1, true)],
        );
        offer(v, head);
    }),
    ("a buffer that ends outside the memory", |v| {
        let head = v.ring.request(
            1,
            &[
                (HEADER, 16, false),
                (MEMORY_BYTES - 256, 512, true),
                (STATUS, 1, true),
            ],
        );
        offer(v, head);
    }),
    ("a buffer around the end of all addresses", |v| {
        let head = v.ring.request(
            1,
            &[
                (HEADER, 16, false),
                (u64::MAX - 100, 512, true),
                (STATUS, 1, true),
            ],
        );
        offer(v, head);
    }),
    ("no header", |v| {
        let head = v.ring.request(1, &[(STATUS, 1, true)]);
        offer(v, head);
    }),
    ("half a header", |v| {
        let head = v.ring.request(1, &[(HEADER, 8, false), (STATUS, 1, true)]);
        offer(v, head);
    }),
    ("no status", |v| {
        let head = v.ring.request(1, &[(HEADER, 16, false)]);
        offer(v, head);
    }),
    ("a readable buffer behind a writable one", |v| {
        let head = v
            .ring
            .request(1, &[(HEADER, 16, false), (STATUS, 1, true), (DATA, 512, false)]);
        offer(v, head);
    }),
    ("a head that the ring does not have", |v| offer(v, 64)),
    ("a jump of the available index", |v| {
        v.ring.set_available(v.ring.available.wrapping_add(65));
        v.ring.kick_always(&*v.bench.device);
    }),
    ("an available index that goes back", |v| {
        v.ring.set_available(v.ring.available.wrapping_sub(1));
        v.ring.kick_always(&*v.bench.device);
    }),
    ("a chain made available twice", |v| {
        // Held, so that it is not finished in between.
        v.bench.hub.hold_output(true);
        let write = [1u64.to_le_bytes(), 0u64.to_le_bytes()].concat();
        v.bench
            .memory()
            .write_slice(&write, GuestAddress(HEADER))
            .expect("inside the memory");
        let head = v
            .ring
            .request(1, &[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
        v.ring.offer(head);
        offer(v, head);
        v.bench.hub.hold_output(false);
        assert!(
            !v.bench.device.output_held(),
            "what was held is dropped with the device's work"
        );
    }),
    ("an indirect table inside an indirect table", |v| {
        let table = v.ring.table(1);
        v.ring.descriptor_at(table, table, 16, TABLE, 0);
        v.ring.descriptor(CHAIN_MAX, table, 16, TABLE, 0);
        offer(v, CHAIN_MAX);
    }),
    ("an indirect table of a descriptor and a half", |v| {
        v.ring.descriptor(CHAIN_MAX, v.ring.table(1), 24, TABLE, 0);
        offer(v, CHAIN_MAX);
    }),
    ("an indirect table outside the memory", |v| {
        v.ring.descriptor(CHAIN_MAX, MEMORY_BYTES, 16, TABLE, 0);
        offer(v, CHAIN_MAX);
    }),
    ("an indirect table without entries", |v| {
        v.ring.descriptor(CHAIN_MAX, v.ring.table(1), 0, TABLE, 0);
        offer(v, CHAIN_MAX);
    }),
    ("an indirect table that is a loop", |v| {
        let table = v.ring.table(1);
        v.ring.descriptor_at(table, HEADER, 16, NEXT, 1);
        v.ring.descriptor_at(table + 16, STATUS, 1, NEXT | WRITE, 1);
        v.ring.descriptor(CHAIN_MAX, table, 32, TABLE, 0);
        offer(v, CHAIN_MAX);
    }),
];

#[test]
fn a_disk_stops_at_each_impossible_thing_and_recovers() {
    let _watchdog = Watchdog::new("faults of a guest", 60);
    for refused in [0, INDIRECT] {
        for (name, fault) in FAULTS {
            let mut victim = Victim::new(refused);
            fault(&mut victim);
            assert!(needs_reset(&*victim.bench.device), "{name}: the device goes on");
            victim.recovers();
        }
    }
}

/// Where parts of a ring may not lie.
#[test]
fn a_ring_that_does_not_lie_in_memory_is_refused() {
    let _watchdog = Watchdog::new("rings outside the memory", 60);
    let places: &[(u64, u64)] = &[
        (regs::QUEUE_DESC, MEMORY_BYTES - 16),
        (regs::QUEUE_DESC, 1 << 50),
        // The indexes lie inside the memory, the entries do not: nothing but a check of all of it notices.
        (regs::QUEUE_DRIVER, MEMORY_BYTES - 4),
        (regs::QUEUE_DRIVER, MEMORY_BYTES - 100),
        (regs::QUEUE_DRIVER, u64::MAX - 1),
        (regs::QUEUE_DEVICE, MEMORY_BYTES - 4),
        (regs::QUEUE_DEVICE, u64::MAX - 3),
    ];
    for &(part, address) in places {
        let image = bench::image();
        let bench = bench::block_bench(&image);
        let device = &*bench.device;
        agree(device, 0);
        let memory = bench.memory();
        memory
            .write_slice(&vec![0xff; 0x1000], GuestAddress(MEMORY_BYTES - 0x1000))
            .expect("inside the memory");
        if part == regs::QUEUE_DRIVER && address < MEMORY_BYTES {
            // One chain is available, if the device believes the index.
            memory
                .write_obj(1u16, GuestAddress(address + 2))
                .expect("inside the memory");
        }
        write_register(device, regs::QUEUE_SEL, 0);
        write_register(device, regs::QUEUE_NUM, 64);
        for (register, good) in [
            (regs::QUEUE_DESC, RING),
            (regs::QUEUE_DRIVER, RING + 0x1000),
            (regs::QUEUE_DEVICE, RING + 0x2000),
        ] {
            let address = if register == part { address } else { good };
            write_register(device, register, address as u32);
            write_register(device, register + 4, (address >> 32) as u32);
        }
        write_register(device, regs::QUEUE_READY, 1);
        go(device);
        write_register(device, regs::QUEUE_NOTIFY, 0);
        assert!(needs_reset(device), "{part:#x} at {address:#x}");
        device.wake();
    }
}

#[test]
fn cards_and_entropy_devices_stop_too() {
    let _watchdog = Watchdog::new("faults of other devices", 60);
    // A packet shorter than its header, one longer than any, and none.
    for length in [11u32, 70_000, 0] {
        let bench = Bench::new(Net::new([2; 6], false));
        let features = agree(&*bench.device, 0);
        let mut ring = Ring::new(&*bench.device, bench.memory(), 1, RING, 64, features);
        go(&*bench.device);
        let head = ring.request(0, &[(DATA, length, false)]);
        ring.offer(head);
        ring.kick_always(&*bench.device);
        assert!(needs_reset(&*bench.device), "a packet of {length} bytes");
    }
    let bench = Bench::new(Rng);
    let features = agree(&*bench.device, 0);
    let mut ring = Ring::new(&*bench.device, bench.memory(), 0, RING, 64, features);
    go(&*bench.device);
    let head = ring.request(0, &[(DATA, 64, true)]);
    ring.offer(head);
    ring.kick_always(&*bench.device);
    assert_eq!(ring.wait_used(), (head, 64));
    ring.descriptor(8, DATA, 64, WRITE | NEXT, 8);
    ring.offer(8);
    ring.kick_always(&*bench.device);
    assert!(needs_reset(&*bench.device));
}

/// The guest breaks its rules while requests are held, captured and in flight.
#[test]
fn what_was_captured_is_finished_after_a_fault_and_what_was_held_is_dropped() {
    let _watchdog = Watchdog::new("a fault with output held", 60);
    let mut victim = Victim::new(0);
    let device = victim.bench.device.clone();
    victim.bench.hub.hold_output(true);
    let write = [1u64.to_le_bytes(), 0u64.to_le_bytes()].concat();
    victim
        .bench
        .memory()
        .write_slice(&write, GuestAddress(HEADER))
        .expect("inside the memory");
    let buffers = [(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)];
    let captured = victim.ring.request(1, &buffers);
    offer(&mut victim, captured);
    device.capture(1);
    let held = victim.ring.request(2, &buffers);
    offer(&mut victim, held);
    offer(&mut victim, 64);
    assert!(needs_reset(&*device) && !device.output_held());
    // The guest's reset waits for the ack of what was captured.
    let resetting = {
        let device = device.clone();
        thread::spawn(move || write_register(&*device, regs::STATUS, 0))
    };
    thread::sleep(Duration::from_millis(50));
    assert!(
        !resetting.is_finished(),
        "a reset is complete before what was captured is finished"
    );
    device.release(1);
    resetting.join().expect("the reset completes");
    victim.bench.hub.hold_output(false);
    assert!(!needs_reset(&*device));

    // And a reset in whose middle the capture fails does not wait for ever.
    let features = agree(&*device, 0);
    victim.ring = Ring::new(&*device, victim.bench.memory(), 0, RING, 64, features);
    go(&*device);
    victim.bench.hub.hold_output(true);
    let captured = victim.ring.request(1, &buffers);
    offer(&mut victim, captured);
    device.capture(2);
    let resetting = {
        let device = device.clone();
        thread::spawn(move || write_register(&*device, regs::STATUS, 0))
    };
    thread::sleep(Duration::from_millis(50));
    assert!(!resetting.is_finished());
    device.uncapture(2);
    resetting.join().expect("the reset completes");
    assert!(!device.output_held());
}
