//! The file arbiter: many processes at once, damaged files, missing storage.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use common::record;
use kemari::arbiter::{FileArbiter, MARKER};
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};

fn storage() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(MARKER), "").unwrap();
    directory
}

fn read(arbiter: &mut FileArbiter) -> ArbiterAnswer {
    arbiter.execute(&ArbiterRequest::Read)
}

fn swap(arbiter: &mut FileArbiter, expected: Option<&Record>, new: &Record) -> ArbiterAnswer {
    arbiter.execute(&ArbiterRequest::Swap {
        expected: expected.cloned(),
        new: new.clone(),
    })
}

fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != MARKER)
        .collect();
    names.sort();
    names
}

#[test]
fn compares_and_sets_and_keeps_few_files() {
    let directory = storage();
    let mut arbiter = FileArbiter::new(directory.path(), "demo");
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(None));
    let mut expected: Option<Record> = None;
    for term in 1..=200 {
        let new = record(term, "a");
        assert_eq!(
            swap(&mut arbiter, expected.as_ref(), &new),
            ArbiterAnswer::Swapped
        );
        let stale = swap(&mut arbiter, expected.as_ref(), &record(term, "b"));
        assert_eq!(stale, ArbiterAnswer::Conflict(Some(new.clone())));
        expected = Some(new);
    }
    assert_eq!(
        read(&mut FileArbiter::new(directory.path(), "demo")),
        ArbiterAnswer::Record(expected)
    );
    let files = files(directory.path());
    assert!(files.len() <= 64, "{} files stay", files.len());
    assert!(
        files.iter().all(|name| name.ends_with(".record")),
        "something is left over: {files:?}"
    );
}

/// Swaps as fast as it can, and prints the terms that it won. Run by the test below in several processes.
#[test]
#[ignore = "run as a child process of processes_win_each_term_once"]
fn child_of_processes() {
    let directory = std::env::var("KEMARI_TEST_STORAGE").expect("set by the parent");
    let host = format!("h{}", std::process::id());
    let mut arbiter = FileArbiter::new(Path::new(&directory), "demo");
    let ArbiterAnswer::Record(mut expected) = read(&mut arbiter) else {
        panic!("cannot read")
    };
    loop {
        let term = expected.as_ref().map_or(0, |record| record.term) + 1;
        if term > TERMS {
            return;
        }
        let new = record(term, &host);
        expected = match swap(&mut arbiter, expected.as_ref(), &new) {
            ArbiterAnswer::Swapped => {
                println!("won {term}");
                Some(new)
            }
            ArbiterAnswer::Conflict(current) => current,
            other => panic!("{other:?}"),
        };
    }
}

const TERMS: u64 = 200;
const PROCESSES: usize = 4;

#[test]
fn processes_win_each_term_once() {
    let directory = storage();
    let children: Vec<_> = (0..PROCESSES)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_of_processes", "--ignored", "--nocapture"])
                .env("KEMARI_TEST_STORAGE", directory.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut wins: BTreeMap<u64, u32> = BTreeMap::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "a child failed");
        let text = String::from_utf8(output.stdout).unwrap();
        for term in text
            .lines()
            .filter_map(|line| line.split_once("won ").map(|(_, term)| term))
        {
            *wins.entry(term.trim().parse().unwrap()).or_default() += 1;
        }
    }
    let expected: BTreeMap<u64, u32> = (1..=TERMS).map(|term| (term, 1)).collect();
    assert_eq!(wins, expected, "each term is won exactly once");
}

#[test]
fn a_damaged_record_stops_all_asking() {
    let directory = storage();
    let mut arbiter = FileArbiter::new(directory.path(), "demo");
    assert_eq!(swap(&mut arbiter, None, &record(1, "a")), ArbiterAnswer::Swapped);
    assert_eq!(
        swap(&mut arbiter, Some(&record(1, "a")), &record(2, "a")),
        ArbiterAnswer::Swapped
    );
    let last = directory.path().join(files(directory.path()).pop().unwrap());
    let whole = std::fs::read(&last).unwrap();
    for damaged in [
        &b""[..],
        &whole[..whole.len() / 2],
        &[0; 4096],
        b"{}",
        &[&whole[..], &whole[..]].concat(),
    ] {
        std::fs::write(&last, damaged).unwrap();
        for expected in [None, Some(record(1, "a")), Some(record(2, "a"))] {
            let answer = swap(&mut arbiter, expected.as_ref(), &record(3, "b"));
            assert!(matches!(answer, ArbiterAnswer::Unavailable(_)), "{answer:?}");
        }
        // A fresh process must not fall back to the older record either.
        let answer = read(&mut FileArbiter::new(directory.path(), "demo"));
        assert!(
            matches!(&answer, ArbiterAnswer::Unavailable(why) if why.contains("cannot be used")),
            "{answer:?}"
        );
    }
    std::fs::write(&last, whole).unwrap();
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(Some(record(2, "a"))));
}

#[test]
fn an_empty_mount_point_is_not_an_empty_store() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().to_owned(), directory.path().join("missing")] {
        let mut arbiter = FileArbiter::new(&path, "demo");
        let answer = read(&mut arbiter);
        assert!(
            matches!(&answer, ArbiterAnswer::Unavailable(why) if why.contains("touch")),
            "{answer:?}"
        );
        assert!(matches!(
            swap(&mut arbiter, None, &record(1, "a")),
            ArbiterAnswer::Unavailable(_)
        ));
    }
    assert_eq!(files(directory.path()), [] as [&str; 0], "nothing was written");
}

#[test]
fn storage_that_went_back_in_time_is_refused() {
    let directory = storage();
    let mut arbiter = FileArbiter::new(directory.path(), "demo");
    assert_eq!(swap(&mut arbiter, None, &record(1, "a")), ArbiterAnswer::Swapped);
    assert_eq!(
        swap(&mut arbiter, Some(&record(1, "a")), &record(2, "a")),
        ArbiterAnswer::Swapped
    );
    std::fs::remove_file(directory.path().join(files(directory.path()).pop().unwrap())).unwrap();
    let answer = swap(&mut arbiter, Some(&record(1, "a")), &record(2, "b"));
    assert!(
        matches!(&answer, ArbiterAnswer::Unavailable(why) if why.contains("back in time")),
        "{answer:?}"
    );
}

#[test]
fn two_vms_share_a_directory() {
    let directory = storage();
    let mut demo = FileArbiter::new(directory.path(), "demo");
    let mut other = FileArbiter::new(directory.path(), "demo.2");
    assert_eq!(swap(&mut demo, None, &record(1, "a")), ArbiterAnswer::Swapped);
    assert_eq!(read(&mut other), ArbiterAnswer::Record(None));
    let foreign = Record {
        vm: "demo.2".into(),
        ..record(5, "b")
    };
    assert_eq!(swap(&mut other, None, &foreign), ArbiterAnswer::Swapped);
    assert_eq!(read(&mut demo), ArbiterAnswer::Record(Some(record(1, "a"))));
}
