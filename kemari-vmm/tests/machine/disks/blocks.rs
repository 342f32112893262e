//! Disks whose blocks are larger than their guest's: what a guest asks for is carried out all the same, and
//! what it did not ask for stays as it is.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kemari_vmm::disk::{Cache, Io};
use kemari_vmm::virtio::block::BlockSpec;

use super::{open, run};
use crate::support::asker::{Asker, DISCARD, OK, QUEUE_SLOTS, READ, WRITE, ZEROES};
use crate::support::bench::SECTOR_BYTES;
use crate::support::random::Random;
use crate::support::watchdog::Watchdog;

/// Bytes of a block of the disk.
const BLOCK_BYTES: usize = 4096;
const DEVICE_BYTES: u64 = 32 << 20;
/// Sectors that are asked for: two blocks and a half, so that much meets in each block.
const SECTORS: u64 = 20;
const QUEUES: usize = 2;
const ROUNDS: u32 = 60;

/// A disk with blocks of 4096 bytes, and no smaller ones.
struct Device {
    path: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Device {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(DEVICE_BYTES).expect("a sparse file");
        let path = file.path().to_str().expect("a name");
        let made = run("losetup", &["--find", "--show", "--sector-size", "4096", path]);
        Self {
            path: made.trim().into(),
            _file: file,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.path.to_str().expect("a name")]);
    }
}

/// A file on such a disk, which ends within a block.
struct Mounted {
    directory: tempfile::TempDir,
    _device: Device,
}

impl Mounted {
    fn new() -> Self {
        let (directory, device) = (tempfile::tempdir().expect("a directory"), Device::new());
        let path = device.path.to_str().expect("a name");
        run("mkfs.ext4", &["-q", path]);
        run("mount", &[path, directory.path().to_str().expect("a name")]);
        Self {
            directory,
            _device: device,
        }
    }

    fn image(&self) -> PathBuf {
        let path = self.directory.path().join("image");
        let file = File::create(&path).expect("a file");
        file.set_len(SECTORS * SECTOR_BYTES as u64)
            .expect("a sparse file");
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &["-l", self.directory.path().to_str().expect("a name")]);
    }
}

/// A guest, and what its disk must hold.
struct Guest {
    disk: Asker,
    expected: Vec<u8>,
    random: Random,
    version: u8,
}

impl Guest {
    fn new(path: &Path, io: Io) -> Self {
        let spec = BlockSpec {
            queues: QUEUES as u16,
            ..BlockSpec::new("blocks", false)
        };
        Self {
            disk: Asker::new(spec, open(path, (io, Cache::Direct))),
            expected: vec![0; SECTORS as usize * SECTOR_BYTES],
            random: Random::new(7),
            version: 0,
        }
    }

    /// Asks for much at a time. Returns what the reads among it must find.
    fn ask(&mut self) -> Vec<((usize, u16), Vec<u8>)> {
        let mut reads = Vec::new();
        for slot in 0..QUEUE_SLOTS {
            for queue in 0..QUEUES {
                let sectors = 1 + self.random.below(8);
                let first = self.random.below(SECTORS - sectors + 1);
                let part = first as usize * SECTOR_BYTES..(first + sectors) as usize * SECTOR_BYTES;
                let place = (queue, slot);
                self.version = self.version.wrapping_add(1);
                match self.random.below(10) {
                    0..2 => {
                        let kind = *self.random.pick(&[DISCARD, ZEROES]);
                        self.disk.ask_zero(place, kind, first, sectors as u32, 0);
                        self.expected[part].fill(0);
                    }
                    2..4 => {
                        self.disk.ask(place, READ, first, &vec![0xee; part.len()]);
                        reads.push((place, self.expected[part].to_vec()));
                    }
                    _ => {
                        self.expected[part.clone()].fill(self.version);
                        self.disk.ask(place, WRITE, first, &self.expected[part]);
                    }
                }
                self.disk.kick(queue);
            }
        }
        reads
    }

    fn work(&mut self) {
        for round in 0..ROUNDS {
            let reads = self.ask();
            for queue in 0..QUEUES {
                for _ in 0..QUEUE_SLOTS {
                    assert_eq!(self.disk.wait(queue).1, OK);
                }
            }
            for (place, expected) in reads {
                let found = self.disk.data(place, expected.len());
                assert!(found == expected, "round {round}, {place:?}");
            }
            let found: Vec<u8> = (0..SECTORS)
                .flat_map(|sector| self.disk.read(sector, 1))
                .collect();
            assert!(found == self.expected, "round {round}");
        }
    }
}

#[test]
fn a_guest_with_smaller_blocks_than_its_disk_loses_nothing() {
    let _watchdog = Watchdog::new("blocks of 4096 bytes", 240);
    for io in [Io::Uring, Io::Threads] {
        let device = Device::new();
        let behind = vec![9; BLOCK_BYTES];
        let end = (SECTORS as usize * SECTOR_BYTES).next_multiple_of(BLOCK_BYTES) as u64;
        let file = File::options().write(true).open(&device.path).expect("it opens");
        file.write_all_at(&behind, end).expect("it is written");
        file.sync_all().expect("it is flushed");
        drop(file);
        let mut guest = Guest::new(&device.path, io);
        guest.work();
        drop(guest.disk);
        let image = fs::read(&device.path).expect("it is read");
        assert!(image.starts_with(&guest.expected));
        assert_eq!(image[end as usize..][..BLOCK_BYTES], behind);
    }
}

/// Direct I/O would make it longer, and so the guest's disk at the next start.
#[test]
fn an_image_that_ends_within_a_block_keeps_its_size() {
    let _watchdog = Watchdog::new("an image that ends within a block", 240);
    let mounted = Mounted::new();
    for io in [Io::Uring, Io::Threads] {
        let path = mounted.image();
        let mut guest = Guest::new(&path, io);
        guest.work();
        drop(guest.disk);
        drop(open(&path, (io, Cache::Direct)));
        // The size, too.
        assert!(fs::read(&path).expect("it is read") == guest.expected);
    }
}
