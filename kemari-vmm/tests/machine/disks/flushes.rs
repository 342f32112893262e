//! Flushes that fail: nothing that they were for is taken for durable.

use std::sync::{Arc, Mutex};
use std::thread;

use kemari_vmm::devices::Device;
use kemari_vmm::disk::{Cache, Disk, DiskConfig, Io, OnError, Server, Trouble};
use kemari_vmm::virtio::block::{Block, BlockSpec};

use super::{open_with, run};
use crate::support::asker::{Asker, FLUSH, IOERR, OK, WRITE};
use crate::support::bench::{Bench, SECTOR_BYTES};
use crate::support::random::Random;
use crate::support::stores::{Forgetful, Gated};
use crate::support::watchdog::Watchdog;

/// More than is kept to be written again.
const MUCH_BYTES: usize = 17 << 20;
/// What a thin volume says it has, more than the 4 MiB that there is room for.
const THIN_BYTES: usize = 8 << 20;
/// Bytes of one write.
const WRITE_BYTES: usize = 4096;

struct Scene {
    store: Arc<Forgetful>,
    disk: Asker,
    troubles: Arc<Mutex<Vec<Trouble>>>,
}

impl Scene {
    fn new(on_error: OnError) -> Self {
        let store = Forgetful::new(MUCH_BYTES + (1 << 20), true);
        let image = Disk::with_store(store.clone(), on_error).expect("it has a size");
        let troubles = Arc::<Mutex<Vec<Trouble>>>::default();
        let noted = troubles.clone();
        let bench = Bench::new(Block::new(BlockSpec::new("flushed", false)));
        let disk = Asker::on(bench, 1, 0, |block| {
            block.set_trouble_sink(Arc::new(move |trouble| noted.lock().unwrap().push(trouble)));
            block.attach(image)
        });
        Self {
            store,
            disk,
            troubles,
        }
    }

    fn server(&self) -> Arc<Server> {
        self.disk
            .bench
            .device
            .with_backend(|block| block.server().expect("it is attached").clone())
    }

    /// What is on the disk itself, of the first byte of a sector.
    fn on_disk(&self, sector: u64) -> u8 {
        self.store.after_power_loss(&mut Random::new(1))[sector as usize * SECTOR_BYTES]
    }

    fn await_troubles(&self, count: usize) -> Trouble {
        loop {
            let troubles = self.troubles.lock().unwrap();
            if troubles.len() >= count {
                return troubles[count - 1].clone();
            }
            drop(troubles);
            thread::yield_now();
        }
    }

    fn write_much(&mut self) {
        for number in 0..MUCH_BYTES / WRITE_BYTES {
            let sector = (number * WRITE_BYTES / SECTOR_BYTES) as u64;
            assert_eq!(self.disk.do_one(WRITE, sector, &[7; WRITE_BYTES]), OK);
        }
    }
}

#[test]
fn the_flush_after_a_failed_one_writes_again_what_was_lost() {
    let _watchdog = Watchdog::new("a flush after a failed one", 60);
    let mut scene = Scene::new(OnError::Report);
    assert_eq!(scene.disk.do_one(WRITE, 4, &[1; 512]), OK);
    scene.store.fail_flushes(2);
    assert_eq!(scene.disk.do_one(FLUSH, 0, &[]), IOERR);
    // Newer than what is to be written again, and over it.
    assert_eq!(scene.disk.do_one(WRITE, 4, &[2; 512]), OK);
    assert_eq!(
        scene.disk.do_one(FLUSH, 0, &[]),
        IOERR,
        "the second one fails too"
    );
    assert_eq!(scene.on_disk(4), 0);
    assert_eq!(scene.disk.do_one(FLUSH, 0, &[]), OK);
    assert_eq!(scene.on_disk(4), 2);
}

#[test]
fn a_flush_that_waits_for_the_operator_writes_again_too() {
    let _watchdog = Watchdog::new("a flush that is tried again", 60);
    let mut scene = Scene::new(OnError::Pause);
    assert_eq!(scene.disk.do_one(WRITE, 4, &[1; 512]), OK);
    scene.store.fail_flushes(1);
    scene.disk.ask((0, 0), FLUSH, 0, &[]);
    scene.disk.kick(0);
    assert!(!scene.await_troubles(1).fail_over);
    assert_eq!(scene.disk.finished(0), None);
    assert_eq!(scene.server().retry(), 1);
    assert_eq!(scene.disk.wait(0), ((0, 0), OK));
    assert_eq!(scene.on_disk(4), 1);
}

/// A drain takes the error of the file away: the guest's next flush must know of it.
#[test]
fn a_flush_that_fails_in_a_drain_counts_as_any_other() {
    let _watchdog = Watchdog::new("a drain whose flush fails", 60);
    let mut scene = Scene::new(OnError::Report);
    let device = scene.disk.bench.device.clone();
    assert_eq!(scene.disk.do_one(WRITE, 4, &[1; 512]), OK);
    scene.store.fail_flushes(1);
    device.drain();
    assert!(device.with_backend(|block| block.may_lack()));
    assert_eq!(scene.disk.do_one(FLUSH, 0, &[]), OK);
    assert_eq!(scene.on_disk(4), 1);
    assert_eq!(scene.disk.do_one(WRITE, 5, &[1; 512]), OK);
    scene.store.fail_flushes(1);
    device.drain();
    device.drain();
    assert!(!device.with_backend(|block| block.may_lack()));
    assert_eq!(scene.on_disk(5), 1);
}

