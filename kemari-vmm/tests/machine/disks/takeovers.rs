//! Hosts that die at any moment of a disk's life: who goes on finds the disk as the guest's requests, in
//! their order, made it.

use kemari_vmm::devices::Device;
use kemari_vmm::disk::{Cache, DiskConfig, Io};
use kemari_vmm::memory::Memory;
use kemari_vmm::state::StateBlob;
use kemari_vmm::virtio::block::{Block, BlockSpec};
use vm_memory::{Bytes, GuestAddress};

use super::open_with;
use crate::support::asker::{
    Asker, DATA_BYTES_MAX, DISCARD, FLUSH, OK, Place, QUEUE_SLOTS, READ, WRITE, ZEROES,
};
use crate::support::bench::{self, Bench, MEMORY_BYTES, SECTOR_BYTES, SECTORS};
use crate::support::random::Random;
use crate::support::watchdog::Watchdog;

const QUEUES: u16 = 4;
/// Few, so that requests overlap.
const USED_SECTORS: u64 = 48;

#[derive(Clone, Debug)]
enum Asked {
    /// What it may find in each sector.
    Read(Vec<Vec<u32>>),
    Write(u32),
    Zero,
    Flush,
}

#[derive(Clone, Debug)]
struct Pending {
    /// Its number in the order of the list.
    number: u64,
    place: Place,
    first: usize,
    sectors: usize,
    asked: Asked,
    released: bool,
}

impl Pending {
    /// What it makes of its sectors, if it changes them.
    fn version(&self) -> Option<u32> {
        match self.asked {
            Asked::Write(version) => Some(version),
            Asked::Zero => Some(0),
            Asked::Read(_) | Asked::Flush => None,
        }
    }
}

/// What a driver knows: what it asked for, in order, and what was released of it.
#[derive(Clone)]
struct Model {
    /// In the order of the device's list.
    pending: Vec<Pending>,
    /// The disk after all that was released.
    /// Of each sector the version, and the number of the request that wrote it.
    sectors: Vec<(u64, u32)>,
    /// The disk after all that was finished.
    settled: Vec<(u64, u32)>,
    finished: usize,
    overtaken: usize,
}

fn content(version: u32) -> Vec<u8> {
    version.to_le_bytes().repeat(SECTOR_BYTES / 4)
}

impl Model {
    fn free(&self, random: &mut Random) -> Option<Place> {
        let place = (
            random.below(QUEUES.into()) as usize,
            random.below(QUEUE_SLOTS.into()) as u16,
        );
        (!self.pending.iter().any(|pending| pending.place == place)).then_some(place)
    }

    /// All that waits is released, in order.
    fn release(&mut self, until: usize) {
        for pending in self.pending[..until]
            .iter_mut()
            .filter(|pending| !pending.released)
        {
            pending.released = true;
            let Some(version) = pending.version() else {
                continue;
            };
            // What was finished last may have been seen first, in another queue.
            for sector in &mut self.sectors[pending.first..][..pending.sectors] {
                *sector = (*sector).max((pending.number, version));
            }
        }
    }

    /// A request is finished.
    fn settle(&mut self, pending: &Pending) {
        let Some(version) = pending.version() else { return };
        for settled in &mut self.settled[pending.first..][..pending.sectors] {
            *settled = (*settled).max((pending.number, version));
        }
    }

    /// A takeover carries the whole list out again, in order: also reads. What comes later on the list may be
    /// on the disk already, from the host that died.
    fn reissue(&mut self) {
        self.sectors.clone_from(&self.settled);
        self.pending
            .iter_mut()
            .for_each(|pending| pending.released = false);
        for index in 0..self.pending.len() {
            self.release(index + 1);
            let Pending { first, sectors, .. } = self.pending[index];
            // It may have ended, with what it had to find then, without having been seen.
            let Asked::Read(mut allowed) = self.pending[index].asked.clone() else {
                continue;
            };
            for (versions, (_, version)) in allowed.iter_mut().zip(&self.sectors[first..][..sectors]) {
                versions.push(*version);
            }
            for later in &self.pending[index + 1..] {
                let Some(version) = later.version() else { continue };
                for sector in later.first.max(first)..(later.first + later.sectors).min(first + sectors) {
                    allowed[sector - first].push(version);
                }
            }
            self.pending[index].asked = Asked::Read(allowed);
        }
    }
}

