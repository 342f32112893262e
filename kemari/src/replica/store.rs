//! Where a record lies: sectors that are durable only after a sync.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use crate::files;

/// What a power cut leaves whole or as it was before, in bytes.
pub(crate) const SECTOR_BYTES: usize = 512;

/// A row of bytes on stable storage. A power cut leaves of what was written since the last sync any part, in
/// whole sectors.
pub(crate) trait Store: Send {
    /// Reads exactly so many bytes.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes; not durable yet.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes durable what was written.
    fn sync(&mut self) -> io::Result<()>;
    /// How many bytes there are.
    fn bytes(&self) -> io::Result<u64>;
}

/// A file of the host.
pub(crate) struct FileStore(File);

impl FileStore {
    /// Opens a record file that is there; none if there is none.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        match files::own().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(Self(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same, of what is on the disk. Whoever wrote the file last may have died before that was durable:
    /// it is made so. After a write-back that failed the host's cache proves nothing: it forgets the file.
    pub(crate) fn open_durable(path: &Path) -> io::Result<Option<Self>> {
        let store = Self::open(path)?;
        if let Some(Self(file)) = &store {
            file.sync_data()?;
            fadvise(file, 0, None, Advice::DontNeed)?;
        }
        Ok(store)
    }

    /// Makes a record file of so many zeros, all of them written: later writes need no room. Whatever was
    /// there under its name is gone.
    pub(super) fn create(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = files::own()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        let zeros = [0; 64 << 10];
        let mut offset = 0;
        while offset < bytes {
            let part = (bytes - offset).min(zeros.len() as u64);
            file.write_all_at(&zeros[..part as usize], offset)?;
            offset += part;
        }
        file.sync_all()?;
        // The name, too, must outlive a power cut.
        if let Some(directory) = path
            .parent()
            .filter(|directory| !directory.as_os_str().is_empty())
        {
            File::open(directory)?.sync_all()?;
        }
        Ok(Self(file))
    }
}

impl Store for FileStore {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use kemari_vmm::confine::{self, call};

    use super::*;

    #[test]
    fn a_record_whose_cache_cannot_be_forgotten_or_made_durable_is_not_opened() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("record");
        FileStore::create(&path, 512).expect("a record");
        FileStore::open_durable(&path).expect("it is durable");
        for number in [libc::SYS_fdatasync, libc::SYS_fadvise64] {
            thread::scope(|threads| {
                threads.spawn(|| {
                    confine::refuse(&[call(number, "what this thread gets no more")], libc::EIO)
                        .expect("calls can be refused");
                    let error = FileStore::open_durable(&path).err().expect("it proves nothing");
                    assert_eq!(error.raw_os_error(), Some(libc::EIO));
                    FileStore::open(&path).expect("to look at it is enough");
                });
            });
        }
    }
}
