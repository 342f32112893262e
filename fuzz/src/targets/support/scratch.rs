//! A file with the input's bytes, for what takes a path.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use tempfile::NamedTempFile;

/// Where files are memory.
const MEMORY: &str = "/dev/shm";

/// A file that is gone when this is dropped.
pub(crate) struct Scratch(NamedTempFile);

impl Scratch {
    /// A file of these bytes, behind which zeros may follow up to `length`.
    pub(crate) fn with(bytes: &[u8], length: u64) -> Self {
        let file = match Path::new(MEMORY).is_dir() {
            true => NamedTempFile::new_in(MEMORY),
            false => NamedTempFile::new(),
        };
        let mut file = file.expect("a temporary file");
        file.write_all(bytes).expect("room for an input");
        file.seek(SeekFrom::Start(0)).expect("a file can be rewound");
        if length > bytes.len() as u64 {
            file.as_file().set_len(length).expect("a sparse file");
        }
        Self(file)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}