/// A captured moment.
struct Captured {
    state: StateBlob,
    memory: Memory,
    rings: Vec<crate::support::driver::Ring>,
    model: Model,
}

struct World {
    disk: Asker,
    model: Model,
    config: DiskConfig,
    version: u32,
    number: u64,
    epoch: u64,
    committed: Captured,
}

fn spec() -> BlockSpec {
    BlockSpec {
        queues: QUEUES,
        ..BlockSpec::new("taken over", false)
    }
}

fn copy(from: &Memory) -> Memory {
    let to = bench::memory();
    let mut bytes = vec![0; MEMORY_BYTES as usize];
    from.read_slice(&mut bytes, GuestAddress(0)).expect("all of it");
    to.write_slice(&bytes, GuestAddress(0)).expect("all of it");
    to
}

impl World {
    fn new(config: DiskConfig) -> Self {
        let disk = Asker::new(spec(), open_with(&config));
        disk.bench.hub.hold_output(true);
        let model = Model {
            pending: Vec::new(),
            sectors: vec![(0, 0); USED_SECTORS as usize],
            settled: vec![(0, 0); USED_SECTORS as usize],
            finished: 0,
            overtaken: 0,
        };
        let committed = capture(&disk, &model, 0);
        Self {
            disk,
            model,
            config,
            version: 0,
            number: 0,
            epoch: 0,
            committed,
        }
    }

    fn ask(&mut self, random: &mut Random) {
        let Some(place) = self.model.free(random) else {
            return;
        };
        let sectors = 1 + random.below(DATA_BYTES_MAX as u64 / SECTOR_BYTES as u64) as usize;
        let first = random.below(USED_SECTORS - sectors as u64 + 1) as usize;
        let held = self.disk.bench.hub.output_is_held();
        let asked = match random.below(20) {
            0..9 => {
                self.version += 1;
                let data = content(self.version).repeat(sectors);
                self.disk.ask(place, WRITE, first as u64, &data);
                Asked::Write(self.version)
            }
            9..11 => {
                let kind = *random.pick(&[DISCARD, ZEROES]);
                self.disk.ask_zero(place, kind, first as u64, sectors as u32, 0);
                Asked::Zero
            }
            11 => {
                self.disk.ask(place, FLUSH, 0, &[]);
                Asked::Flush
            }
            _ => {
                self.disk
                    .ask(place, READ, first as u64, &vec![0xee; sectors * SECTOR_BYTES]);
                let known = &self.model.sectors[first..][..sectors];
                Asked::Read(known.iter().map(|(_, version)| vec![*version]).collect())
            }
        };
        self.disk.kick(place.0);
        let is_output = !matches!(asked, Asked::Read(_));
        // A flush waits only behind output that does.
        let is_free = match asked {
            Asked::Read(_) => true,
            Asked::Flush => self.model.pending.iter().all(|pending| pending.released),
            _ => false,
        };
        self.number += 1;
        self.model.pending.push(Pending {
            number: self.number,
            place,
            first,
            sectors,
            asked,
            released: is_free,
        });
        if is_output && !held {
            self.model.release(self.model.pending.len());
        }
    }

    fn take_finished(&mut self) {
        for queue in 0..usize::from(QUEUES) {
            while let Some(place) = self.disk.finished(queue) {
                assert_eq!(self.disk.status(place), OK);
                let index = self
                    .model
                    .pending
                    .iter()
                    .position(|pending| pending.place == place);
                let index = index.expect("nothing is finished that is not pending, and nothing twice");
                self.model.overtaken += usize::from(index > 0);
                let pending = self.model.pending.remove(index);
                assert!(pending.released, "{pending:?} was not released");
                if let Asked::Read(allowed) = &pending.asked {
                    let data = self.disk.data(place, allowed.len() * SECTOR_BYTES);
                    for (found, versions) in data.chunks(SECTOR_BYTES).zip(allowed) {
                        let is_one = versions.iter().any(|version| content(*version) == found);
                        assert!(is_one, "{pending:?} found {:?}", &found[..4]);
                    }
                }
                self.model.settle(&pending);
                self.model.finished += 1;
            }
        }
    }

