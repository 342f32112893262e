//! Guests that write anything anywhere: no device panics or hangs, none reads or writes outside the memory,
//! and in whatever state it is, that state is saved, loaded elsewhere and gone on with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kemari_vmm::devices::Device;
use kemari_vmm::devices::hub::Hub;
use kemari_vmm::disk::{Cache, Disk, DiskConfig, Io};
use kemari_vmm::memory::Memory;
use kemari_vmm::virtio::Backend;
use kemari_vmm::virtio::block::{Block, BlockSpec};
use kemari_vmm::virtio::budget::DEVICE_STATE_BYTES_MAX;
use kemari_vmm::virtio::net::Net;
use kemari_vmm::virtio::rng::Rng;
use kemari_vmm::virtio::tap::TapDevice;
use vm_memory::{Bytes, GuestAddress};

use crate::support::bench::{self, Bench, MEMORY_BYTES};
use crate::support::driver::{Ring, agree, go, needs_reset, read_register, regs, write_register};
use crate::support::network::{self, TAP};
use crate::support::random::Random;
use crate::support::watchdog::Watchdog;

/// How long each device is tormented.
const TIME: Duration = Duration::from_millis(1500);
/// A busy machine takes longer: more steps than these are made all the same.
const STEPS_MIN: u64 = 5_000;
/// Where the rings lie of a driver that knows what it does, mostly.
const RINGS: u64 = 0x1_0000;
const RING_STEP: u64 = 0x1_0000;

/// Numbers that are more often at an edge than others.
fn odd_number(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => u64::MAX - random.below(70_000),
        2 => MEMORY_BYTES - random.below(70_000),
        3 => MEMORY_BYTES + random.below(70_000),
        4 => random.next(),
        5 => u64::from(u32::MAX) - random.below(3) + 1,
        _ => random.below(MEMORY_BYTES),
    }
}

/// What makes equal devices: with this memory, and plugged in or not.
type Maker = Box<dyn Fn(Memory, bool) -> (Arc<dyn Device>, Arc<Hub>)>;

/// A device and the rings of its queues.
struct Torment {
    make: Maker,
    device: Arc<dyn Device>,
    hub: Arc<Hub>,
    rings: Vec<Ring>,
    epoch: u64,
    queues: u32,
    /// How many states were loaded elsewhere, and how often it went on there.
    loaded: u64,
    moved: u64,
}

impl Torment {
    fn new(make: Maker, queues: u32) -> Self {
        let (device, hub) = make(bench::memory(), true);
        let mut torment = Self {
            make,
            device,
            hub,
            rings: Vec::new(),
            epoch: 0,
            queues,
            loaded: 0,
            moved: 0,
        };
        torment.begin_well(0);
        torment
    }

    /// Whatever the driver did: what is saved loads elsewhere and is the same there.
    /// Now and then it goes on there.
    fn move_on(&mut self, goes_on: bool) {
        let (state, memory) = {
            let _freeze = self.hub.freeze();
            (self.device.save(), bench::copy(&self.hub.memory))
        };
        assert!(state.bytes.len() <= DEVICE_STATE_BYTES_MAX);
        if goes_on {
            self.device.abandon();
            // A card's cable must be free for the next one.
            (self.device, self.hub) = (self.make)(bench::memory(), false);
        }
        let (device, hub) = (self.make)(memory, goes_on);
        device.load(&state).expect("what is saved loads");
        assert!(device.save() == state, "what was loaded is what was saved");
        self.loaded += 1;
        if goes_on {
            self.rings
                .iter_mut()
                .for_each(|ring| ring.memory = hub.memory.clone());
            (self.device, self.hub) = (device, hub);
            self.device.release_all();
            self.device.wake();
            self.moved += 1;
        }
    }

