//! Disks that fail: the guest is told, or the request waits for the operator.

use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use kemari_vmm::devices::Device;
use kemari_vmm::disk::{Disk, DiskConfig, DiskError, OnError, Trouble};
use kemari_vmm::virtio::block::{Block, BlockSpec};

use super::{WAYS, open, open_with};
use crate::support::asker::{Asker, FLUSH, IOERR, OK, READ, WRITE};
use crate::support::bench::{self, Bench, SECTORS};
use crate::support::driver::{regs, write_register};
use crate::support::stores::Gated;
use crate::support::watchdog::Watchdog;

const A_WHILE: Duration = Duration::from_millis(20);

struct Failing {
    store: Arc<Gated>,
    disk: Asker,
    troubles: Arc<Mutex<Vec<Trouble>>>,
}

impl Failing {
    /// Waits until there was so much trouble.
    fn await_troubles(troubles: &Mutex<Vec<Trouble>>, count: usize) {
        let begin = std::time::Instant::now();
        while troubles.lock().unwrap().len() < count && begin.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(A_WHILE);
    }
}

fn failing(on_error: OnError) -> Failing {
    let store = Gated::new(1 << 16);
    let troubles = Arc::<Mutex<Vec<Trouble>>>::default();
    let image = Disk::with_store(store.clone(), on_error).expect("it has a size");
    let bench = Bench::new(Block::new(BlockSpec::new("failing", false)));
    let noted = troubles.clone();
    let sink = Arc::new(move |trouble| noted.lock().unwrap().push(trouble));
    let disk = Asker::on(bench, 1, 0, |block| {
        block.set_trouble_sink(sink);
        block.attach(image)
    });
    Failing {
        store,
        disk,
        troubles,
    }
}

#[test]
fn the_guest_is_told_of_errors_and_the_disk_lives() {
    let _watchdog = Watchdog::new("errors of a disk", 60);
    let mut failing = failing(OnError::Report);
    let disk = &mut failing.disk;
    failing.store.fail(4, Some(libc::EIO));
    assert_eq!(disk.do_one(WRITE, 4, &[1; 512]), IOERR);
    assert_eq!(disk.do_one(READ, 4, &[1; 512]), IOERR);
    assert_eq!(disk.do_one(WRITE, 5, &[1; 512]), OK);
    failing.store.fail(4, None);
    assert_eq!(disk.do_one(WRITE, 4, &[2; 512]), OK);
    assert!(failing.troubles.lock().unwrap().is_empty());
}

#[test]
fn what_failed_waits_for_the_operator_and_keeps_its_place() {
    let _watchdog = Watchdog::new("a paused disk", 60);
    for on_error in [OnError::Pause, OnError::Failover] {
        let mut failing = failing(on_error);
        let (store, disk) = (&failing.store, &mut failing.disk);
        let device = disk.bench.device.clone();
        store.fail(4, Some(libc::ENOSPC));
        disk.ask((0, 0), WRITE, 4, &[1; 512]);
        disk.ask((0, 1), WRITE, 4, &[2; 512]);
        disk.ask((0, 2), READ, 9, &[0xee; 512]);
        disk.kick(0);
        assert_eq!(disk.wait(0), ((0, 2), OK), "other requests are carried out");
        Failing::await_troubles(&failing.troubles, 1);
        assert_eq!(disk.finished(0), None);
        assert_eq!(
            device.oldest_unfinished(),
            None,
            "it waits for the operator, not for the disk"
        );
        {
            let troubles = failing.troubles.lock().unwrap();
            assert_eq!(troubles.len(), 1);
            assert!(
                troubles[0].reason.contains("No space left"),
                "{}",
                troubles[0].reason
            );
            assert_eq!(troubles[0].fail_over, on_error == OnError::Failover);
        }
        // It is on the list: another host would carry it out.
        let state = device.save();
        let other = Bench::new(Block::new(BlockSpec::new("failing", false)));
        other.device.load(&state).expect("an equal disk");
        let image = bench::image();
        let config = DiskConfig::new(image.path());
        other
            .device
            .with_backend(|block| block.attach(open_with(&config)))
            .expect("it has room");

        let retry = || {
            device
                .with_backend(|block| block.server().expect("it is attached").clone())
                .retry()
        };
        assert_eq!(retry(), 1);
        Failing::await_troubles(&failing.troubles, 2);
        assert_eq!(
            (disk.finished(0), failing.troubles.lock().unwrap().len()),
            (None, 2)
        );
        store.fail(4, None);
        assert_eq!(retry(), 1);
        assert_eq!(disk.wait(0), ((0, 0), OK));
        assert_eq!(disk.wait(0), ((0, 1), OK));
        assert_eq!(store.sector(4), 2, "the second write waited for the first one");
        assert_eq!(retry(), 0);
    }
}

