//! Storage that takes files and names, and cannot make them durable, or loses the word that it took one.

use std::fs;

use super::*;

/// A directory whose next so many syncs succeed, and no further ones.
struct Failing {
    directory: Directory,
    syncs: u32,
    /// A link is carried out, and its repetition finds the name there (an NFS reply that got lost).
    loses_replies: bool,
}

impl Store for Failing {
    fn place(&self) -> impl std::fmt::Display {
        "the failing storage"
    }

    fn has(&self, name: &str) -> io::Result<bool> {
        self.directory.has(name)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        self.directory.create(name)
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.directory.write(name, bytes)
    }

    fn link(&mut self, name: &str, second: &str) -> io::Result<()> {
        self.directory.link(name, second)?;
        match self.loses_replies {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => Ok(()),
        }
    }

    fn links(&self, name: &str) -> io::Result<u64> {
        self.directory.links(name)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.directory.remove(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.directory.list()
    }

    fn read(&self, name: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        self.directory.read(name, bytes_max)
    }

    fn sync(&mut self) -> io::Result<()> {
        let left = self.syncs.checked_sub(1);
        self.syncs = left.ok_or_else(|| io::Error::other("no power"))?;
        self.directory.sync()
    }
}

/// What a probe finds, so many times, with storage that was never used: nothing may be left of any of them.
fn probe_thrice(syncs: u32, loses_replies: bool) -> Vec<Result<Option<Record>, String>> {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(MARKER), "").unwrap();
    let mut found = Vec::new();
    for _ in 0..3 {
        let store = Failing {
            directory: Directory::at(directory.path()),
            syncs,
            loses_replies,
        };
        found.push(FileArbiter::on(store, "demo").probe());
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
    found
}

#[test]
fn a_probe_that_fails_leaves_nothing_behind() {
    // The reading's sync succeeds, and not the one that proves.
    for found in probe_thrice(1, false) {
        let trouble = found.unwrap_err();
        assert!(
            trouble.contains("cannot take a new record: no power"),
            "{trouble}"
        );
    }
}

#[test]
fn a_probe_whose_reply_was_lost_is_no_trouble() {
    assert_eq!(probe_thrice(9, true), [Ok(None), Ok(None), Ok(None)]);
}

#[test]
fn who_slept_until_its_number_may_have_been_used_again_does_not_know_what_it_won() {
    for (number, highest, is_known) in [
        (3, 3, true),
        (3, 3 + RETAINED - 1, true),
        (3, 3 + RETAINED, false),
        (4, 3, false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut arbiter = FileArbiter::new(directory.path(), "demo");
        for number in [3, highest] {
            fs::write(directory.path().join(arbiter.name(number)), "").unwrap();
        }
        let answer = arbiter.confirm(number);
        let is_told = match answer {
            ArbiterAnswer::Swapped => true,
            ArbiterAnswer::Unknown(_) => false,
            other => panic!("{other:?}"),
        };
        assert_eq!(is_told, is_known, "{number} while {highest} is the highest");
    }
}

#[test]
fn what_stands_there_and_could_not_be_confirmed_is_unknown() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(MARKER), "").unwrap();
    let store = Failing {
        directory: Directory::at(directory.path()),
        // The reading's sync succeeds, and not the one behind the link.
        syncs: 1,
        loses_replies: false,
    };
    let new = crate::arbiter::testing::record(1, kemari_sync::Phase::Won);
    let answer = FileArbiter::on(store, "demo").execute(&ArbiterRequest::Swap { expected: None, new });
    assert!(matches!(answer, ArbiterAnswer::Unknown(_)), "{answer:?}");
}
