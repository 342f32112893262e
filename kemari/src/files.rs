//! Files of this program's own: locks, records, consoles.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

/// Permissions of what it makes: its user's alone. A console shows what the guest says, a record who may run
/// it.
pub const MODE: u32 = 0o600;

/// How it opens one: made for its user alone, and never through a symbolic link, which somebody else may have
/// put in its place.
pub fn own() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(MODE).custom_flags(libc::O_NOFOLLOW);
    options
}