/// Whoever keeps a record of the image must not take it for whole then.
#[test]
fn a_drained_disk_that_could_not_be_flushed_says_so() {
    let _watchdog = Watchdog::new("the last flush of a disk", 60);
    let mut failing = failing(OnError::Report);
    let device = failing.disk.bench.device.clone();
    assert_eq!(failing.disk.do_one(WRITE, 4, &[1; 512]), OK);
    for fails in [true, false] {
        failing.store.fail_flushes(fails);
        device.drain();
        assert_eq!(device.with_backend(|block| block.may_lack()), fails);
    }
}

/// Nobody will try it again when the guest itself has given the device up.
#[test]
fn a_reset_does_not_wait_for_the_operator() {
    let _watchdog = Watchdog::new("a reset of a paused disk", 60);
    let mut failing = failing(OnError::Pause);
    let disk = &mut failing.disk;
    failing.store.fail(4, Some(libc::EIO));
    disk.ask((0, 0), WRITE, 4, &[1; 512]);
    disk.kick(0);
    Failing::await_troubles(&failing.troubles, 1);
    assert_eq!(disk.finished(0), None);
    write_register(&*disk.bench.device, regs::STATUS, 0);
    // After the reset errors wait again.
    let count = failing.troubles.lock().unwrap().len();
    let mut again = Asker::on(
        Bench {
            hub: disk.bench.hub.clone(),
            device: disk.bench.device.clone(),
        },
        1,
        0,
        |_| Ok(()),
    );
    again.ask((0, 0), WRITE, 4, &[1; 512]);
    again.kick(0);
    Failing::await_troubles(&failing.troubles, count + 1);
    assert_eq!(
        (again.finished(0), failing.troubles.lock().unwrap().len()),
        (None, count + 1)
    );
    failing
        .disk
        .bench
        .device
        .with_backend(|block| block.server().expect("it is attached").set_always_reports(true));
    assert_eq!(again.wait(0), ((0, 0), IOERR), "as when the machine is stopped");
}

#[test]
fn a_file_that_becomes_short_or_vanishes_fails_what_is_gone() {
    let _watchdog = Watchdog::new("a short file", 60);
    for way in WAYS {
        let image = bench::image();
        let mut disk = Asker::new(BlockSpec::new("short", false), open(image.path(), way));
        assert_eq!(disk.do_one(WRITE, 0, &[1; 4096]), OK);
        image.as_file().set_len(4096 - 512).expect("a shorter file");
        assert_eq!(disk.do_one(READ, 0, &[0; 4096]), IOERR, "{way:?}");
        assert_eq!(disk.do_one(READ, SECTORS - 1, &[0; 512]), IOERR);
        assert_eq!(disk.read(0, 1), [1; 512]);
        drop(image);
        assert_eq!(
            disk.do_one(WRITE, 1, &[2; 512]),
            OK,
            "a file without a name is still there"
        );
        assert_eq!(disk.do_one(FLUSH, 0, &[]), OK);
        assert_eq!(disk.read(1, 1), [2; 512]);
    }
}

