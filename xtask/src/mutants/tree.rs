//! A copy of the tree that is edited.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::list::Mutant;
use crate::tools::{output_of, root, target_dir};

/// The copy: `target/mutants/tree`, and what is built of it, kept from run to run, so that only what has
/// changed is built again.
pub(super) struct Tree {
    directory: PathBuf,
    /// Nobody else edits it meanwhile.
    _lock: File,
}

impl Tree {
    /// A copy of the files that git knows, or would know, as they are.
    pub(crate) fn copied() -> Result<Self> {
        let directory = target_dir().join("mutants/tree");
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.with_file_name("lock");
        let lock = File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
        lock.lock()
            .with_context(|| format!("{} cannot be locked", path.display()))?;
        let mut command = Command::new("git");
        // A checkout may be another user's.
        command.current_dir(root()).args(["-c", "safe.directory=*"]);
        let listed =
            output_of(command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
        let files: BTreeSet<&Path> = listed
            .split('\0')
            .map(Path::new)
            .filter(|file| root().join(file).is_file())
            .collect();
        for file in &files {
            copy(&root().join(file), &directory.join(file))
                .with_context(|| format!("cannot copy {}", file.display()))?;
        }
        remove_others(&directory, &directory, &files)?;
        let tree = Self {
            directory,
            _lock: lock,
        };
        fs::create_dir_all(tree.target_dir())?;
        Ok(tree)
    }

    /// Where it is.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where what is built of it is: beside it.
    pub(crate) fn target_dir(&self) -> PathBuf {
        self.directory.with_file_name("target")
    }

    /// Makes an edit, does something, and takes the edit back.
    pub(crate) fn edited<T>(&self, mutant: &Mutant, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.directory.join(&mutant.file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let edited = mutant.apply(&text)?;
        fs::write(&path, edited).with_context(|| format!("cannot write {}", path.display()))?;
        let result = work();
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        result
    }
}

/// Copies a file unless it is there: cargo goes by the time of a file.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from)?;
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(to, bytes)?;
    Ok(fs::set_permissions(to, fs::metadata(from)?.permissions())?)
}

/// What programs of the copy's own workspaces are built in, as the bare guest by the tests that want it:
/// it is kept, too.
const BUILT: &str = "target";

/// Removes files that the checkout has no more.
fn remove_others(root: &Path, directory: &Path, files: &BTreeSet<&Path>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if entry.file_name() == BUILT {
                continue;
            }
            remove_others(root, &path, files)?;
        } else if !path.strip_prefix(root).is_ok_and(|file| files.contains(file)) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}
