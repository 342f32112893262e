//! A disk that lies is found out, and one that does not is not.

use std::io;
use std::sync::Arc;

use kemari_vmm::disk::{OnError, Store};

use super::*;
use crate::own_file::{Change, Storage};

/// A disk whose file is a log.
struct Recorded {
    log: Arc<Log>,
    /// Flushes make nothing durable.
    forgets_flushes: bool,
    /// A range that is made zeros takes the sector behind it along.
    takes_along: bool,
}

impl Store for Recorded {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.log.read(offset, buffer.len());
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let data = data.to_vec();
        self.log.change(Change::Write { offset, data });
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64, _unmap: bool) -> io::Result<()> {
        let more = if self.takes_along { SECTOR_BYTES } else { 0 };
        let bytes = bytes + more;
        self.log.change(Change::Zero { offset, bytes });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if !self.forgets_flushes {
            self.log.note(Entry::Synced);
        }
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.log.bytes())
    }

    fn enlarge(&self, bytes: u64) -> io::Result<()> {
        self.log.change(Change::Resize { bytes });
        Ok(())
    }
}

/// What comes out for such a disk; an error if it was seen already while it had a lot to do.
fn tried(forgets_flushes: bool, takes_along: bool) -> Result<Outcome> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let log = Arc::new(Log::new(vec![0; (SECTORS * SECTOR_BYTES) as usize], true));
    let store = Recorded {
        log: log.clone(),
        forgets_flushes,
        takes_along,
    };
    let grow = |server: &Server, sectors| Ok(server.enlarge(sectors * SECTOR_BYTES)?);
    let storm = Storm {
        log: &log,
        grow: &grow,
        grown_sectors: GROWN_SECTORS,
        write_through: false,
    };
    let disk = Disk::with_store(Arc::new(store), OnError::Report)?;
    let model = storm.rage(disk, Model::new(SECTORS, false), &mut random)?;
    let entries = log.take();
    let recording = Recording {
        name: "a disk of the test",
        times: model.times(&entries),
        model,
        entries,
        is_device: false,
    };
    let mut outcome = Outcome::default();
    let enough = |outcome: &Outcome| outcome.failed > 0 || outcome.subsets > 200;
    recording.replay(&mut random, &mut outcome, enough, Ok)?;
    Ok(outcome)
}

#[test]
fn an_honest_disk_passes() {
    let outcome = tried(false, false).unwrap();
    assert!(outcome.subsets > 0 && outcome.failed == 0, "{outcome:?}");
}

#[test]
fn flushes_that_make_nothing_durable_are_found() {
    let outcome = tried(true, false).unwrap();
    assert!(outcome.failed > 0, "{outcome:?}");
}

#[test]
fn what_is_changed_beside_a_request_is_found() {
    let found = tried(false, true);
    assert!(found.is_err() || found.is_ok_and(|outcome| outcome.failed > 0));
}
