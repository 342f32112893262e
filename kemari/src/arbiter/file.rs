//! An arbiter of files in one directory on storage that every host sees.
//!
//! Each record is a file of its own, `VM.NUMBER.record`; the one with the highest number counts. A record is written
//! aside, made durable, and then *linked* to the next number: `link` fails if that name exists, in one step, on
//! local file systems and on NFS (whose lost replies the link count tells). So there is no lock that a dead host
//! could keep or a cut-off host could lose without noticing, and a record is never overwritten or half written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};

use super::stored::{self, STORED_BYTES_MAX};

/// Name of the file that must stand in the directory. It tells the shared storage from an empty mount point, where
/// "there is no record" would be a lie that starts a VM twice.
pub const MARKER: &str = "kemari-arbiter";

/// Old records kept behind the current one. A record is removed only when the current one is this much younger,
/// so a number that was linked within this distance of the current one was never used before.
const RETAINED: u64 = 64;

/// See the module.
pub struct FileArbiter {
    directory: PathBuf,
    vm: String,
    /// Highest number seen by this process: a store that falls behind it went back in time.
    seen: u64,
}

/// Number and content of the record that counts.
type Current = Option<(u64, Record)>;

impl FileArbiter {
    /// An arbiter for `vm` in `directory`, which must hold a file [`MARKER`] when it is asked.
    pub fn new(directory: &Path, vm: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            vm: vm.to_owned(),
            seen: 0,
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{}.{number:020}.record", self.vm))
    }

    fn says(&self, what: &str, error: &io::Error) -> String {
        format!(
            "the arbiter's directory {}: {what}: {error}",
            self.directory.display()
        )
    }

    fn check_marker(&self) -> Result<(), String> {
        let marker = self.directory.join(MARKER);
        match fs::metadata(&marker) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
                "the arbiter's directory {0} holds no file `{MARKER}`: mount the shared storage, or, once, say that \
                 this directory is the one on it: `mkdir -p {0} && touch {0}/{MARKER}`",
                self.directory.display()
            )),
            Err(error) => Err(self.says("cannot look for its marker", &error)),
        }
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let prefix = format!("{}.", self.vm);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(".record"));
            numbers.extend(
                number
                    .filter(|text| text.len() == 20)
                    .and_then(|text| text.parse::<u64>().ok()),
            );
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    /// A file of this process alone, by a name that no other call uses.
    fn create_aside(&self) -> io::Result<(PathBuf, File)> {
        let path = self
            .directory
            .join(format!(".{}.{:032x}.new", self.vm, rand::random::<u128>()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok((path, file))
    }

    /// The record that counts now. An error is a sentence, and never means that there is none.
    fn current(&mut self) -> Result<Current, String> {
        self.check_marker()?;
        // A change of the directory makes an NFS client forget what it has cached of it.
        let refreshed = self.create_aside().and_then(|(path, _)| fs::remove_file(path));
        refreshed.map_err(|error| self.says("cannot be written", &error))?;
        let numbers = self
            .numbers()
            .map_err(|error| self.says("cannot be listed", &error))?;
        // What is acted upon must not vanish with the storage's power.
        self.sync_directory()
            .map_err(|error| self.says("cannot be made durable", &error))?;
        let number = numbers.last().copied().unwrap_or(0);
        if number < self.seen {
            return Err(format!(
                "the arbiter's directory {} went back in time (record {number}, after {} was seen): it was restored \
                 or replaced. Stop both sides and find out which VM state is the last",
                self.directory.display(),
                self.seen
            ));
        }
        self.seen = number;
        if number == 0 {
            return Ok(None);
        }
        let path = self.path(number);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(STORED_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| format!("the arbiter's record {} cannot be read: {error}", path.display()))?;
        match stored::decode(&bytes, &self.vm) {
            Ok(record) => Ok(Some((number, record))),
            Err(error) => Err(format!(
                "the arbiter's record {} cannot be used: {error}",
                path.display()
            )),
        }
    }

    fn swap(&mut self, expected: Option<&Record>, new: &Record) -> ArbiterAnswer {
        let current = match self.current() {
            Ok(current) => current,
            Err(sentence) => return ArbiterAnswer::Unavailable(sentence),
        };
        if current.as_ref().map(|(_, record)| record) != expected {
            return ArbiterAnswer::Conflict(current.map(|(_, record)| record));
        }
        let number = current.map_or(0, |(number, _)| number) + 1;
        let aside = match self.write_aside(new) {
            Ok(aside) => aside,
            Err(error) => return ArbiterAnswer::Unavailable(self.says("cannot take a new record", &error)),
        };
        let answer = self.link(&aside, number);
        if let Err(error) = fs::remove_file(&aside) {
            tracing::debug!("cannot remove {}: {error}", aside.display());
        }
        answer
    }

    fn write_aside(&self, record: &Record) -> io::Result<PathBuf> {
        let (path, mut file) = self.create_aside()?;
        let written = file
            .write_all(&stored::encode(record))
            .and_then(|()| file.sync_all());
        match written {
            Ok(()) => Ok(path),
            Err(error) => {
                // The error that counts is the first one.
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    fn link(&mut self, aside: &Path, number: u64) -> ArbiterAnswer {
        let linked = fs::hard_link(aside, self.path(number));
        // A repeated request over NFS fails although the first one was carried out: the link count knows.
        let ours = linked.is_ok() || fs::metadata(aside).is_ok_and(|metadata| metadata.nlink() == 2);
        match linked {
            Err(error) if !ours => match error.kind() {
                io::ErrorKind::AlreadyExists => match self.current() {
                    Ok(current) => ArbiterAnswer::Conflict(current.map(|(_, record)| record)),
                    Err(sentence) => ArbiterAnswer::Unavailable(sentence),
                },
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
                    ArbiterAnswer::Unavailable(self.says(
                        "its file system has no hard links, which this arbiter needs",
                        &error,
                    ))
                }
                _ => ArbiterAnswer::Unknown(self.says("a new record may or may not stand there", &error)),
            },
            _ => self.confirm(number),
        }
    }

    /// After the link: the record stands for good, unless this process slept so long that the number was used and
    /// removed meanwhile.
    fn confirm(&mut self, number: u64) -> ArbiterAnswer {
        let numbers = match self.sync_directory().and_then(|()| self.numbers()) {
            Ok(numbers) => numbers,
            Err(error) => return ArbiterAnswer::Unknown(self.says("cannot be made durable", &error)),
        };
        let highest = numbers.last().copied().unwrap_or(0);
        if highest < number || highest >= number + RETAINED {
            return ArbiterAnswer::Unknown(format!(
                "record {number} came while the arbiter is at {highest}: it is read again"
            ));
        }
        self.seen = self.seen.max(highest);
        for old in numbers.iter().filter(|old| **old + RETAINED <= highest) {
            if let Err(error) = fs::remove_file(self.path(*old)) {
                tracing::debug!("cannot remove the old record {old}: {error}");
            }
        }
        ArbiterAnswer::Swapped
    }
}

impl Arbiter for FileArbiter {
    fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        match request {
            ArbiterRequest::Read => match self.current() {
                Ok(current) => ArbiterAnswer::Record(current.map(|(_, record)| record)),
                Err(sentence) => ArbiterAnswer::Unavailable(sentence),
            },
            ArbiterRequest::Swap { expected, new } => self.swap(expected.as_ref(), new),
        }
    }
}
