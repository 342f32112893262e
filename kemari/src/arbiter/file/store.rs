//! What the file arbiter asks of its storage, operation by operation,
//! so that a test can lose its power between any two.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::files;

/// One directory of files.
pub trait Store {
    /// Where it is, for people.
    fn place(&self) -> impl Display;
    /// Whether there is a file of this name.
    fn has(&self, name: &str) -> io::Result<bool>;
    /// Makes an empty file; fails if the name exists (O_EXCL).
    fn create(&mut self, name: &str) -> io::Result<()>;
    /// Writes a file's content, and returns when it is durable. Its name need not be.
    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Gives a file a second name, in one step; fails if that exists.
    fn link(&mut self, name: &str, second: &str) -> io::Result<()>;
    /// How many names a file has.
    fn links(&self, name: &str) -> io::Result<u64>;
    /// Removes a name.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// All names.
    fn list(&self) -> io::Result<Vec<String>>;
    /// At most `bytes_max` bytes of a file.
    fn read(&self, name: &str, bytes_max: u64) -> io::Result<Vec<u8>>;
    /// Returns when all changes of names so far are durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory of the operating system.
pub struct Directory(PathBuf);

impl Directory {
    /// The directory at `path`, which need not be there yet.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Store for Directory {
    fn place(&self) -> impl Display {
        self.0.display()
    }

    fn has(&self, name: &str) -> io::Result<bool> {
        fs::exists(self.0.join(name))
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let path = self.0.join(name);
        files::own().write(true).create_new(true).open(path).map(drop)
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = files::own().write(true).open(self.0.join(name))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn link(&mut self, name: &str, second: &str) -> io::Result<()> {
        fs::hard_link(self.0.join(name), self.0.join(second))
    }

    fn links(&self, name: &str) -> io::Result<u64> {
        // The attributes that an NFS client has cached may be older than the link:
        // an open file's are asked for anew.
        Ok(File::open(self.0.join(name))?.metadata()?.nlink())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn read(&self, name: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        files::read(&self.0.join(name), bytes_max)
    }

    fn sync(&mut self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use kemari_vmm::confine::{self, call};

    use super::*;

    #[test]
    fn what_is_not_durable_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Directory::at(directory.path());
        store.create("record").expect("a file");
        thread::scope(|threads| {
            threads.spawn(|| {
                store.write("record", b"one").expect("it is durable");
                store.sync().expect("it is durable");
                let syncs = [
                    call(libc::SYS_fsync, "what this thread gets no more"),
                    call(libc::SYS_fdatasync, "what this thread gets no more"),
                ];
                confine::refuse(&syncs, libc::EIO).expect("calls can be refused");
                let errors = [store.write("record", b"two"), store.sync()].map(|result| {
                    let error = result.expect_err("nobody knows whether it is durable");
                    error.raw_os_error()
                });
                assert_eq!(errors, [Some(libc::EIO); 2]);
            });
        });
    }
}