    /// A sync: it fails, or is committed and its output released, now or never (the host dies before).
    fn sync(&mut self, random: &mut Random) {
        self.epoch += 1;
        let captured = capture(&self.disk, &self.model, self.epoch);
        if random.percent(10) {
            return self.disk.bench.device.uncapture(self.epoch);
        }
        let until = captured.model.pending.len();
        self.committed = captured;
        if random.percent(90) {
            self.disk.bench.device.release(self.epoch);
            self.model.release(until);
        }
    }

    /// The host dies; another one goes on from the last commit.
    fn take_over(&mut self, random: &mut Random) {
        let committed = &self.committed;
        let bench = Bench::with_memory(Block::new(spec()), copy(&committed.memory));
        bench.device.load(&committed.state).expect("an equal disk");
        let mut rings = committed.rings.clone();
        rings
            .iter_mut()
            .for_each(|ring| ring.memory = bench.memory().clone());
        self.model = committed.model.clone();
        let old = std::mem::replace(&mut self.disk, Asker { bench, rings });
        old.bench.device.abandon();
        drop(old);
        // The lock goes when the last I/O of the old host has ended: that is its fence.
        let image = open_with(&self.config);
        let device = self.disk.bench.device.clone();
        device
            .with_backend(|block| block.attach(image))
            .expect("it has room");
        self.model.reissue();
        self.disk.bench.hub.hold_output(false);
        device.release_all();
        device.wake();
        if random.percent(30) {
            // It runs alone for a while.
            for _ in 0..random.below(20) {
                self.ask(random);
                self.take_finished();
            }
        }
        self.disk.bench.hub.hold_output(true);
        self.committed = capture(&self.disk, &self.model, self.epoch);
    }

    /// Everything is finished; the disk is as the requests made it.
    fn end(mut self) {
        self.disk.bench.hub.hold_output(false);
        self.disk.bench.device.release_all();
        self.model.release(self.model.pending.len());
        while !self.model.pending.is_empty() {
            self.take_finished();
        }
        for sector in 0..USED_SECTORS {
            let found = self.disk.read(sector, 1);
            assert!(
                found == content(self.model.sectors[sector as usize].1),
                "sector {sector}"
            );
        }
    }
}

fn capture(disk: &Asker, model: &Model, epoch: u64) -> Captured {
    let _freeze = disk.bench.hub.freeze();
    disk.bench.device.capture(epoch);
    Captured {
        state: disk.bench.device.save(),
        memory: copy(disk.memory()),
        rings: disk.rings.clone(),
        model: model.clone(),
    }
}

/// Hosts die `takeovers` times.
fn hosts_die(config: DiskConfig, seed: u64, takeovers: usize) {
    let mut random = Random::new(seed);
    let mut world = World::new(config);
    let (mut done, mut finished, mut overtaken) = (0, 0, 0);
    while done < takeovers {
        for _ in 0..random.below(12) {
            world.ask(&mut random);
        }
        world.take_finished();
        if random.percent(40) {
            world.sync(&mut random);
        }
        if random.percent(8) {
            finished += world.model.finished;
            overtaken += world.model.overtaken;
            world.take_over(&mut random);
            (world.model.finished, world.model.overtaken) = (0, 0);
            done += 1;
        }
    }
    world.end();
    eprintln!("{finished} requests over {takeovers} takeovers, {overtaken} overtook others");
    assert!(finished > takeovers * 10 && overtaken > takeovers);
}

fn raw(io: Io, cache: Cache, seed: u64) {
    let _watchdog = Watchdog::new("hosts that die with a disk", 100);
    let image = bench::image();
    const { assert!(USED_SECTORS <= SECTORS) };
    let config = DiskConfig {
        io,
        cache,
        ..DiskConfig::new(image.path())
    };
    hosts_die(config, seed, 120);
}

#[test]
fn hosts_die_with_io_uring() {
    raw(Io::Uring, Cache::Writeback, 61);
}

#[test]
fn hosts_die_with_io_uring_past_the_page_cache() {
    raw(Io::Uring, Cache::Direct, 62);
}

#[test]
fn hosts_die_with_threads() {
    raw(Io::Threads, Cache::Writeback, 63);
}

#[test]
fn hosts_die_with_threads_past_the_page_cache() {
    raw(Io::Threads, Cache::Direct, 64);
}
