//! The arbiter's real calls are recorded, and every power cut that could have happened meanwhile is looked
//! at: whoever opens the directory then finds what anybody was told, or something later.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kemari_sync::{Incarnation, Phase};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtask::own_directory::{Content, Cut, Entry, Journal, OwnDirectory, Recording, replay_for};

use super::*;
use crate::replica::testing::replay_time;

const VM: &str = "demo";
/// Reads and swaps of a recording: more than old records are kept.
const TURNS: u64 = RETAINED + 26;
/// One host in so many dies in the middle of its turn, after at most so many calls.
const DEATHS_OF: u64 = 4;
const CALLS_MAX: u64 = 12;

/// What happens beside the calls.
#[derive(Clone, Debug)]
enum Note {
    /// This record is about to be asked for.
    Asked(Record),
    /// Somebody was told this record, and may have acted upon it.
    Told(Record),
}

fn record(term: u64, host: u64, nonce: u128) -> Record {
    Record {
        vm: VM.into(),
        store: 1,
        term,
        base: term,
        owner: Incarnation {
            host: format!("host-{host}"),
            nonce,
        },
        peer: None,
        phase: Phase::Acting,
        work: Default::default(),
    }
}

fn read(arbiter: &mut FileArbiter) -> Result<Option<Record>> {
    match arbiter.execute(&ArbiterRequest::Read) {
        ArbiterAnswer::Record(record) => Ok(record),
        other => bail!("it cannot be read: {other:?}"),
    }
}

/// Two hosts take terms, each reading first; some die while they do, and what comes after them begins anew.
fn recorded(random: &mut StdRng) -> Recording<Note> {
    let place = tempfile::tempdir().expect("a directory");
    let journal = Journal::new(Content::of(&[(MARKER, b"")]));
    let own = OwnDirectory::mount(place.path(), &journal).expect("a directory of our own");
    let arbiter = || FileArbiter::new(own.path(), VM);
    let mut hosts = [arbiter(), arbiter()];
    for turn in 0..TURNS {
        let host = random.random_range(0..2);
        let dies = random.random_range(0..DEATHS_OF) == 0;
        journal.end_after(dies.then(|| random.random_range(0..CALLS_MAX)));
        take_a_term(&mut hosts[host as usize], &journal, host, turn.into());
        journal.end_after(None);
        if dies {
            hosts[host as usize] = arbiter();
        }
    }
    drop(own);
    journal.take()
}

/// Whether it was told that it has one.
fn take_a_term(arbiter: &mut FileArbiter, journal: &Journal<Note>, host: u64, nonce: u128) -> bool {
    let Ok(expected) = read(arbiter) else {
        return false;
    };
    expected
        .iter()
        .for_each(|record| journal.note(Note::Told(record.clone())));
    let new = record(expected.as_ref().map_or(0, |record| record.term) + 1, host, nonce);
    journal.note(Note::Asked(new.clone()));
    let swap = ArbiterRequest::Swap {
        expected,
        new: new.clone(),
    };
    let is_told = arbiter.execute(&swap) == ArbiterAnswer::Swapped;
    if is_told {
        journal.note(Note::Told(new));
    }
    is_told
}

/// Whoever comes after the cut finds a record that was asked for, and none older than anybody was told; and
/// it can take the next term.
fn judge(directory: &Path, entries: &[Entry<Note>]) -> Result<()> {
    let mut told = BTreeMap::new();
    let mut asked = Vec::new();
    for entry in entries {
        match entry {
            Entry::Noted(Note::Told(record)) => {
                let before = told.insert(record.term, record);
                ensure!(
                    before.is_none_or(|before| before == record),
                    "two have term {}",
                    record.term
                );
            }
            Entry::Noted(Note::Asked(record)) => asked.push(record),
            _ => {}
        }
    }
    let mut arbiter = FileArbiter::new(directory, VM);
    let found = read(&mut arbiter)?;
    let last = told.keys().next_back().copied().unwrap_or(0);
    let term = found.as_ref().map_or(0, |record| record.term);
    ensure!(term >= last, "term {last} was told, and now it is term {term}");
    if let Some(record) = &found {
        ensure!(asked.contains(&record), "nobody asked for {record:?}");
        ensure!(
            told.get(&term).is_none_or(|told| *told == record),
            "somebody else has term {term}"
        );
    }
    let new = record(term + 1, 9, 9);
    let swap = ArbiterRequest::Swap {
        expected: found,
        new: new.clone(),
    };
    let answer = arbiter.execute(&swap);
    ensure!(
        answer == ArbiterAnswer::Swapped,
        "nobody can take a term: {answer:?}"
    );
    ensure!(
        read(&mut arbiter)? == Some(new),
        "what was taken is not what counts"
    );
    Ok(())
}

/// `cargo xtask disks --replay` says for how long, and reads how many.
#[test]
fn whatever_a_power_cut_leaves_of_the_real_files_is_what_was_told_or_later() {
    replay_for(replay_time(), recorded, judge);
}

/// The power is cut when a host was told what another one has written that died in the middle of it.
#[test]
fn what_is_read_of_a_host_that_died_outlives_a_power_cut() {
    let mut was_found = false;
    for calls in 0.. {
        let place = tempfile::tempdir().expect("a directory");
        let journal = Journal::new(Content::of(&[(MARKER, b"")]));
        let own = OwnDirectory::mount(place.path(), &journal).expect("a directory of our own");
        journal.end_after(Some(calls));
        let is_told = take_a_term(&mut FileArbiter::new(own.path(), VM), &journal, 0, 1);
        journal.end_after(None);
        let found = read(&mut FileArbiter::new(own.path(), VM)).expect("the other host reads");
        was_found |= !is_told && found.is_some();
        found
            .into_iter()
            .for_each(|record| journal.note(Note::Told(record)));
        drop(own);
        let recording = journal.take();
        let all = recording.entries.len();
        let left = tempfile::tempdir().expect("a directory");
        recording
            .cut(all, Cut::Nothing, || false)
            .lay_out(left.path())
            .expect("what is durable");
        judge(left.path(), &recording.entries)
            .unwrap_or_else(|error| panic!("a host died after {calls} calls: {error:#}"));
        if is_told {
            break;
        }
    }
    assert!(was_found, "none died behind its record's name");
}

#[test]
fn without_durable_names_or_contents_the_recording_shows_that_a_record_is_lost() {
    let mut random = StdRng::seed_from_u64(7);
    let is_enough = Instant::now() + Duration::from_secs(60);
    let mut recording = recorded(&mut random);
    recording
        .replay(&mut random, Instant::now(), judge)
        .expect("as it is, it holds");
    let is_names = |entry: &Entry<Note>| matches!(entry, Entry::NamesSynced);
    let mut nameless = recorded(&mut random);
    nameless.entries.retain(|entry| !is_names(entry));
    nameless
        .replay(&mut random, is_enough, judge)
        .expect_err("names are lost");
    recording
        .entries
        .retain(|entry| !matches!(entry, Entry::Synced(_)));
    recording
        .replay(&mut random, is_enough, judge)
        .expect_err("contents are lost");
}
