//! The record's real calls are recorded, and every power cut that could have happened meanwhile is looked at:
//! whoever reads the file then finds the head that was said to be durable, or a later one, and every mark.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtask::own_directory::{Content, Entry, Journal, OwnDirectory, Recording, replay_for};

use super::*;
use crate::replica::store::FileStore;
use crate::replica::testing::replay_time;

/// Extents of an image whose map has two sectors, and by how many it grows at most:
/// a third sector comes with it.
const EXTENTS: u64 = 5_000;
const GROWTH_MAX: u64 = 2_000;
const GROWTHS: u64 = 3;
/// Changes of a recording. One in so many is cut off, after at most so many calls.
const CHANGES: u64 = 90;
const DEATHS_OF: u64 = 4;
const CALLS_MAX: u64 = 5;

/// A head, and the marks that must be there with it.
type Expected = (Head, BTreeSet<u64>);

/// What happens beside the calls.
#[derive(Clone, Debug)]
enum Note {
    /// From now on this may be found, too.
    May(Expected),
    /// This is durable.
    Is(Expected),
    /// These marks need not be there any more.
    Cleared(BTreeSet<u64>),
}

fn first_head() -> Head {
    Head {
        vm: "vm".into(),
        disk: "blk0".into(),
        image_bytes: EXTENTS * EXTENT_BYTES,
        history: ImageHistory::first(1, 2, 1),
    }
}

fn marks(record: &Record) -> BTreeSet<u64> {
    record.map().iter().collect()
}

/// As an image makes its first record.
fn create(path: &Path) -> Result<Record> {
    let head = first_head();
    let store = FileStore::create(path, Record::bytes_for(head.image_bytes))?;
    Ok(Record::create(Box::new(store), head)?)
}

/// As an image reads its record.
fn open(path: &Path) -> Result<Record> {
    read(FileStore::open_durable(path)?)?.context("there is no record")
}

fn read(store: Option<FileStore>) -> Result<Option<Record>> {
    Ok(store.map(|store| Record::load(Box::new(store))).transpose()?)
}

/// A record is made and changed; some that change it die while they do, and what comes after them reads it.
fn recorded(random: &mut StdRng) -> Recording<Note> {
    let place = tempfile::tempdir().expect("a directory");
    let journal = Journal::new(Content::of(&[]));
    let own = OwnDirectory::mount(place.path(), &journal).expect("a directory of our own");
    let path = own.path().join("disk.img.kemari");
    journal.note(Note::May((first_head(), BTreeSet::new())));
    let mut record = create(&path).expect("a record");
    journal.note(Note::Is((record.head().clone(), marks(&record))));
    let mut growths = GROWTHS;
    for _ in 0..CHANGES {
        let dies = random.random_range(0..DEATHS_OF) == 0;
        let calls = dies.then(|| random.random_range(0..CALLS_MAX));
        // What is asked for is noted before, and what is done behind it.
        let changed = change(&mut record, &journal, calls, &mut growths, random);
        journal.end_after(None);
        if changed.is_err() || dies {
            record = open(&path).expect("there is a record");
        }
        journal.note(Note::Is((record.head().clone(), marks(&record))));
    }
    drop((record, own));
    journal.take()
}

fn change(
    record: &mut Record,
    journal: &Journal<Note>,
    calls: Option<u64>,
    growths: &mut u64,
    random: &mut StdRng,
) -> Result<()> {
    let head = record.head().clone();
    let extents = head.image_bytes.div_ceil(EXTENT_BYTES);
    let some = |random: &mut StdRng| -> BTreeSet<u64> {
        (0..random.random_range(1..20))
            .map(|_| random.random_range(0..extents))
            .collect()
    };
    match random.random_range(0..10) {
        0..4 => {
            let new = some(random);
            journal.end_after(calls);
            record.mark(new)?;
        }
        4..6 => {
            // Some that are set, and some others.
            let mut old = some(random);
            old.extend(record.map().iter().filter(|_| random.random_range(0..8) == 0));
            journal.note(Note::Cleared(old.clone()));
            journal.end_after(calls);
            record.clear(&Vec::from_iter(old))?;
        }
        6 if *growths > 0 => {
            *growths -= 1;
            let growth = random.random_range(1..=GROWTH_MAX) * EXTENT_BYTES - 4096;
            let image_bytes = head.image_bytes + growth;
            let mut with_new = marks(record);
            with_new.extend(Map::touched(&(head.image_bytes..image_bytes)));
            let grown = Head {
                image_bytes,
                ..head.clone()
            };
            journal.note(Note::May((grown, with_new)));
            journal.end_after(calls);
            record.grow(image_bytes)?;
        }
        _ => {
            let mut next = head;
            next.history.word.term += 1;
            next.history.word.base = random.random();
            journal.note(Note::May((next.clone(), marks(record))));
            journal.end_after(calls);
            record.set_head(next)?;
        }
    }
    Ok(())
}

/// Whoever comes after the cut finds what is durable, or what was asked for since.
fn judge(directory: &Path, entries: &[Entry<Note>]) -> Result<()> {
    let mut may: Vec<Expected> = Vec::new();
    let mut is_durable = false;
    for entry in entries {
        match entry {
            Entry::Noted(Note::May(expected)) => may.push(expected.clone()),
            Entry::Noted(Note::Is(expected)) => {
                is_durable = true;
                may = vec![expected.clone()];
            }
            Entry::Noted(Note::Cleared(extents)) => {
                may.iter_mut()
                    .for_each(|(_, marks)| marks.retain(|extent| !extents.contains(extent)));
            }
            _ => {}
        }
    }
    let record = match FileStore::open(&directory.join("disk.img.kemari"))
        .map_err(Into::into)
        .and_then(read)
    {
        Ok(Some(record)) => record,
        Ok(None) if !is_durable => return Ok(()),
        Err(error)
            if !is_durable && matches!(error.downcast_ref::<RecordError>(), Some(RecordError::Damaged)) =>
        {
            return Ok(());
        }
        Ok(None) => bail!("the record is gone"),
        Err(error) => return Err(error),
    };
    let of_term = |(head, _): &&Expected| head == record.head();
    let Some((_, marks)) = may.iter().find(of_term) else {
        bail!(
            "the head is of term {}, and may be of {:?}",
            record.head().history.word.term,
            may.iter()
                .map(|(head, _)| head.history.word.term)
                .collect::<Vec<_>>()
        );
    };
    let lost: Vec<&u64> = marks
        .iter()
        .filter(|extent| !record.map().has(**extent))
        .collect();
    ensure!(lost.is_empty(), "marks were lost: {lost:?}");
    Ok(())
}

/// `cargo xtask disks --replay` says for how long, and reads how many.
#[test]
fn whatever_a_power_cut_leaves_of_a_real_record_has_what_is_durable() {
    replay_for(replay_time(), recorded, judge);
}

#[test]
fn without_durable_writes_the_recording_shows_that_a_record_is_lost() {
    let mut random = StdRng::seed_from_u64(7);
    let mut recording = recorded(&mut random);
    recording
        .replay(&mut random, Instant::now(), judge)
        .expect("as it is, it holds");
    recording
        .entries
        .retain(|entry| !matches!(entry, Entry::Synced(_)));
    let is_enough = Instant::now() + Duration::from_secs(60);
    recording
        .replay(&mut random, is_enough, judge)
        .expect_err("it is lost");
}
