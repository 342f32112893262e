//! Requests of 4 KiB through a disk, each way of carrying them out beside the others:
//! `cargo bench -p kemari-vmm`.
//!
//! The rounds of all ways alternate, and the median round of each counts: the machine may be busy with other
//! things. The directory for the image is TMPDIR's; name one on the storage that matters.

#[allow(dead_code)]
#[path = "../tests/machine/support/mod.rs"]
mod support;

use std::time::Instant;

use kemari_vmm::disk::{Cache, Disk, DiskConfig, Io};
use kemari_vmm::virtio::block::BlockSpec;

use support::asker::{Asker, OK, QUEUE_SLOTS, READ, WRITE};
use support::random::Random;

const IMAGE_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: usize = 4096;
const REQUESTS: usize = 3000;
const ROUNDS: usize = 9;

struct Way {
    name: &'static str,
    disk: Asker,
    _image: tempfile::NamedTempFile,
}

fn way(name: &'static str, io: Io, cache: Cache) -> Way {
    let image = tempfile::NamedTempFile::new().expect("a temporary file");
    // Allocated, so that no round pays for that.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(image.path())
        .expect("it is there");
    let megabyte = vec![1; 1 << 20];
    for offset in (0..IMAGE_BYTES).step_by(megabyte.len()) {
        std::os::unix::fs::FileExt::write_all_at(&file, &megabyte, offset).expect("room for the image");
    }
    file.sync_all().expect("the image is written");
    let config = DiskConfig {
        io,
        cache,
        ..DiskConfig::new(image.path())
    };
    let disk = Disk::open(&config).expect("the image opens");
    Way {
        name,
        disk: Asker::new(BlockSpec::new("bench", false), disk),
        _image: image,
    }
}

/// Requests a second with so many under way.
fn round(way: &mut Way, kind: u32, depth: u16, random: &mut Random) -> f64 {
    let data = vec![random.next() as u8; BLOCK_BYTES];
    let mut sector = || random.below(IMAGE_BYTES / BLOCK_BYTES as u64) * 8;
    let begin = Instant::now();
    for slot in 0..depth {
        way.disk.ask((0, slot), kind, sector(), &data);
    }
    way.disk.kick(0);
    let mut asked = usize::from(depth);
    for _ in 0..REQUESTS {
        let (place, status) = way.disk.wait(0);
        assert_eq!(status, OK);
        if asked < REQUESTS {
            way.disk.ask(place, kind, sector(), &data);
            way.disk.kick(0);
            asked += 1;
        }
    }
    REQUESTS as f64 / begin.elapsed().as_secs_f64()
}

fn main() {
    let mut ways = [
        way("io_uring", Io::Uring, Cache::Writeback),
        way("threads", Io::Threads, Cache::Writeback),
        way("io_uring, direct", Io::Uring, Cache::Direct),
        way("threads, direct", Io::Threads, Cache::Direct),
    ];
    println!("{:<10} {:>6}  {:<18} {:>12}", "4 KiB", "depth", "", "requests/s");
    let mut random = Random::new(1);
    for (name, kind) in [("read", READ), ("write", WRITE)] {
        for depth in [1, 4, QUEUE_SLOTS] {
            let mut rates = vec![Vec::new(); ways.len()];
            for _ in 0..ROUNDS {
                for (way, rates) in ways.iter_mut().zip(&mut rates) {
                    rates.push(round(way, kind, depth, &mut random));
                }
            }
            for (way, mut rates) in ways.iter().zip(rates) {
                rates.sort_by(f64::total_cmp);
                println!(
                    "{name:<10} {depth:>6}  {:<18} {:>12.0}",
                    way.name,
                    rates[ROUNDS / 2]
                );
            }
        }
    }
}
