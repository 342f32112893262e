//! Whether a secondary's disks would answer, and open: it reads a block of each now and then, past the page
//! cache wherever that can be, since that would answer for a disk that is gone; and looks at each image as a
//! takeover would.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use kemari_vmm::confine::{self, COMMON, Calls, OPEN_FILES, RINGS};
use kemari_vmm::disk::{Cache, DiskConfig, OpenImage};

use super::health::stuck;
use super::readiness::{Findings, InUse, Source, Target};
use crate::config::Config;
use crate::sandbox::{ASKING, BLOCK_DEVICES, FILES};

/// Pause between two rounds, in milliseconds.
const ROUND_INTERVAL_MS: u64 = 1000;
/// What is found out stands for so long.
const VALID: Duration = Duration::from_millis(4 * ROUND_INTERVAL_MS);
/// What is read, in bytes, and its alignment: enough for every disk in use.
const BLOCK_BYTES: usize = 4096;

#[derive(Default)]
struct State {
    /// The disk that is being read, and since when.
    reading: Option<(String, Instant)>,
    /// What the last round found.
    failed: Option<String>,
}

/// See the module. It ends when this is dropped, or, if a read hangs, with that read.
pub struct Probe {
    state: Arc<Mutex<State>>,
}

impl Probe {
    /// Begins to read the disks of a host, which is this one,
    /// and notes in `findings` whether a takeover could open them.
    pub fn start(config: &Config, host: &str, findings: Arc<Findings>, in_use: InUse) -> io::Result<Self> {
        let targets = Target::all(config, host);
        let state = Arc::new(Mutex::new(State::default()));
        let weak = Arc::downgrade(&state);
        thread::Builder::new()
            .name("disk probe".into())
            .spawn(move || run(&targets, &weak, &findings, &in_use))?;
        Ok(Self { state })
    }

    /// A disk that cannot be read, or has not answered within `limit`, in words.
    pub fn trouble(&self, limit: Duration) -> Option<String> {
        let state = lock(&self.state);
        match &state.reading {
            Some((id, since)) if since.elapsed() > limit => Some(stuck(id, limit)),
            _ => state.failed.clone(),
        }
    }
}

/// What the probing thread asks of the kernel.
pub const CALLS: Calls = Calls {
    of: "disk probe",
    parts: &[COMMON, OPEN_FILES, FILES, RINGS, BLOCK_DEVICES, ASKING],
};

fn run(targets: &[Target], state: &Weak<Mutex<State>>, findings: &Findings, in_use: &InUse) {
    confine::thread(&CALLS);
    loop {
        let mut failed = None;
        let mut troubles = Vec::new();
        for target in targets {
            let Some(state) = state.upgrade() else { return };
            lock(&state).reading = Some((target.id().to_owned(), Instant::now()));
            troubles.extend(target.trouble(in_use));
            if let Err(error) = read_block(target.image()) {
                let (id, path) = (target.id(), target.image().path.display());
                failed = failed.or(Some(format!("the disk {id} at {path} cannot be read: {error}")));
            }
            lock(&state).reading = None;
        }
        // The side may have another role by now.
        if state.strong_count() > 0 {
            findings.note(Source::Images, Some(VALID), troubles);
        }
        match state.upgrade() {
            Some(state) => lock(&state).failed = failed,
            None => return,
        }
        thread::sleep(Duration::from_millis(ROUND_INTERVAL_MS));
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the first block, or what there is of it: from the disk itself, if its file system can.
fn read_block(image: &DiskConfig) -> io::Result<()> {
    let read = |direct| {
        let how = OpenImage {
            direct,
            ..OpenImage::default()
        };
        let file = how.open(&image.path)?;
        let mut storage = vec![0; 2 * BLOCK_BYTES];
        let start = storage.as_ptr().align_offset(BLOCK_BYTES);
        file.read_at(&mut storage[start..start + BLOCK_BYTES], 0)
            .map(drop)
    };
    match read(true) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput && image.cache != Cache::Direct => {
            read(false)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_read_past_the_cache_and_a_missing_one_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 16).unwrap();
        let target = |path: &std::path::Path, direct| DiskConfig {
            cache: if direct { Cache::Direct } else { Cache::Writeback },
            ..DiskConfig::new(path)
        };
        read_block(&target(file.path(), true)).unwrap();
        read_block(&target(file.path(), false)).unwrap();
        assert!(read_block(&target(std::path::Path::new("/nonexistent"), true)).is_err());
    }

    #[test]
    fn a_read_that_hangs_is_told_after_its_limit() {
        let state = State {
            reading: Some(("blk0".into(), Instant::now() - Duration::from_secs(2))),
            failed: None,
        };
        let probe = Probe {
            state: Arc::new(Mutex::new(state)),
        };
        assert!(probe.trouble(Duration::from_secs(1)).unwrap().contains("blk0"));
        assert_eq!(probe.trouble(Duration::from_secs(3)), None);
    }
}
