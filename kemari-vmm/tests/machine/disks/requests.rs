//! What a driver may ask of a disk, and the status that it gets (virtio 1.2, section 5.2).

use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use kemari_vmm::disk::{DiskWatch, Tell};
use kemari_vmm::virtio::block::{Block, BlockSpec};

use super::{WAYS, open};
use crate::support::asker::{Asker, DISCARD, FLUSH, ID, IOERR, OK, READ, UNSUPP, WRITE, ZEROES};
use crate::support::bench::{self, SECTOR_BYTES, SECTORS};
use crate::support::watchdog::Watchdog;

const MQ: u64 = 1 << 12;
const FLUSHES: u64 = 1 << 9;

fn spec() -> BlockSpec {
    BlockSpec {
        serial: "kemari-disk".into(),
        read_only: false,
        block_bytes: 512,
        queues: 1,
    }
}

fn offered(asker: &Asker) -> u64 {
    use crate::support::driver::{read_register, regs, write_register};
    let device = &*asker.bench.device;
    write_register(device, regs::DEVICE_FEATURES_SEL, 0);
    read_register(device, regs::DEVICE_FEATURES).into()
}

#[test]
fn each_request_gets_its_status_whatever_carries_it_out() {
    let _watchdog = Watchdog::new("requests of a disk", 60);
    for way in WAYS {
        let image = bench::image();
        let mut disk = Asker::new(spec(), open(image.path(), way));
        let sector = |byte| vec![byte; SECTOR_BYTES];
        assert_eq!(disk.do_one(WRITE, 3, &[sector(7), sector(8)].concat()), OK);
        assert_eq!(disk.do_one(FLUSH, 0, &[]), OK);
        assert_eq!(disk.read(2, 3), [sector(0), sector(7), sector(8)].concat());
        assert_eq!(disk.do_one(READ, SECTORS - 1, &sector(0)), OK);
        assert_eq!(disk.do_one(READ, SECTORS, &sector(0)), IOERR);
        assert_eq!(disk.do_one(READ, SECTORS - 1, &[0; 2 * SECTOR_BYTES]), IOERR);
        assert_eq!(disk.do_one(WRITE, u64::MAX, &sector(1)), IOERR);
        assert_eq!(disk.do_one(WRITE, 0, &[1; 100]), IOERR, "no whole sector");
        assert_eq!(disk.do_one(99, 0, &sector(0)), UNSUPP);
        assert_eq!(disk.do_one(ID, 0, &[0xee; 20]), OK);
        assert_eq!(&disk.data((0, 0), 12), b"kemari-disk\0");
    }
}

#[test]
fn discards_and_zeroes_make_zeros() {
    let _watchdog = Watchdog::new("discards", 60);
    for way in WAYS {
        for (kind, flags) in [(DISCARD, 0), (ZEROES, 0), (ZEROES, 1)] {
            let image = bench::image();
            let mut disk = Asker::new(spec(), open(image.path(), way));
            for sector in (0..64).step_by(8) {
                assert_eq!(disk.do_one(WRITE, sector, &[9; 4096]), OK);
            }
            assert_eq!(disk.do_one(FLUSH, 0, &[]), OK);
            let before = image.as_file().metadata().expect("a file").blocks();
            assert_eq!(disk.zero_one(kind, 5, 48, flags), OK);
            assert_eq!(disk.read(4, 2), [vec![9; 512], vec![0; 512]].concat());
            assert_eq!(disk.read(52, 2), [vec![0; 512], vec![9; 512]].concat());
            let after = image.as_file().metadata().expect("a file").blocks();
            if kind == DISCARD || flags == 1 {
                assert!(after < before, "a discard gives its storage back");
            }
            assert_eq!(disk.zero_one(kind, SECTORS - 1, 2, 0), IOERR, "beyond the end");
            assert_eq!(disk.zero_one(kind, u64::MAX, 1, 0), IOERR);
            assert_eq!(disk.zero_one(kind, 0, u32::MAX, 0), IOERR);
            assert_eq!(disk.zero_one(kind, 0, 1, 2), UNSUPP, "a flag that nobody knows");
            assert_eq!(disk.do_one(kind, 0, &[0; 15]), IOERR, "no whole range");
            assert_eq!(disk.do_one(kind, 0, &[0; 32]), IOERR, "more ranges than one");
            assert_eq!(
                disk.zero_one(DISCARD, 0, 1, 1),
                UNSUPP,
                "a discard has no unmap flag"
            );
            assert_eq!(disk.read(0, 1), [9; 512]);
        }
    }
}

