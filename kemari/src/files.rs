//! Files of this program's own: locks, records, consoles.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Permissions of what it makes: its user's alone. A console shows what the guest says, a record who may run
/// it.
pub(crate) const MODE: u32 = 0o600;

/// How it opens one: made for its user alone, and never through a symbolic link, which somebody else may have
/// put in its place.
pub(crate) fn own() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(MODE).custom_flags(libc::O_NOFOLLOW);
    options
}

/// At most so many bytes of one.
///
/// # Errors
/// If it cannot be opened or read, or is a symbolic link.
pub(crate) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    own()
        .read(true)
        .open(path)?
        .take(bytes_max)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
