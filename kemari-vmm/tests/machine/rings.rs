//! A driver and its rings over many re-attachments of the device: out of order, past index 65,535, with and
//! without event indexes and indirect tables; what the device writes is marked dirty.

use std::sync::Arc;

use kemari_vmm::devices::Device;
use kemari_vmm::memory::{Memory, PAGE_BYTES};
use kemari_vmm::virtio::block::{Block, BlockSpec};
use kemari_vmm::virtio::device::VirtioDevice;
use kemari_vmm::virtio::rng::Rng;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::support::bench::{self, Bench, MEMORY_BYTES, SECTOR_BYTES};
use crate::support::driver::{self, CHAIN_MAX, EVENT_IDX, INDIRECT, Ring, regs};
use crate::support::random::Random;
use crate::support::watchdog::Watchdog;

const RING: u64 = 0x1_0000;
const BUFFERS: u64 = 0x8_0000;
const SLOT_BYTES: u64 = 0x1000;
/// Requests in each test: the indexes pass 65,535.
const REQUESTS: usize = 70_000;

#[derive(Clone, Copy, PartialEq)]
enum Asked {
    Read,
    Write(u8),
}

/// A driver that knows what must be on its disk. Each slot has a sector of its own.
struct Model {
    ring: Ring,
    /// In the order of their requests.
    pending: Vec<(u16, Asked)>,
    sectors: Vec<u8>,
    finished: usize,
    overtaken: usize,
}

impl Model {
    fn idle_slot(&self, random: &mut Random) -> Option<u16> {
        let slot = random.below(self.ring.slots().into()) as u16;
        (!self.pending.iter().any(|(busy, _)| *busy == slot)).then_some(slot)
    }

    fn ask(&mut self, slot: u16, asked: Asked) {
        let at = BUFFERS + SLOT_BYTES * u64::from(slot);
        let (kind, byte) = match asked {
            Asked::Read => (0u64, 0xee),
            Asked::Write(byte) => (1, byte),
        };
        let bytes = [
            &kind.to_le_bytes()[..],
            &u64::from(slot).to_le_bytes(),
            &[byte; SECTOR_BYTES],
        ]
        .concat();
        self.ring
            .memory
            .write_slice(&bytes, GuestAddress(at))
            .expect("inside the memory");
        let buffers = [
            (at, 16, false),
            (at + 16, SECTOR_BYTES as u32, asked == Asked::Read),
            (at + 0x800, 1, true),
        ];
        let head = self.ring.request(slot, &buffers);
        self.ring.offer(head);
        self.pending.push((slot, asked));
    }

    /// Takes what is finished and compares.
    fn take_used(&mut self) {
        while let Some((head, _)) = self.ring.used() {
            let slot = head / CHAIN_MAX;
            let index = self.pending.iter().position(|(busy, _)| *busy == slot);
            let index = index.expect("nothing is finished that is not pending, and nothing twice");
            self.overtaken += usize::from(index > 0);
            let (_, asked) = self.pending.remove(index);
            let at = BUFFERS + SLOT_BYTES * u64::from(slot);
            let status: u8 = self
                .ring
                .memory
                .read_obj(GuestAddress(at + 0x800))
                .expect("inside the memory");
            assert_eq!(status, 0);
            let sector = &mut self.sectors[usize::from(slot)];
            match asked {
                Asked::Write(byte) => *sector = byte,
                Asked::Read => {
                    let mut data = [0; SECTOR_BYTES];
                    self.ring
                        .memory
                        .read_slice(&mut data, GuestAddress(at + 16))
                        .expect("inside the memory");
                    assert!(
                        data.iter().all(|byte| byte == sector),
                        "slot {slot} has {} for {sector}",
                        data[0]
                    );
                }
            }
            self.finished += 1;
        }
    }
}

