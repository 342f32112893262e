//! An arbiter of files in one directory on storage that every host sees.
//!
//! Each record is a file of its own, `VM.NUMBER.record`; the one with the highest number counts. A record is
//! written aside, made durable, and then *linked* to the next number: `link` fails if that name exists, in
//! one step, on local file systems and on NFS (whose lost replies the link count tells). So there is no lock
//! that a dead host could keep or a cut-off host could lose without noticing, and a record is never
//! overwritten or half written.
//!
//! Why it holds on NFS, and when the storage loses its power: docs/operations.md, "Arbiter".

mod store;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};

use super::WENT_BACK_ADVICE;
use super::stored::{self, STORED_BYTES_MAX};
use store::{Directory, Store};

/// Name of the file that must stand in the directory. It tells the shared storage from an empty mount point,
/// where "there is no record" would be a lie that starts a VM twice.
pub const MARKER: &str = "kemari-arbiter";

/// Old records kept behind the current one. A record is removed only when the current one is this much
/// younger, so a number that was linked within this distance of the current one was never used before.
const RETAINED: u64 = 64;

/// See the module.
pub struct FileArbiter<S = Directory> {
    store: S,
    vm: String,
    /// Highest number seen by this process: a store that falls behind it went back in time.
    seen: Seen,
}

/// See [`FileArbiter`]: what those that work on one directory together have seen there.
pub(super) type Seen = Arc<AtomicU64>;

/// Number and content of the record that counts.
type Current = Option<(u64, Record)>;

impl FileArbiter {
    /// An arbiter for `vm` in `directory`, which must hold a file [`MARKER`] when it is asked.
    pub fn new(directory: &Path, vm: &str) -> Self {
        Self::on(Directory::at(directory), vm)
    }

    /// Another one for the same directory, that knows what this one has seen.
    pub(super) fn beside(&self, directory: &Path) -> Self {
        Self {
            seen: self.seen.clone(),
            ..Self::new(directory, &self.vm)
        }
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.clone()
    }
}

impl<S: Store> FileArbiter<S> {
    fn on(store: S, vm: &str) -> Self {
        Self {
            store,
            vm: vm.to_owned(),
            seen: Seen::default(),
        }
    }

    fn name(&self, number: u64) -> String {
        format!("{}.{number:020}.record", self.vm)
    }

    fn says(&self, what: &str, error: &io::Error) -> String {
        format!("the arbiter's directory {}: {what}: {error}", self.store.place())
    }

