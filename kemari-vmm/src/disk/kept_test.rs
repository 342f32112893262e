//! A disk whose flush fails once and loses what it was for.

use std::io;
use std::sync::Mutex;

use super::*;
use crate::disk::unflushed::KEPT_BYTES_MAX;
use crate::disk::{OnError, Store};

/// What is on the disk, and what only the page cache has.
#[derive(Default)]
struct Contents {
    durable: Vec<u8>,
    cached: Vec<(u64, Vec<u8>)>,
    flushes: usize,
    fails: bool,
}

struct Losing(Mutex<Contents>);

impl Losing {
    fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Contents {
            durable: vec![0; bytes],
            ..Contents::default()
        })))
    }
}

impl Store for Losing {
    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().cached.push((offset, data.to_vec()));
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64, _: bool) -> io::Result<()> {
        self.write(offset, &vec![0; bytes as usize])
    }

    fn flush(&self) -> io::Result<()> {
        let mut contents = self.0.lock().unwrap();
        contents.flushes += 1;
        let cached = std::mem::take(&mut contents.cached);
        if std::mem::take(&mut contents.fails) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        for (offset, data) in cached {
            contents.durable[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().durable.len() as u64)
    }
}

fn kept(store: &Arc<Losing>) -> KeptDisk {
    KeptDisk::new(Disk::with_store(store.clone(), OnError::Report).unwrap())
}

fn write(offset: u64, byte: u8, bytes: usize) -> Arc<Operation> {
    let data = vec![byte; bytes];
    Arc::new(Operation::Write { offset, data })
}

#[test]
fn a_flush_that_has_failed_is_made_good_by_the_next_one() {
    let store = Losing::new(1 << 20);
    let mut disk = kept(&store);
    disk.change(&write(0, 1, 512)).unwrap();
    disk.flush().unwrap();
    disk.change(&write(512, 2, 512)).unwrap();
    store.0.lock().unwrap().fails = true;
    assert!(disk.flush().is_err());
    // Newer, and over a part of what is made again.
    disk.change(&write(768, 3, 256)).unwrap();
    disk.flush().unwrap();
    let contents = store.0.lock().unwrap();
    let expected = [vec![1; 512], vec![2; 256], vec![3; 256]].concat();
    assert_eq!(contents.durable[..1024], expected);
}

#[test]
fn what_a_copy_brings_cannot_be_made_good_here() {
    let store = Losing::new(1 << 20);
    let mut disk = kept(&store);
    disk.copy(&write(0, 1, 512)).unwrap();
    store.0.lock().unwrap().fails = true;
    for _ in 0..2 {
        assert!(disk.flush().is_err());
    }
}

#[test]
fn a_flush_comes_before_more_has_changed_than_is_kept() {
    let store = Losing::new(KEPT_BYTES_MAX * 2);
    let mut disk = kept(&store);
    // A largest request.
    let bytes = 16 << 20;
    disk.change(&write(0, 1, bytes)).unwrap();
    assert_eq!(store.0.lock().unwrap().flushes, 0);
    disk.change(&write(0, 2, bytes)).unwrap();
    assert_eq!(store.0.lock().unwrap().flushes, 1);
    store.0.lock().unwrap().fails = true;
    assert!(disk.flush().is_err());
    disk.flush().unwrap();
    assert_eq!(store.0.lock().unwrap().durable[..bytes], vec![2; bytes]);
}