fn rings_survive(refused: u64, seed: u64) {
    let mut random = Random::new(seed);
    let image = bench::image();
    let mut bench = bench::block_bench(&image);
    let features = driver::agree(&*bench.device, refused);
    assert_eq!(
        features & (EVENT_IDX | INDIRECT),
        (EVENT_IDX | INDIRECT) & !refused
    );
    let ring = Ring::new(&*bench.device, bench.memory(), 0, RING, 256, features);
    driver::go(&*bench.device);
    let sectors = vec![0; usize::from(ring.slots())];
    let mut model = Model {
        ring,
        pending: Vec::new(),
        sectors,
        finished: 0,
        overtaken: 0,
    };
    let (mut epoch, mut moves) = (0, 0);
    bench.hub.hold_output(true);
    while model.finished < REQUESTS {
        for _ in 0..random.below(24) {
            let Some(slot) = model.idle_slot(&mut random) else {
                continue;
            };
            let write = random.percent(50);
            model.ask(
                slot,
                if write {
                    Asked::Write(random.next() as u8)
                } else {
                    Asked::Read
                },
            );
        }
        model.ring.kick(&*bench.device);
        model.take_used();
        if !bench.device.output_held() && model.pending.len() < 30 {
            continue;
        }
        epoch += 1;
        {
            let _freeze = bench.hub.freeze();
            bench.device.capture(epoch);
        }
        if random.percent(70) {
            bench.device.release(epoch);
        }
        if random.below(1000) < 2 {
            bench = move_on(bench, &image, &mut model);
            moves += 1;
        }
    }
    bench.hub.hold_output(false);
    bench.device.release_all();
    while !model.pending.is_empty() {
        model.take_used();
    }
    let on_image = std::fs::read(image.path()).expect("the image");
    for (slot, byte) in model.sectors.iter().enumerate() {
        assert_eq!(on_image[slot * SECTOR_BYTES], *byte, "sector {slot}");
    }
    eprintln!(
        "{} requests over {moves} devices, {} overtook others",
        model.finished, model.overtaken
    );
    assert!(moves > 10 && model.overtaken > 100);
}

/// Another device, with another memory, goes on.
fn move_on(old: Bench<Block>, image: &tempfile::NamedTempFile, model: &mut Model) -> Bench<Block> {
    let (state, memory) = {
        let _freeze = old.hub.freeze();
        (old.device.save(), bench::copy(old.memory()))
    };
    old.device.abandon();
    let old_device: Arc<VirtioDevice<Block>> = old.device;
    // What was released before may still be on its way to the image; the same bytes are written again below.
    drop(old_device);
    let new = Bench::with_memory(Block::new(BlockSpec::new("bench", false)), memory);
    new.device.load(&state).expect("the state of an equal device");
    assert_eq!(new.device.save(), state);
    new.device
        .with_backend(|block| block.attach(locked_disk(image)))
        .expect("the image has sectors");
    model.ring.memory = new.memory().clone();
    new.hub.hold_output(false);
    new.device.release_all();
    new.device.wake();
    new.hub.hold_output(true);
    new
}

/// Opens the image as soon as the last thread that writes to it has ended.
fn locked_disk(image: &tempfile::NamedTempFile) -> kemari_vmm::disk::Disk {
    let config = kemari_vmm::disk::DiskConfig::new(image.path());
    loop {
        match kemari_vmm::disk::Disk::open(&config) {
            Err(kemari_vmm::disk::DiskError::InUse { .. }) => std::thread::yield_now(),
            result => return result.expect("the image opens"),
        }
    }
}

#[test]
fn with_event_indexes_and_indirect_tables() {
    let _watchdog = Watchdog::new("rings over many devices", 120);
    rings_survive(0, 91);
}

#[test]
fn with_event_indexes_only() {
    let _watchdog = Watchdog::new("rings over many devices", 120);
    rings_survive(INDIRECT, 92);
}

#[test]
fn with_indirect_tables_only() {
    let _watchdog = Watchdog::new("rings over many devices", 120);
    rings_survive(EVENT_IDX, 93);
}

#[test]
fn with_neither() {
    let _watchdog = Watchdog::new("rings over many devices", 120);
    rings_survive(EVENT_IDX | INDIRECT, 94);
}

/// A kick or an interrupt that fell between two machines is made up for.
#[test]
fn a_device_that_goes_on_looks_into_its_rings_without_a_kick() {
    let _watchdog = Watchdog::new("rings without a kick", 60);
    for refused in [0, EVENT_IDX] {
        let old = Bench::new(Rng);
        let features = driver::agree(&*old.device, refused);
        let mut ring = Ring::new(&*old.device, old.memory(), 0, RING, 64, features);
        driver::go(&*old.device);
        let head = ring.request(0, &[(BUFFERS, 100, true)]);
        ring.offer(head);
        let new = Bench::with_memory(Rng, bench::copy(old.memory()));
        new.device
            .load(&old.device.save())
            .expect("the state of an equal device");
        ring.memory = new.memory().clone();
        assert_eq!(driver::read_register(&*new.device, regs::INTERRUPT_STATUS), 0);
        new.device.wake();
        assert_eq!(ring.used(), Some((head, 100)));
        assert_eq!(driver::read_register(&*new.device, regs::INTERRUPT_STATUS), 1);
    }
}