    fn check_marker(&self) -> Result<(), String> {
        match self.store.has(MARKER) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!(
                "the arbiter's directory {0} holds no file `{MARKER}`: mount the shared storage, or, once, \
                 say that this directory is the one on it: `mkdir -p {0} && touch {0}/{MARKER}`",
                self.store.place()
            )),
            Err(error) => Err(self.says("cannot look for its marker", &error)),
        }
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        let prefix = format!("{}.", self.vm);
        let mut numbers = Vec::new();
        for name in self.store.list()? {
            let number = name
                .strip_prefix(&prefix)
                .and_then(|name| name.strip_suffix(".record"));
            numbers.extend(
                number
                    .filter(|text| text.len() == 20)
                    .and_then(|text| text.parse::<u64>().ok()),
            );
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// A name for a file of this process alone, that no other call uses.
    fn name_aside(&self) -> String {
        format!(".{}.{:032x}.new", self.vm, rand::random::<u128>())
    }

    /// The record that counts now. An error is a sentence, and never means that there is none.
    fn current(&mut self) -> Result<Current, String> {
        self.check_marker()?;
        let seen = self.seen.load(Ordering::Acquire);
        // A change of the directory makes an NFS client forget what it has cached of it.
        let aside = self.name_aside();
        let refreshed = self.store.create(&aside).and_then(|()| self.store.remove(&aside));
        refreshed.map_err(|error| self.says("cannot be written", &error))?;
        let numbers = self
            .numbers()
            .map_err(|error| self.says("cannot be listed", &error))?;
        // What is acted upon must not vanish with the storage's power.
        self.store
            .sync()
            .map_err(|error| self.says("cannot be made durable", &error))?;
        let number = numbers.last().copied().unwrap_or(0);
        if number < seen {
            return Err(format!(
                "the arbiter's directory {} went back in time (record {number}, after {seen} was seen): it \
                 was restored or replaced. {WENT_BACK_ADVICE}",
                self.store.place()
            ));
        }
        self.seen.fetch_max(number, Ordering::AcqRel);
        if number == 0 {
            return Ok(None);
        }
        let name = self.name(number);
        let cannot = |what: &str, why: String| {
            format!(
                "the arbiter's record {}/{name} cannot be {what}: {why}",
                self.store.place()
            )
        };
        let bytes = self
            .store
            .read(&name, STORED_BYTES_MAX as u64 + 1)
            .map_err(|error| cannot("read", error.to_string()))?;
        match stored::decode(&bytes, &self.vm) {
            Ok(record) => Ok(Some((number, record))),
            Err(error) => Err(cannot("used", error.to_string())),
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
        if let Err(error) = self.store.remove(&aside) {
            tracing::debug!("cannot remove {aside}: {error}");
        }
        answer
    }

    /// Reads the record, and proves that another could be written: by the steps of a swap,
    /// with names that do not count.
    pub(super) fn probe(&mut self) -> Result<Option<Record>, String> {
        let current = self.current()?.map(|(_, record)| record);
        let second = self.name_aside();
        let aside = self.create_aside(&[b'x'; STORED_BYTES_MAX / 8]);
        let proved = aside.and_then(|aside| {
            let linked = self.link_once(&aside, &second).and_then(|()| self.store.sync());
            // Whatever failed, nothing is left: the next probe makes new names. The error that counts is the
            // first one.
            let removed = [self.store.remove(&second), self.store.remove(&aside)];
            linked.and(removed.into_iter().collect::<io::Result<()>>())
        });
        proved.map_err(|error| self.says("cannot take a new record", &error))?;
        Ok(current)
    }

    fn write_aside(&mut self, record: &Record) -> io::Result<String> {
        self.create_aside(&stored::encode(record))
    }

    fn create_aside(&mut self, bytes: &[u8]) -> io::Result<String> {
        let aside = self.name_aside();
        self.store.create(&aside)?;
        match self.store.write(&aside, bytes) {
            Ok(()) => Ok(aside),
            Err(error) => {
                // The error that counts is the first one.
                let _ = self.store.remove(&aside);
                Err(error)
            }
        }
    }

    /// Gives a file of its own a second name. A repeated request over NFS fails although the first one was
    /// carried out: the link count knows.
    fn link_once(&mut self, aside: &str, second: &str) -> io::Result<()> {
        let linked = self.store.link(aside, second);
        match &linked {
            Err(_) if self.store.links(aside).is_ok_and(|links| links == 2) => Ok(()),
            _ => linked,
        }
    }

    fn link(&mut self, aside: &str, number: u64) -> ArbiterAnswer {
        match self.link_once(aside, &self.name(number)) {
            Err(error) => match error.kind() {
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
            Ok(()) => self.confirm(number),
        }
    }

    /// After the link: the record stands for good, unless this process slept so long that the number was used
    /// and removed meanwhile.
    fn confirm(&mut self, number: u64) -> ArbiterAnswer {
        let numbers = match self.store.sync().and_then(|()| self.numbers()) {
            Ok(numbers) => numbers,
            Err(error) => return ArbiterAnswer::Unknown(self.says("cannot be made durable", &error)),
        };
        let highest = numbers.last().copied().unwrap_or(0);
        if highest < number || highest >= number + RETAINED {
            return ArbiterAnswer::Unknown(format!(
                "record {number} came while the arbiter is at {highest}: it is read again"
            ));
        }
        self.seen.fetch_max(highest, Ordering::AcqRel);
        for old in numbers.iter().filter(|old| **old + RETAINED <= highest) {
            if let Err(error) = self.store.remove(&self.name(*old)) {
                tracing::debug!("cannot remove the old record {old}: {error}");
            }
        }
        ArbiterAnswer::Swapped
    }
}

impl<S: Store + Send> Arbiter for FileArbiter<S> {
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

#[cfg(test)]
#[path = "file/power_cut_test.rs"]
mod power_cut;
#[cfg(test)]
#[path = "file/recorded_test.rs"]
mod recorded;
#[cfg(test)]
#[path = "file/sync_test.rs"]
mod sync;
