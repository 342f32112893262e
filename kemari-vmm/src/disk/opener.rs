//! How images are opened: by this process itself, or, block devices that it may not open, by somebody who
//! may.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenImage {
    /// It is written to, too.
    pub write: bool,
    /// Past the page cache (`O_DIRECT`).
    pub direct: bool,
    /// A block device that this host has mounted, or in a volume, is refused (`O_EXCL`).
    pub exclusive: bool,
}

/// Opens a block device for a process that may not. An error: it does not, for whatever reason.
type Opener = fn(&Path, OpenImage) -> io::Result<File>;

/// Who does so for this process.
static OPENER: OnceLock<Opener> = OnceLock::new();

/// From here on this opens the block devices that the process may not open itself.
pub fn set_opener(opener: Opener) {
    // There is one for the process.
    let _ = OPENER.set(opener);
}

impl OpenImage {
    /// Opens what is at this path.
    ///
    /// # Errors
    /// As of open(2).
    pub fn open(self, path: &Path) -> io::Result<File> {
        let refused = match self.by_itself(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error,
            opened => return opened,
        };
        match OPENER.get() {
            Some(opener) if is_block_device(path) => opener(path, self),
            _ => Err(refused),
        }
    }

    /// The same, without help.
    ///
    /// # Errors
    /// As of open(2).
    pub fn by_itself(self, path: &Path) -> io::Result<File> {
        let flag = |wanted: bool, flag: libc::c_int| if wanted { flag } else { 0 };
        OpenOptions::new()
            .read(true)
            .write(self.write)
            .custom_flags(flag(self.direct, libc::O_DIRECT) | flag(self.exclusive, libc::O_EXCL))
            .open(path)
    }
}

fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}