/// What the device had finished may be in the ring, and its interrupt lost between two machines.
#[test]
fn a_device_that_goes_on_interrupts_the_guest_though_it_has_nothing_to_do() {
    for is_ready in [true, false] {
        let old = Bench::new(Rng);
        if is_ready {
            let features = driver::agree(&*old.device, 0);
            Ring::new(&*old.device, old.memory(), 0, RING, 64, features);
            driver::go(&*old.device);
        }
        let new = Bench::with_memory(Rng, bench::copy(old.memory()));
        new.device
            .load(&old.device.save())
            .expect("the state of an equal device");
        new.device.wake();
        let status = driver::read_register(&*new.device, regs::INTERRUPT_STATUS);
        assert_eq!(status, u32::from(is_ready));
    }
}

#[test]
fn a_state_whose_rings_lie_outside_the_memory_is_refused() {
    let old = Bench::new(Rng);
    let features = driver::agree(&*old.device, 0);
    Ring::new(&*old.device, old.memory(), 0, RING, 64, features);
    driver::go(&*old.device);
    let load = |bytes: usize| {
        let memory = Memory::from_ranges(&[(GuestAddress(0), bytes)]).expect("a little memory");
        Bench::with_memory(Rng, memory).device.load(&old.device.save())
    };
    load(BUFFERS as usize).expect("the rings lie in it");
    let error = load(RING as usize).expect_err("they do not").to_string();
    assert!(
        error.contains("a virtqueue lies outside the guest's memory"),
        "{error}"
    );
}

/// A state whose requests cannot be this machine's is refused, instead of carried out at the takeover.
#[test]
fn a_request_outside_the_memory_is_not_taken_over() {
    let image = bench::image();
    let old = bench::block_bench(&image);
    let features = driver::agree(&*old.device, 0);
    let ring = Ring::new(&*old.device, old.memory(), 0, RING, 256, features);
    driver::go(&*old.device);
    old.hub.hold_output(true);
    let mut model = Model {
        ring,
        pending: Vec::new(),
        sectors: Vec::new(),
        finished: 0,
        overtaken: 0,
    };
    let load = |state: &kemari_vmm::state::StateBlob| {
        let small = Memory::from_ranges(&[(GuestAddress(0), BUFFERS as usize)]).expect("a little memory");
        Bench::with_memory(Block::new(BlockSpec::new("bench", false)), small)
            .device
            .load(state)
    };
    load(&old.device.save()).expect("the rings lie in the small memory too");
    model.ask(3, Asked::Write(1));
    model.ring.kick(&*old.device);
    assert!(old.device.output_held());
    let error = load(&old.device.save())
        .expect_err("the buffers lie outside")
        .to_string();
    assert!(error.contains("outside the guest's memory"), "{error}");
}

/// The VMM's own writes are in its log: a memory that follows the log equals the one that was written.
#[test]
fn all_that_a_device_writes_is_dirty() {
    let _watchdog = Watchdog::new("pages that a device writes", 60);
    let mut random = Random::new(95);
    let bench = Bench::new(Rng);
    let features = driver::agree(&*bench.device, 0);
    let mut ring = Ring::new(&*bench.device, bench.memory(), 0, RING, 64, features);
    driver::go(&*bench.device);
    let shadow = bench::copy(bench.memory());
    let region = bench.memory().iter().next().expect("one region");
    for round in 0..2_000 {
        // The driver's own writes are the guest's, which KVM would log: they are left out here.
        let at = BUFFERS + random.below(MEMORY_BYTES - BUFFERS - 0x4000);
        let head = ring.request(
            (round % 16) as u16,
            &[(at, random.below(5000) as u32, true), (at + 0x2001, 7, true)],
        );
        ring.offer(head);
        copy_page(bench.memory(), &shadow, RING);
        copy_page(bench.memory(), &shadow, RING + 0x1000);
        for page in 0..4 {
            copy_page(bench.memory(), &shadow, RING + 0x3000 + page * PAGE_BYTES as u64);
        }
        (**region).bitmap().take(|_| {});
        ring.kick(&*bench.device);
        (**region)
            .bitmap()
            .take(|page| copy_page(bench.memory(), &shadow, (page * PAGE_BYTES) as u64));
        assert_eq!(
            crate::support::pair::first_difference(bench.memory(), &shadow),
            None,
            "round {round}"
        );
        assert!(ring.used().is_some());
        // The driver's look at the used ring wrote the available ring's event index.
        copy_page(bench.memory(), &shadow, RING + 0x1000);
    }
}

fn copy_page(from: &Memory, to: &Memory, address: u64) {
    let mut page = [0; PAGE_BYTES];
    from.read_slice(&mut page, GuestAddress(address))
        .expect("inside the memory");
    to.write_slice(&page, GuestAddress(address))
        .expect("inside the memory");
}
