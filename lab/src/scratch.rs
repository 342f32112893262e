//! Directories for one run, and the end of those that dead runs left behind.

use std::fs;
use std::path::Path;
use std::process::id;

use tempfile::TempDir;

use crate::cache;
use crate::error::{Context, Result};

/// Begin of every such directory's name; the process id of its run follows.
const PREFIX: &str = "kemari-run-";

/// A directory for the disks of a test, removed when dropped: under `target/lab`, because a file system in
/// memory (which `/tmp` may be) does not always serve reads and writes past the page cache.
pub fn scratch_dir() -> Result<TempDir> {
    dir_in(&cache::dir()?)
}

/// A directory for sockets, whose paths must be short (108 bytes), and for logs.
pub(crate) fn socket_dir() -> Result<TempDir> {
    dir_in(&std::env::temp_dir())
}

fn dir_in(parent: &Path) -> Result<TempDir> {
    let what = || format!("make a directory in {}", parent.display());
    for entry in fs::read_dir(parent).context(what)?.flatten() {
        if is_left_over(&entry.file_name().to_string_lossy()) {
            // Another run may be sweeping too: what cannot be removed now can be later.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    TempDir::with_prefix_in(format!("{PREFIX}{}-", id()), parent).context(what)
}

/// Whether a directory of this name belongs to a run whose process is gone.
fn is_left_over(name: &str) -> bool {
    let pid = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dead_runs_left_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let mine = dir_in(parent.path()).unwrap();
        // No process has an id above the kernel's limit of 2^22.
        let dead = parent.path().join(format!("{PREFIX}4194305-abc"));
        let foreign = parent.path().join("something-else-4194305");
        [&dead, &foreign]
            .iter()
            .for_each(|path| fs::create_dir_all(path.join("deep")).unwrap());
        let _another = dir_in(parent.path()).unwrap();
        assert!(mine.path().exists() && foreign.exists() && !dead.exists());
    }
}
