//! Disks: what a guest may ask, in which order it happens, and what becomes of failures.

mod blocks;
mod closing;
mod errors;
mod flushes;
mod marks;
mod order;
mod power;
mod requests;
mod takeovers;

use std::path::Path;
use std::process::Command;

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

/// Runs a program of the host's, and returns what it says.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
