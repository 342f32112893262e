//! Whether a secondary's disks would answer: it reads a block of each now and then, past the page cache where the
//! configuration says so.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::health::stuck;
use crate::config::{Cache, Config};

/// Pause between two rounds, in milliseconds.
const ROUND_INTERVAL_MS: u64 = 2000;
/// What is read, in bytes, and its alignment: enough for every disk in use.
const BLOCK_BYTES: usize = 4096;

struct Target {
    id: String,
    path: PathBuf,
    direct: bool,
}

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
    /// Begins to read the disks of a host, which is this one.
    pub fn start(config: &Config, host: &str) -> io::Result<Self> {
        let targets: Vec<Target> = config
            .disks_of(host)
            .into_iter()
            .map(|disk| Target {
                id: disk.disk.id.clone(),
                path: disk.path,
                direct: disk.disk.cache == Cache::Direct,
            })
            .collect();
        let state = Arc::new(Mutex::new(State::default()));
        let weak = Arc::downgrade(&state);
        thread::Builder::new()
            .name("disk probe".into())
            .spawn(move || run(&targets, &weak))?;
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

fn run(targets: &[Target], state: &Weak<Mutex<State>>) {
    loop {
        let mut failed = None;
        for target in targets {
            let Some(state) = state.upgrade() else { return };
            lock(&state).reading = Some((target.id.clone(), Instant::now()));
            if let Err(error) = read_block(target) {
                let path = target.path.display();
                failed = failed.or(Some(format!(
                    "the disk {} at {path} cannot be read: {error}",
                    target.id
                )));
            }
            lock(&state).reading = None;
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

/// Reads the first block, or what there is of it.
fn read_block(target: &Target) -> io::Result<()> {
    let flags = if target.direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&target.path)?;
    let mut storage = vec![0; 2 * BLOCK_BYTES];
    let start = storage.as_ptr().align_offset(BLOCK_BYTES);
    file.read_at(&mut storage[start..start + BLOCK_BYTES], 0)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_read_past_the_cache_and_a_missing_one_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 16).unwrap();
        let target = |path: &std::path::Path, direct| Target {
            id: "blk0".into(),
            path: path.into(),
            direct,
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