    /// As a good driver begins.
    fn begin_well(&mut self, refused: u64) {
        // A reset waits for acks, which come from this thread.
        self.device.release(u64::MAX);
        let features = agree(&*self.device, refused);
        let memory = &self.hub.memory;
        self.rings = (0..self.queues)
            .map(|queue| {
                let base = RINGS + RING_STEP * u64::from(queue);
                Ring::new(&*self.device, memory, queue, base, 32, features)
            })
            .collect();
        go(&*self.device);
    }

    fn step(&mut self, random: &mut Random) {
        if needs_reset(&*self.device) && random.percent(30) {
            self.begin_well(random.next() & (3 << 28));
        }
        let ring = random.below(u64::from(self.queues)) as usize;
        match random.below(40) {
            0..8 => self.random_register(random),
            8..12 => self.random_ring_bytes(ring, random),
            12..26 => self.random_request(ring, random),
            26..30 => self.rings[ring].kick_always(&*self.device),
            30..32 => {
                self.epoch += 1;
                self.device.capture(self.epoch);
            }
            32..34 => self.device.release(self.epoch),
            34 => self.device.uncapture(self.epoch),
            35 => self.hub.hold_output(random.percent(70)),
            36 => self.device.wake(),
            37 if random.percent(10) => self.move_on(random.percent(30)),
            38 => self.read_anything(random),
            _ if random.percent(5) => self.begin_well(random.next() & (3 << 28)),
            _ => {}
        }
    }

    fn random_register(&mut self, random: &mut Random) {
        let offset = random.below(0x50) * 4;
        let value = match random.below(3) {
            0 => random.below(4) as u32,
            _ => odd_number(random) as u32,
        };
        let resets = value == 0 && (offset == regs::STATUS || offset == regs::QUEUE_READY);
        // These are for another step, or most of the time the device would not be ready.
        if resets && random.percent(90) {
            return;
        }
        if resets {
            self.device.release(u64::MAX);
        }
        write_register(&*self.device, offset, value);
        // Odd sizes and offsets.
        if random.percent(5) {
            let bytes = vec![0xa5; random.below(9) as usize];
            self.device.write(random.below(0x1000), &bytes);
        }
    }

    fn read_anything(&self, random: &mut Random) {
        read_register(&*self.device, random.below(0x60) * 4);
        let mut bytes = vec![0; random.below(70) as usize];
        self.device.read(random.below(0x1000), &mut bytes);
    }

    fn random_ring_bytes(&self, ring: usize, random: &mut Random) {
        let at = self.rings[ring].base + random.below(Ring::BYTES - 8);
        let value = odd_number(random);
        self.hub
            .memory
            .write_obj(value, GuestAddress(at))
            .expect("inside the memory");
    }

    /// A request whose shape is often right: buffers of this or that length, here and there.
    fn random_request(&mut self, ring: usize, random: &mut Random) {
        let ring = &mut self.rings[ring];
        let slot = random.below(u64::from(ring.slots())) as u16;
        let mut buffers = Vec::new();
        let mut writable = false;
        for number in 0..1 + random.below(4) {
            let at = match random.percent(90) {
                true => 0x10_0000 + random.below(0x8_0000),
                false => odd_number(random),
            };
            let length = match random.below(10) {
                0 => odd_number(random) as u32,
                1 => random.below(70_000) as u32,
                2 => 1,
                3 => 16,
                4 => 4096,
                _ => *random.pick(&[0, 2, 12, 60, 512, 513]),
            };
            if number == 0 && random.percent(80) {
                let header = [random.below(16), random.below(600)]
                    .map(u64::to_le_bytes)
                    .concat();
                let _ = self.hub.memory.write_slice(&header, GuestAddress(at));
                buffers.push((at, 16, false));
                continue;
            }
            writable |= random.percent(40);
            buffers.push((at, length, writable ^ random.percent(2)));
        }
        let head = ring.request(slot, &buffers);
        ring.offer(head);
        if random.percent(60) {
            ring.kick(&*self.device);
        }
        // The driver looks at what comes back, so that event indexes move.
        while ring.used().is_some() {}
    }
}

