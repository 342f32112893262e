//! What this host knows, on its disk: written by a thread of its own, since a disk may hang, and a takeover
//! waits for none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kemari_sync::Record;
use tracing::warn;

use crate::arbiter::stored::encode;
use crate::files;
use crate::threads::{self, Monitor};

#[derive(Default)]
struct State {
    /// What is to be written: a newer record takes the place of an older one.
    next: Option<Record>,
    is_writing: bool,
    is_over: bool,
}

impl Monitor<State> {
    /// The next record, once the one before is dealt with.
    fn next(&self) -> Option<Record> {
        let mut state = self.lock();
        state.is_writing = false;
        self.notify();
        loop {
            if let Some(record) = state.next.take() {
                state.is_writing = true;
                return Some(record);
            }
            if state.is_over {
                return None;
            }
            state = self.wait(state);
        }
    }
}

/// The way to the writing thread.
pub(crate) struct Keeper(Arc<Monitor<State>>);

impl Keeper {
    /// Starts the thread, which writes to `path`.
    pub(super) fn start(path: PathBuf) -> io::Result<Self> {
        let shared = Arc::new(Monitor::<State>::default());
        let records = shared.clone();
        threads::start("record", move || {
            while let Some(record) = records.next() {
                keep(&path, &record);
            }
        })?;
        Ok(Self(shared))
    }

    /// Hands a record over.
    pub(super) fn give(&self, record: &Record) {
        self.0.lock().next = Some(record.clone());
        self.0.notify();
    }

    /// Returns when what was handed over is kept, or cannot be.
    pub(super) fn wait(&self) {
        let is_busy = |state: &mut State| state.is_writing || state.next.is_some();
        drop(self.0.wait_while(is_busy));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.notify();
    }
}

/// Replaces the file. If that fails, what stood there must not be believed at the next start either: by an
/// older `Stopped` the VM would be booted a second time.
fn keep(path: &Path, record: &Record) {
    let Err(error) = write(path, record) else { return };
    let shown = path.display();
    match forget(path) {
        Ok(()) => warn!(
            "what this host knows of the VM cannot be kept in {shown} ({error}); after a restart it knows \
             nothing, and the operator must say who is dead"
        ),
        Err(worse) => warn!(
            "what this host knows of the VM cannot be kept in {shown} ({error}), nor can what stands there \
             be made void ({worse}): before a restart, look who has the VM, and remove that file"
        ),
    }
}

/// It is the old one or the new one, whatever fails.
fn write(path: &Path, record: &Record) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = files::own()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&beside)?;
    file.write_all(&encode(record))?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_directory(path)
}

/// Leaves a file that says nothing: that there is none would be a word, too.
fn forget(path: &Path) -> io::Result<()> {
    let file = files::own().write(true).create(true).truncate(true).open(path)?;
    file.sync_all()?;
    sync_directory(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