#[test]
fn a_read_only_disk_is_only_read() {
    let image = bench::image();
    let read_only = BlockSpec {
        read_only: true,
        ..spec()
    };
    let mut disk = Asker::new(read_only, open(image.path(), WAYS[0]));
    let features = offered(&disk);
    assert_eq!(features >> 5 & 1, 1, "RO is offered");
    assert_eq!(features >> 13 & 3, 0, "neither DISCARD nor WRITE_ZEROES is");
    assert_eq!(disk.do_one(WRITE, 0, &[1; 512]), IOERR);
    assert_eq!(disk.zero_one(DISCARD, 0, 1, 0), IOERR);
    assert_eq!(disk.zero_one(ZEROES, 0, 1, 0), IOERR);
    assert_eq!(disk.read(0, 1), [0; 512]);
}

#[test]
fn a_disk_with_large_blocks_takes_whole_blocks_only() {
    let image = bench::image();
    let large = BlockSpec {
        block_bytes: 4096,
        ..spec()
    };
    let mut disk = Asker::new(large, open(image.path(), WAYS[1]));
    assert_eq!(u32::from_le_bytes(disk.config(20)), 4096);
    assert_eq!(disk.config(24), [0u8], "a physical block is one block");
    assert_eq!(u32::from_le_bytes(disk.config(44)), 8, "a discard is aligned so");
    assert_eq!(disk.do_one(WRITE, 8, &[5; 4096]), OK);
    assert_eq!(disk.do_one(WRITE, 8, &[6; 512]), IOERR);
    assert_eq!(disk.do_one(READ, 1, &[0; 4096]), IOERR);
    assert_eq!(disk.zero_one(DISCARD, 8, 4, 0), IOERR);
    assert_eq!(disk.read(8, 8), [5; 4096]);
    assert_eq!(disk.zero_one(DISCARD, 8, 8, 0), OK);
    assert_eq!(disk.read(8, 8), [0; 4096]);
}

#[test]
fn a_disk_has_as_many_queues_as_it_says() {
    let image = bench::image();
    let many = BlockSpec { queues: 4, ..spec() };
    let mut disk = Asker::new(many, open(image.path(), WAYS[0]));
    assert_eq!(offered(&disk) & MQ, MQ);
    assert_eq!(u16::from_le_bytes(disk.config(34)), 4);
    for queue in 0..4 {
        disk.ask((queue, 1), WRITE, queue as u64, &[queue as u8 + 1; 512]);
        disk.kick(queue);
        assert_eq!(disk.wait(queue), ((queue, 1), OK));
    }
    assert_eq!(disk.read(3, 1), [4; 512]);
    let one = Asker::new(spec(), open(bench::image().path(), WAYS[0]));
    assert_eq!(offered(&one) & MQ, 0);
}