fn torment<B: Backend>(make: impl Fn(Memory, bool) -> Bench<B> + 'static, queues: u32, seed: u64) {
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let make = move |memory, is_plugged_in| {
        let bench = make(memory, is_plugged_in);
        (bench.device as Arc<dyn Device>, bench.hub)
    };
    let mut torment = Torment::new(Box::new(make), queues);
    let (begin, mut steps, mut broken) = (Instant::now(), 0u64, 0u64);
    // Until states were loaded and gone on with, too: else the watchdog ends it.
    while begin.elapsed() < TIME || steps <= STEPS_MIN || torment.loaded <= 5 || torment.moved == 0 {
        for _ in 0..100 {
            torment.step(&mut random);
            steps += 1;
        }
        broken += u64::from(needs_reset(&*torment.device));
    }
    torment.hub.hold_output(false);
    torment.device.release_all();
    torment.begin_well(0);
    assert!(!needs_reset(&*torment.device), "a reset mends everything");
    let Torment { loaded, moved, .. } = torment;
    eprintln!(
        "{steps} steps, broken at {broken} of {} looks; {loaded} states loaded, {moved} gone on with",
        steps / 100
    );
}

#[test]
fn a_disk_stands_anything() {
    let _watchdog = Watchdog::new("a tormented disk", 60);
    let image = bench::image();
    let make = move |memory, _| bench::block_bench_with(&image, memory);
    torment(make, 1, 71);
}

/// Whatever carries the I/O out, and whatever becomes of errors.
#[test]
fn a_disk_with_many_queues_stands_anything() {
    let _watchdog = Watchdog::new("a tormented disk with many queues", 120);
    let ways = [
        (Io::Uring, Cache::Direct, 512),
        (Io::Threads, Cache::Writeback, 4096),
    ];
    for (io, cache, block_bytes) in ways {
        let image = bench::image();
        let spec = BlockSpec {
            queues: 4,
            block_bytes,
            ..BlockSpec::new("many", false)
        };
        let make = move |memory, _| {
            let config = DiskConfig {
                io,
                cache,
                ignore_lock: true,
                ..DiskConfig::new(image.path())
            };
            let disk = Disk::open(&config).expect("the image opens");
            let bench = Bench::with_memory(Block::new(spec.clone()), memory);
            let attached = bench.device.with_backend(|block| block.attach(disk));
            attached.expect("the image has blocks");
            bench
        };
        torment(make, 4, 75);
    }
}

#[test]
fn a_disk_without_an_image_stands_anything() {
    let _watchdog = Watchdog::new("a tormented disk without an image", 60);
    let make = |memory, _| Bench::with_memory(Block::new(BlockSpec::new("none", true)), memory);
    torment(make, 1, 72);
}

#[test]
fn a_card_stands_anything() {
    let _watchdog = Watchdog::new("a tormented card", 60);
    network::enter();
    let make = |memory, is_plugged_in| {
        let bench = Bench::with_memory(Net::new([2; 6], true), memory);
        if is_plugged_in {
            // Another card's thread may have the TAP for a moment still.
            let tap =
                std::iter::repeat_with(|| TapDevice::open(TAP).inspect_err(|_| std::thread::yield_now()))
                    .find_map(Result::ok)
                    .expect("it tries for ever");
            let attached = bench.device.with_backend(|net| net.attach(tap));
            attached.expect("it is watched");
        }
        bench
    };
    // Packets come in meanwhile, once there is a card.
    let socket = std::net::UdpSocket::bind("10.77.0.1:0").expect("the TAP's address");
    socket.set_broadcast(true).expect("an option of every socket");
    let end = Instant::now() + TIME;
    let packets = std::thread::spawn(move || {
        while Instant::now() < end {
            let _ = socket.send_to(&[7; 900], "10.77.0.255:9");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    torment(make, 3, 73);
    packets.join().expect("the packets are sent");
}

#[test]
fn an_entropy_device_stands_anything() {
    let _watchdog = Watchdog::new("a tormented entropy device", 60);
    torment(|memory, _| Bench::with_memory(Rng, memory), 1, 74);
}
