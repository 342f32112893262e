//! The storage loses its power at each operation, and with it any part of what was not made durable.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use kemari_sync::{Incarnation, Phase};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Operations at which the power is cut, one after the other: more than the story has.
const OPERATIONS_MAX: u64 = 120;
/// For each, so many draws of what is lost.
const DRAWS: u64 = 12;

/// A file system: files, which outlive their names, and the names that point to them.
#[derive(Default)]
struct Disk {
    /// Content, written or empty. A write is durable when it returns, so a file is never half there.
    files: Vec<Vec<u8>>,
    names: BTreeMap<String, usize>,
    /// The names as they are on the medium.
    durable: BTreeMap<String, usize>,
    /// Operations until the power is cut.
    left: Option<u64>,
    /// The rule taken out: making names durable does nothing.
    forgets: bool,
}

impl Disk {
    /// Of each changed name by itself, the change is on the medium or not.
    fn cut_power(&mut self, random: &mut StdRng) {
        let all: Vec<String> = self.names.keys().chain(self.durable.keys()).cloned().collect();
        for name in all {
            if random.random_bool(0.5) {
                match self.names.get(&name) {
                    Some(file) => self.durable.insert(name, *file),
                    None => self.durable.remove(&name),
                };
            }
        }
        self.names = self.durable.clone();
        self.left = None;
    }
}

/// The disk as a host sees it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Disk>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    /// Begins an operation, if there is power for it.
    fn begin(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.lock();
        match &mut disk.left {
            Some(0) => return Err(io::Error::other("no power")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(disk)
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Store for Shared {
    fn place(&self) -> impl std::fmt::Display {
        "the simulated disk"
    }

    fn has(&self, name: &str) -> io::Result<bool> {
        Ok(self.begin()?.names.contains_key(name))
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut disk = self.begin()?;
        if disk.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.files.push(Vec::new());
        let file = disk.files.len() - 1;
        disk.names.insert(name.to_owned(), file);
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.begin()?;
        let file = *disk.names.get(name).ok_or_else(missing)?;
        disk.files[file] = bytes.to_vec();
        Ok(())
    }

    fn link(&mut self, name: &str, second: &str) -> io::Result<()> {
        let mut disk = self.begin()?;
        if disk.names.contains_key(second) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = *disk.names.get(name).ok_or_else(missing)?;
        disk.names.insert(second.to_owned(), file);
        Ok(())
    }

    fn links(&self, name: &str) -> io::Result<u64> {
        let disk = self.begin()?;
        let file = *disk.names.get(name).ok_or_else(missing)?;
        Ok(disk.names.values().filter(|other| **other == file).count() as u64)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.begin()?.names.remove(name).map(drop).ok_or_else(missing)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.begin()?.names.keys().cloned().collect())
    }

    fn read(&self, name: &str, _: u64) -> io::Result<Vec<u8>> {
        let disk = self.begin()?;
        Ok(disk.files[*disk.names.get(name).ok_or_else(missing)?].clone())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.begin()?;
        if !disk.forgets {
            disk.durable = disk.names.clone();
        }
        Ok(())
    }
}

fn record(term: u64, host: &str) -> Record {
    Record {
        vm: "demo".into(),
        store: 1,
        term,
        base: term,
        owner: Incarnation {
            host: host.into(),
            nonce: u128::from(term),
        },
        peer: None,
        phase: Phase::Acting,
        work: Default::default(),
    }
}

/// What anybody was told and may have acted upon.
#[derive(Default)]
struct Told {
    /// By term, who owns it.
    owners: BTreeMap<u64, String>,
}

impl Told {
    fn hear(&mut self, record: &Record) -> Result<(), String> {
        let owner = &record.owner.host;
        match self.owners.insert(record.term, owner.clone()) {
            Some(before) if before != *owner => {
                Err(format!("term {} is {before}'s and {owner}'s", record.term))
            }
            _ => Ok(()),
        }
    }
}

/// Two hosts take terms in turn, each reading first; the power is cut at an operation, and they begin again.
fn story(cut_at: u64, seed: u64, forgets: bool) -> Result<(), String> {
    let disk = Shared(Arc::new(Mutex::new(Disk::default())));
    {
        let mut disk = disk.lock();
        disk.files.push(Vec::new());
        disk.names.insert(MARKER.into(), 0);
        disk.durable = disk.names.clone();
        (disk.left, disk.forgets) = (Some(cut_at), forgets);
    }
    let mut random = StdRng::seed_from_u64(seed);
    let mut told = Told::default();
    for _ in 0..2 {
        take_terms(&disk, &mut told)?;
        disk.lock().cut_power(&mut random);
        // Whatever was told before is still there, or something later.
        let mut arbiter = FileArbiter::on(disk.clone(), "demo");
        let ArbiterAnswer::Record(found) = arbiter.execute(&ArbiterRequest::Read) else {
            return Err("the arbiter is of no use after a power cut".into());
        };
        let last = told.owners.keys().next_back().copied().unwrap_or(0);
        let term = found.as_ref().map_or(0, |record| record.term);
        if term < last {
            return Err(format!("term {last} was told, and now it is term {term}"));
        }
        found.iter().try_for_each(|record| told.hear(record))?;
    }
    Ok(())
}

fn take_terms(disk: &Shared, told: &mut Told) -> Result<(), String> {
    let mut hosts = ["a", "b"].map(|host| (host, FileArbiter::on(disk.clone(), "demo")));
    for turn in 0..4 {
        let (host, arbiter) = &mut hosts[turn % 2];
        let ArbiterAnswer::Record(found) = arbiter.execute(&ArbiterRequest::Read) else {
            continue;
        };
        found.iter().try_for_each(|record| told.hear(record))?;
        let new = record(found.as_ref().map_or(1, |record| record.term + 1), host);
        let request = ArbiterRequest::Swap {
            expected: found,
            new: new.clone(),
        };
        if arbiter.execute(&request) == ArbiterAnswer::Swapped {
            told.hear(&new)?;
        }
    }
    Ok(())
}

#[test]
fn what_anybody_was_told_outlives_a_power_cut_at_each_operation() {
    for cut_at in 0..OPERATIONS_MAX {
        for seed in 0..DRAWS {
            story(cut_at, seed, false).unwrap_or_else(|text| panic!("cut at {cut_at}, draw {seed}: {text}"));
        }
    }
}

#[test]
fn without_durable_names_this_test_sees_that_a_record_is_lost() {
    let runs = (0..OPERATIONS_MAX).flat_map(|cut_at| (0..DRAWS).map(move |seed| (cut_at, seed)));
    let lost = runs
        .filter(|(cut_at, seed)| story(*cut_at, *seed, true).is_err())
        .count();
    assert!(lost > 0, "the simulated disk loses nothing");
}
