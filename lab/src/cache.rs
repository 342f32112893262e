//! Made once, kept under `target/lab`: packages, kernels, images.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};

/// The workspace.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
}

/// The build directory of cargo.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// `target/lab`, made if it is missing.
pub(crate) fn dir() -> Result<PathBuf> {
    let dir = target_dir().join("lab");
    fs::create_dir_all(&dir).context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}

/// Returns `target/lab/NAME`; where it is missing, `make` first makes it under the path it is given.
///
/// One process at a time makes things; what was made half is never found under its name.
pub(crate) fn entry(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let dir = dir()?;
    let path = dir.join(name);
    let exists = || fs::exists(&path).context(|| format!("look for {}", path.display()));
    if exists()? {
        return Ok(path);
    }
    let lock_path = dir.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).context(|| format!("make {}", lock_path.display()))?;
    lock.lock().context(|| format!("lock {}", lock_path.display()))?;
    if exists()? {
        return Ok(path);
    }
    let half = dir.join(format!("{name}.half"));
    remove(&half)?;
    make(&half)?;
    fs::rename(&half, &path).context(|| format!("name {}", path.display()))?;
    Ok(path)
}

/// Removes a file or a directory with all that is in it, if it exists.
fn remove(path: &Path) -> Result<()> {
    let gone = match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    gone.context(|| format!("remove {}", path.display()))
}

/// A short name for what something is made of. Stable for one standard library, which is enough for a cache.
pub(crate) fn key(parts: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Reads a file whole.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).context(|| format!("read {}", path.display()))
}

/// Writes a file whole.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).context(|| format!("write {}", path.display()))
}
