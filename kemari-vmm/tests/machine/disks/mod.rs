//! Disks: what a guest may ask, in which order it happens, and what becomes of failures.

mod errors;
mod flushes;
mod marks;
mod order;
mod power;
mod requests;
mod takeovers;

use std::path::Path;

use kemari_vmm::disk::{Cache, Disk, DiskConfig, Io};

/// Every way of carrying out the I/O of a raw image.
const WAYS: [(Io, Cache); 4] = [
    (Io::Uring, Cache::Writeback),
    (Io::Uring, Cache::Direct),
    (Io::Threads, Cache::Writeback),
    (Io::Threads, Cache::Direct),
];

/// Opens an image as soon as nobody has it any more.
fn open(path: &Path, (io, cache): (Io, Cache)) -> Disk {
    let config = DiskConfig {
        io,
        cache,
        ..DiskConfig::new(path)
    };
    open_with(&config)
}

fn open_with(config: &DiskConfig) -> Disk {
    loop {
        match Disk::open(config) {
            Err(kemari_vmm::disk::DiskError::InUse { .. }) => std::thread::yield_now(),
            result => return result.expect("the image opens"),
        }
    }
}
