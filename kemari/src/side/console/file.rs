//! The console's file: it has a largest size, so that no guest fills its host's disk. When half of that is
//! written, the file takes the name of the one before, `PATH.1`, and begins anew.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::files;

/// See the module.
pub struct ConsoleFile {
    path: PathBuf,
    open: Opened,
    /// Bytes of both files together.
    bytes_max: u64,
    /// Why what was written is lost, as long as no new file can be begun.
    trouble: Option<String>,
}

impl ConsoleFile {
    /// Appends to the file at `path`, or makes it. With the file before it never has more than `bytes_max`
    /// bytes.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            open: open(path)?,
            bytes_max,
            trouble: None,
        })
    }

    /// Whether somebody has removed the file, or moved it elsewhere.
    fn is_gone(&self) -> bool {
        let stands_there = fs::symlink_metadata(&self.path).map(|metadata| place(&metadata));
        match stands_there {
            Ok(place) => place != self.open.place,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    fn is_full_with(&self, bytes: &[u8]) -> bool {
        let written = self.open.bytes.unwrap_or(0);
        written > 0 && written + bytes.len() as u64 > self.bytes_max / 2
    }

    fn put_aside(&self) -> io::Result<()> {
        match fs::rename(&self.path, before(&self.path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Begins a new file once the place is free. Without one, nothing more is written to this.
    fn begin(&mut self, freed: io::Result<()>, why: &str) -> io::Result<()> {
        match freed.and_then(|()| open(&self.path)) {
            Ok(open) => {
                (self.open, self.trouble) = (open, None);
                Ok(())
            }
            Err(error) => {
                let trouble = error.to_string();
                if self.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!("console output is lost: {} {why}: {trouble}", self.path.display());
                }
                self.trouble = Some(trouble);
                Err(error)
            }
        }
    }
}

impl Write for ConsoleFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.open.bytes.is_some() && self.is_gone() {
            self.begin(Ok(()), "was removed and cannot be made again")?;
        }
        if self.is_full_with(bytes) {
            self.begin(self.put_aside(), "is full and cannot be put aside")?;
        }
        let count = self.open.file.write(bytes)?;
        self.open.bytes = self.open.bytes.map(|written| written + count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open.file.flush()
    }
}

/// What is written to.
struct Opened {
    file: File,
    /// Bytes in the file; none are counted of what is no regular file, as a terminal, and does not grow.
    bytes: Option<u64>,
    place: (u64, u64),
}

/// Which file it is, whatever its name: its device and inode.
fn place(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The name of the file before.
fn before(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

/// Opens what stands there, or makes it. A pipe without a reader is an error: this process does not wait for
/// one.
fn open(path: &Path) -> io::Result<Opened> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = files::own()
        .custom_flags(flags)
        .create(true)
        .append(true)
        .open(path)?;
    // Whoever writes waits: it is a thread of the console's own.
    rustix::io::ioctl_fionbio(&file, false)?;
    let metadata = file.metadata()?;
    Ok(Opened {
        file,
        bytes: metadata.is_file().then_some(metadata.len()),
        place: place(&metadata),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn two_files_hold_the_newest_output_and_no_more_than_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let mut all = Vec::new();
        for part in 0..4 {
            // As many lives of the process.
            let mut console = ConsoleFile::open(&path, 2000).unwrap();
            for line in 0..100 {
                let line = format!("part {part} line {line}\n");
                console.write_all(line.as_bytes()).unwrap();
                all.extend(line.into_bytes());
                let bytes = |path| fs::metadata(path).map_or(0, |metadata| metadata.len());
                assert!(bytes(path.clone()) + bytes(before(&path)) <= 2000);
            }
        }
        let kept = [fs::read(before(&path)).unwrap(), fs::read(&path).unwrap()].concat();
        assert!(kept.len() > 1000 && all.ends_with(&kept));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            files::MODE
        );
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_grows_no_more_and_goes_on_when_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        fs::create_dir(before(&path)).unwrap();
        let mut console = ConsoleFile::open(&path, 200).unwrap();
        console.write_all(&[b'a'; 100]).unwrap();
        assert!(console.write_all(b"lost").is_err());
        assert_eq!(fs::metadata(&path).unwrap().len(), 100);
        fs::remove_dir(before(&path)).unwrap();
        console.write_all(b"kept").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"kept");
    }

    #[test]
    fn a_file_that_somebody_removed_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let mut console = ConsoleFile::open(&path, 200).unwrap();
        console.write_all(&[b'a'; 100]).unwrap();
        fs::remove_file(&path).unwrap();
        console.write_all(b"kept").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"kept");
    }

    #[test]
    fn a_file_that_somebody_removed_or_moved_is_made_again_long_before_it_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (directory.path().join("console"), directory.path().join("moved"));
        let mut console = ConsoleFile::open(&path, 1 << 20).unwrap();
        console.write_all(b"gone").unwrap();
        fs::remove_file(&path).unwrap();
        console.write_all(b"one").unwrap();
        fs::rename(&path, &elsewhere).unwrap();
        console.write_all(b"two").unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's ").unwrap();
        console.write_all(b"three").unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"one");
        assert_eq!(fs::read(&path).unwrap(), b"another's three");
    }

    #[test]
    fn a_link_is_not_followed_a_pipe_not_waited_for_and_a_device_has_no_size() {
        let directory = tempfile::tempdir().unwrap();
        let (precious, link) = (directory.path().join("precious"), directory.path().join("link"));
        fs::write(&precious, "keep me").unwrap();
        symlink(&precious, &link).unwrap();
        assert!(ConsoleFile::open(&link, 100).is_err());
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        assert!(ConsoleFile::open(&pipe, 100).is_err());
        let mut nowhere = ConsoleFile::open(Path::new("/dev/null"), 100).unwrap();
        (0..10).for_each(|_| nowhere.write_all(&[0; 60]).unwrap());
        assert_eq!(fs::read_to_string(&precious).unwrap(), "keep me");
    }
}