/// Nobody has it any more: the guest is told, for ever, and another host goes on if one can.
#[test]
fn what_is_not_kept_is_never_taken_for_durable() {
    let _watchdog = Watchdog::new("more than is kept", 240);
    let mut scene = Scene::new(OnError::Report);
    scene.write_much();
    scene.store.fail_flushes(1);
    for _ in 0..3 {
        assert_eq!(scene.disk.do_one(FLUSH, 0, &[]), IOERR);
    }
    let mut scene = Scene::new(OnError::Pause);
    scene.write_much();
    scene.store.fail_flushes(1);
    scene.disk.ask((0, 0), FLUSH, 0, &[]);
    scene.disk.kick(0);
    assert!(scene.await_troubles(1).fail_over);
    assert_eq!(scene.disk.finished(0), None);
    assert_eq!(scene.server().retry(), 1);
    assert_eq!(scene.disk.wait(0), ((0, 0), IOERR), "there is nobody to go on");
    // A good flush of so much forgets it.
    let mut scene = Scene::new(OnError::Report);
    scene.write_much();
    assert_eq!(scene.disk.do_one(FLUSH, 0, &[]), OK);
    assert_eq!(scene.disk.do_one(WRITE, 4, &[1; 512]), OK);
    scene.store.fail_flushes(1);
    assert_eq!(scene.disk.do_one(FLUSH, 0, &[]), IOERR);
    assert_eq!(scene.disk.do_one(FLUSH, 0, &[]), OK);
    assert_eq!(scene.on_disk(4), 1);
}

/// A block device without room for all that it says it has, as a thin volume:
/// a file in a file system that is too small.
struct Thin {
    directory: tempfile::TempDir,
    device: String,
}

impl Thin {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_str().expect("a name");
        run("mount", &["-t", "tmpfs", "-o", "size=4m", "tmpfs", path]);
        let file = format!("{path}/thin");
        std::fs::File::create_new(&file)
            .and_then(|file| file.set_len(THIN_BYTES as u64))
            .expect("a sparse file");
        let device = run("losetup", &["--find", "--show", &file]).trim().to_owned();
        Self { directory, device }
    }

    fn make_room(&self) {
        let path = self.directory.path().to_str().expect("a name");
        run("mount", &["-o", "remount,size=64m", path]);
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.device]);
        run("umount", &["-l", self.directory.path().to_str().expect("a name")]);
    }
}

/// The real kernel: it tells the error once, marks the pages clean, and lets the next flush succeed.
#[test]
fn what_a_full_thin_volume_has_lost_is_there_once_it_has_room() {
    let _watchdog = Watchdog::new("a full thin volume", 120);
    for io in [Io::Uring, Io::Threads] {
        let thin = Thin::new();
        let config = DiskConfig {
            io,
            ..DiskConfig::new(&thin.device)
        };
        let mut disk = Asker::new(BlockSpec::new("thin", false), open_with(&config));
        for number in 0..THIN_BYTES / WRITE_BYTES {
            let sector = (number * WRITE_BYTES / SECTOR_BYTES) as u64;
            assert_eq!(disk.do_one(WRITE, sector, &[number as u8 | 1; WRITE_BYTES]), OK);
        }
        assert_eq!(disk.do_one(FLUSH, 0, &[]), IOERR, "there is no room for it");
        thin.make_room();
        assert_eq!(disk.do_one(FLUSH, 0, &[]), OK);
        drop(disk);
        let direct = DiskConfig {
            cache: Cache::Direct,
            ..DiskConfig::new(&thin.device)
        };
        let mut disk = Asker::new(BlockSpec::new("thin", false), open_with(&direct));
        for number in 0..THIN_BYTES / WRITE_BYTES {
            let sector = (number * WRITE_BYTES / SECTOR_BYTES) as u64;
            let found = disk.read(sector, WRITE_BYTES / SECTOR_BYTES);
            assert!(
                found == [number as u8 | 1; WRITE_BYTES],
                "{io:?}: block {number} is lost"
            );
        }
        drop(disk);
        // The device is free once nobody has it.
        drop(open_with(&direct));
    }
}

/// The kernel tells the error of a write-back to one of those who flush at the same time.
#[test]
fn flushes_of_one_image_go_one_at_a_time_each_for_all_who_wait() {
    let _watchdog = Watchdog::new("flushes at the same time", 60);
    let store = Gated::new(1 << 16);
    let image = Disk::with_store(store.clone(), OnError::Report).expect("it has a size");
    let mut disk = Asker::new(BlockSpec::new("flushed", false), image);
    store.set_flushes_closed(true);
    for slot in 0..4 {
        disk.ask((0, slot), FLUSH, 0, &[]);
        disk.kick(0);
    }
    let flushes = || store.begun().iter().filter(|what| *what == "flush").count();
    while flushes() < 1 {
        thread::yield_now();
    }
    // A request that has come after them all is finished meanwhile.
    disk.ask((0, 4), WRITE, 4, &[1; 512]);
    disk.kick(0);
    assert_eq!(disk.wait(0), ((0, 4), OK));
    assert_eq!(flushes(), 1);
    store.set_flushes_closed(false);
    for _ in 0..4 {
        assert_eq!(disk.wait(0).1, OK);
    }
    assert_eq!(flushes(), 2);
}
