//! Images for tests: one that forgets what was not flushed,
//! one whose operations wait and fail as the test says.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use kemari_vmm::disk::Store;

use super::bench::SECTOR_BYTES;
use super::random::Random;

/// A disk with a cache that does not survive a loss of power.
pub(crate) struct Forgetful {
    state: Mutex<Contents>,
    flush_works: bool,
    /// So many flushes are going to fail.
    failing: AtomicUsize,
}

#[derive(Default)]
struct Contents {
    durable: Vec<u8>,
    /// Sectors that were written since the last flush, each with all its versions:
    /// any of them may be on the disk.
    cached: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Sectors that a failed flush has left: they read as they were written,
    /// and nothing will ever write them to the disk.
    clean: BTreeMap<usize, Vec<u8>>,
}

impl Forgetful {
    /// A disk of zeros. `flush_works`: a disk that lies about its flushes is there to be found out.
    pub(crate) fn new(bytes: usize, flush_works: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(Contents {
                durable: vec![0; bytes],
                ..Contents::default()
            }),
            flush_works,
            failing: AtomicUsize::new(0),
        })
    }

    /// The next flushes fail as Linux lets them: what they were for is marked clean,
    /// and never reaches the disk.
    pub(crate) fn fail_flushes(&self, count: usize) {
        self.failing.store(count, Ordering::SeqCst);
    }

    /// What the disk has after a loss of power: of each sector the durable version, or one that was written
    /// since. A write of several sectors may be torn.
    pub(crate) fn after_power_loss(&self, random: &mut Random) -> Vec<u8> {
        let state = self.state.lock().unwrap();
        let mut bytes = state.durable.clone();
        for (sector, versions) in &state.cached {
            let chosen = random.below(versions.len() as u64 + 1) as usize;
            if let Some(version) = versions.get(chosen) {
                bytes[sector * SECTOR_BYTES..][..SECTOR_BYTES].copy_from_slice(version);
            }
        }
        bytes
    }
}

impl Store for Forgetful {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        for (number, part) in buffer.chunks_mut(SECTOR_BYTES).enumerate() {
            let sector = offset as usize / SECTOR_BYTES + number;
            let durable = &state.durable[sector * SECTOR_BYTES..][..SECTOR_BYTES];
            let written = state.cached.get(&sector).and_then(|versions| versions.last());
            let newest = written.or(state.clean.get(&sector));
            part.copy_from_slice(newest.map_or(durable, |version| &version[..]));
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        for (number, part) in data.chunks(SECTOR_BYTES).enumerate() {
            let sector = offset as usize / SECTOR_BYTES + number;
            state.cached.entry(sector).or_default().push(part.to_vec());
        }
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64, _: bool) -> io::Result<()> {
        self.write(offset, &vec![0; bytes as usize])
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let fails = |left: usize| left.checked_sub(1);
        if self
            .failing
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails)
            .is_ok()
        {
            for (sector, mut versions) in std::mem::take(&mut state.cached) {
                state.clean.extend(versions.pop().map(|newest| (sector, newest)));
            }
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if self.flush_works {
            for (sector, versions) in std::mem::take(&mut state.cached) {
                if let Some(newest) = versions.last() {
                    state.durable[sector * SECTOR_BYTES..][..SECTOR_BYTES].copy_from_slice(newest);
                }
            }
        }
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.state.lock().unwrap().durable.len() as u64)
    }
}

/// A disk in memory whose operations wait at a gate, and fail where the test wants it.
pub(crate) struct Gated {
    bytes: Mutex<Vec<u8>>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    /// What is at the gate or has passed it, as `write 4`: the sector is that of its first byte.
    begun: Vec<String>,
    /// Sectors whose operations may pass although the gate is closed.
    may_pass: Vec<u64>,
    /// Operations on these sectors fail so.
    failing: BTreeMap<u64, i32>,
    flushes_fail: bool,
    flushes_closed: bool,
}

impl Gated {
    /// A disk of zeros with an open gate.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; bytes]),
            gate: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn set_closed(&self, closed: bool) {
        self.gate.lock().unwrap().closed = closed;
        self.changed.notify_all();
    }

    /// Lets operations on this sector pass.
    pub(crate) fn pass(&self, sector: u64) {
        self.gate.lock().unwrap().may_pass.push(sector);
        self.changed.notify_all();
    }

    /// Lets operations on a sector fail, or not any more.
    pub(crate) fn fail(&self, sector: u64, error: Option<i32>) {
        let failing = &mut self.gate.lock().unwrap().failing;
        match error {
            Some(error) => drop(failing.insert(sector, error)),
            None => drop(failing.remove(&sector)),
        }
    }

    /// Lets flushes fail, or not any more.
    pub(crate) fn fail_flushes(&self, fail: bool) {
        self.gate.lock().unwrap().flushes_fail = fail;
    }

    /// Lets flushes wait, or not any more.
    pub(crate) fn set_flushes_closed(&self, closed: bool) {
        self.gate.lock().unwrap().flushes_closed = closed;
        self.changed.notify_all();
    }

    /// What has begun so far.
    pub(crate) fn begun(&self) -> Vec<String> {
        self.gate.lock().unwrap().begun.clone()
    }

    pub(crate) fn sector(&self, sector: u64) -> u8 {
        self.bytes.lock().unwrap()[sector as usize * SECTOR_BYTES]
    }

    fn enter(&self, what: &str, offset: u64) -> io::Result<()> {
        let sector = offset / SECTOR_BYTES as u64;
        let mut gate = self.gate.lock().unwrap();
        gate.begun.push(format!("{what} {sector}"));
        self.changed.notify_all();
        let gate = self
            .changed
            .wait_while(gate, |gate| gate.closed && !gate.may_pass.contains(&sector))
            .unwrap();
        match gate.failing.get(&sector) {
            Some(error) => Err(io::Error::from_raw_os_error(*error)),
            None => Ok(()),
        }
    }
}

impl Store for Gated {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.enter("read", offset)?;
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.enter("write", offset)?;
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64, _: bool) -> io::Result<()> {
        self.enter("zero", offset)?;
        self.bytes.lock().unwrap()[offset as usize..][..bytes as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut gate = self.gate.lock().unwrap();
        gate.begun.push("flush".into());
        let gate = self.changed.wait_while(gate, |gate| gate.flushes_closed).unwrap();
        match gate.flushes_fail {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }
}