/// A driver that knows no flush must find everything durable that is finished.
#[test]
fn without_flushes_each_write_is_flushed() {
    use crate::support::random::Random;
    use crate::support::stores::Forgetful;
    use kemari_vmm::disk::{Disk, OnError};
    let store = Forgetful::new(1 << 16, true);
    let image = Disk::with_store(store.clone(), OnError::Report).expect("it has a size");
    let mut disk = Asker::refusing(spec(), image, FLUSHES);
    for round in 1..50u8 {
        let status = match round % 3 {
            0 => disk.zero_one(ZEROES, 2, 4, 0),
            _ => disk.do_one(WRITE, 2, &[round; 2048]),
        };
        assert_eq!(status, OK);
        let expected = if round % 3 == 0 { 0 } else { round };
        let left = store.after_power_loss(&mut Random::new(round.into()));
        assert!(
            left[1024..1024 + 2048].iter().all(|byte| *byte == expected),
            "round {round}"
        );
    }
}

#[test]
fn a_disk_grows_and_never_shrinks() {
    let _watchdog = Watchdog::new("a disk that grows", 60);
    let image = bench::image();
    let mut disk = Asker::new(spec(), open(image.path(), WAYS[0]));
    let device = disk.bench.device.clone();
    let look = || device.with_backend(|block| block.look_at_size());
    assert_eq!(look().expect("it is there"), None);
    assert!(!disk.config_changed());
    image
        .as_file()
        .set_len(2 * SECTORS * 512 + 100)
        .expect("a sparse file");
    assert_eq!(look().expect("it has grown"), Some(2 * SECTORS * 512));
    assert!(disk.config_changed(), "the driver is told");
    assert_eq!(u64::from_le_bytes(disk.config(0)), 2 * SECTORS);
    assert_eq!(disk.do_one(WRITE, 2 * SECTORS - 1, &[3; 512]), OK);

    // The new size is state: who goes on knows of requests beyond the old end.
    let state = kemari_vmm::devices::Device::save(&*device);
    let other = crate::support::bench::Bench::new(kemari_vmm::virtio::block::Block::new(spec()));
    kemari_vmm::devices::Device::load(&*other.device, &state).expect("an equal disk");
    let small = bench::image();
    let error = other
        .device
        .with_backend(|block| block.attach(open(small.path(), WAYS[0])))
        .expect_err("it is smaller than the guest knows it");
    assert!(
        error.to_string().contains(&format!("{}", SECTORS * 512)),
        "{error}"
    );

    image.as_file().set_len(SECTORS * 512).expect("a shorter file");
    look().expect_err("it has shrunk");
    assert!(!disk.config_changed());
    assert_eq!(u64::from_le_bytes(disk.config(0)), 2 * SECTORS);
    assert_eq!(
        disk.do_one(READ, 2 * SECTORS - 1, &[0; 512]),
        IOERR,
        "it is not there any more"
    );
    assert_eq!(disk.read(0, 1), [0; 512], "the rest is");
}

/// Whoever keeps a record of an image, and cannot write it when that grows.
struct Unrecorded;

impl DiskWatch for Unrecorded {
    fn may_change(&self, _: &Range<u64>) -> bool {
        true
    }
    fn grown(&self, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
    fn prepare(&self, _: &[Range<u64>]) -> io::Result<()> {
        Ok(())
    }
    fn changed(&self, _: u64, _: &Range<u64>, _: bool) {}
    fn flush_is_output(&self) -> bool {
        false
    }
    fn flush_begins(&self, _: u64, _: Option<u64>) {}
    fn flushed(&self, _: u64, tell: Tell) {
        tell();
    }
}

#[test]
fn a_disk_whose_growth_cannot_be_recorded_does_not_grow() {
    let image = bench::image();
    let bench = bench::Bench::new(Block::new(spec()));
    let disk = Asker::on(bench, 1, 0, |block| {
        block.attach(open(image.path(), WAYS[0]))?;
        block.set_watch(Arc::new(Unrecorded));
        Ok(())
    });
    image.as_file().set_len(2 * SECTORS * 512).expect("a sparse file");
    let device = disk.bench.device.clone();
    device
        .with_backend(|block| block.look_at_size())
        .expect_err("nothing says that what is new may differ");
    assert!(!disk.config_changed(), "the guest is not told");
    assert_eq!(u64::from_le_bytes(disk.config(0)), SECTORS);
}