/// A small file system gets full, and has room again later.
#[test]
fn a_full_file_system_is_an_error_and_no_loss() {
    let _watchdog = Watchdog::new("a full disk", 60);
    for (io, cache) in WAYS {
        let directory = tempfile::tempdir().expect("a directory");
        let _mounted = Mounted::new(directory.path());
        let path = directory.path().join("disk.img");
        let filler = directory.path().join("filler");
        let file = std::fs::File::create_new(&path).expect("a file");
        file.set_len(1 << 20).expect("a sparse file");
        fill(&filler);
        let config = DiskConfig {
            io,
            cache,
            on_error: OnError::Pause,
            ..DiskConfig::new(&path)
        };
        let image = Disk::open(&config).expect("the image opens");
        let troubles = Arc::<Mutex<Vec<Trouble>>>::default();
        let noted = troubles.clone();
        let bench = Bench::new(Block::new(BlockSpec::new("full", false)));
        let mut disk = Asker::on(bench, 1, 0, |block| {
            block.set_trouble_sink(Arc::new(move |trouble| noted.lock().unwrap().push(trouble)));
            block.attach(image)
        });
        for slot in 0..12 {
            disk.ask((0, slot), WRITE, u64::from(slot) * 8, &[slot as u8 + 1; 4096]);
        }
        disk.kick(0);
        let mut finished = 0;
        while troubles.lock().unwrap().is_empty() {
            finished += usize::from(disk.finished(0).is_some());
        }
        assert!(finished < 12, "there was room for everything");
        std::fs::remove_file(&filler).expect("it is there");
        while finished < 12 {
            disk.bench
                .device
                .with_backend(|block| block.server().expect("it is attached").clone())
                .retry();
            thread::sleep(Duration::from_millis(1));
            finished += std::iter::from_fn(|| disk.finished(0)).count();
        }
        for slot in 0..12u64 {
            let on_file = std::fs::read(&path).expect("the image");
            assert_eq!(
                u64::from(on_file[slot as usize * 4096]),
                slot + 1,
                "{io:?} {cache:?}"
            );
        }
    }
}

/// Takes all room of a file system but for some blocks.
fn fill(filler: &std::path::Path) {
    let mut file = std::fs::File::create_new(filler).expect("a file");
    while file.write_all(&[1; 4096]).is_ok() {}
    let taken = file.metadata().expect("it is there").len();
    file.set_len(taken - 4 * 4096).expect("a shorter file");
    file.sync_all().expect("the room is free");
}

/// A small file system that knows direct I/O: ext4 in a file, without a journal,
/// which would give room back late.
struct Mounted {
    path: std::path::PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Mounted {
    fn new(path: &std::path::Path) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(4 << 20).expect("a sparse file");
        let run = |program: &str, args: &[&str], paths: &[&std::path::Path]| {
            let output = Command::new(program).args(args).args(paths).output();
            let output = output.unwrap_or_else(|error| panic!("{program} does not start: {error}"));
            assert!(
                output.status.success(),
                "{program}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        let options = ["-q", "-m", "0", "-b", "4096", "-O", "^has_journal"];
        run("mkfs.ext4", &options, &[file.path()]);
        run("mount", &["-o", "loop"], &[file.path(), path]);
        Self {
            path: path.into(),
            _file: file,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmount = Command::new("umount").arg("-l").arg(&self.path).status();
        assert!(unmount.expect("umount starts").success());
    }
}

#[test]
fn an_image_has_one_user_and_a_dead_one_holds_nobody_up() {
    let image = bench::image();
    let config = DiskConfig::new(image.path());
    let first = Disk::open(&config).expect("the image opens");
    assert!(matches!(Disk::open(&config), Err(DiskError::InUse { .. })));
    // The winner of a term, after the fence.
    let fenced = DiskConfig {
        ignore_lock: true,
        ..config.clone()
    };
    Disk::open(&fenced).expect("a lock of a fenced host is passed over");
    drop(first);
    Disk::open(&config).expect("the lock went with its owner");
    // Readers may share it, and a writer not.
    let reader = DiskConfig {
        read_only: true,
        ..config.clone()
    };
    let _readers = [Disk::open(&reader), Disk::open(&reader)].map(|disk| disk.expect("the image opens"));
    assert!(matches!(Disk::open(&config), Err(DiskError::InUse { .. })));
}
