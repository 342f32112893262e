use std::fs::{self, File};
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kemari_sync::Work;

use super::*;
use crate::arbiter::testing::record;

const LIMIT: Duration = Duration::from_secs(30);

fn swap(expected: Option<Record>, new: Record) -> ArbiterRequest {
    ArbiterRequest::Swap { expected, new }
}

fn opened(directory: &Path) -> Result<NoArbiter, OpenError> {
    let mut arbiter = NoArbiter::new();
    arbiter.keep_in(directory, "demo").map(|()| arbiter)
}

/// What a start finds in the directory.
fn found(directory: &Path) -> Option<Record> {
    opened(directory).expect("what stands there is whole").record
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_known_here_can_be_changed_and_the_peers_record_is_assumed() {
    let record = |term| record(term, Phase::Acting);
    let mut arbiter = NoArbiter::new();
    let read = |arbiter: &mut NoArbiter| arbiter.execute(&ArbiterRequest::Read);
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(None));
    arbiter.assume(&record(4));
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(Some(record(4))));
    let swapped = arbiter.execute(&swap(Some(record(4)), record(5)));
    assert_eq!(swapped, ArbiterAnswer::Swapped);
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(Some(record(5))));
}

#[test]
fn what_this_host_knows_outlives_its_process() {
    let directory = tempfile::tempdir().unwrap();
    let stopped = record(7, Phase::Stopped);
    let swap = swap(None, stopped.clone());
    let mut arbiter = opened(directory.path()).unwrap();
    assert_eq!(arbiter.execute(&swap), ArbiterAnswer::Swapped);
    let mut again = opened(directory.path()).unwrap();
    let known = ArbiterAnswer::Record(Some(stopped.clone()));
    assert_eq!(again.execute(&ArbiterRequest::Read), known);
    assert_eq!(again.execute(&swap), ArbiterAnswer::Conflict(Some(stopped)));
}

#[test]
fn what_is_no_record_is_not_taken_for_nothing_and_the_way_out_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let refused = || opened(directory.path()).err().expect("it is refused").to_string();
    for rubbish in [b"rubbish".to_vec(), Vec::new(), vec![b' '; 1 << 20]] {
        fs::write(&path, rubbish).unwrap();
        let why = refused();
        assert!(
            why.contains(FILE) && why.contains("remove what stands there"),
            "{why}"
        );
        assert!(!why.contains("1048576"), "it was read whole: {why}");
    }
    // Nor is a link followed, though a good record lies behind it.
    let elsewhere = tempfile::tempdir().unwrap();
    let stopped = swap(None, record(7, Phase::Stopped));
    assert_eq!(
        opened(elsewhere.path()).unwrap().execute(&stopped),
        ArbiterAnswer::Swapped
    );
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join(FILE), &path).unwrap();
    assert!(refused().contains("remove what stands there"));
}

#[test]
fn what_cannot_be_kept_leaves_no_older_word() {
    let directory = tempfile::tempdir().unwrap();
    let stopped = record(7, Phase::Stopped);
    let mut arbiter = opened(directory.path()).unwrap();
    arbiter.execute(&swap(None, stopped.clone()));
    assert_eq!(found(directory.path()), Some(stopped.clone()));
    let in_the_way = directory.path().join(FILE).with_extension("new");
    fs::create_dir(&in_the_way).unwrap();
    let acting = record(8, Phase::Acting);
    let swapped = arbiter.execute(&swap(Some(stopped), acting.clone()));
    assert_eq!(swapped, ArbiterAnswer::Swapped);
    assert!(
        opened(directory.path()).is_err(),
        "`stopped` is believed, and the VM boots twice"
    );
    // What is kept later is believed.
    fs::remove_dir(&in_the_way).unwrap();
    let later = record(9, Phase::Acting);
    arbiter.execute(&swap(Some(acting), later.clone()));
    assert_eq!(found(directory.path()), Some(later));
    // That there is none would be a word as well.
    let empty = tempfile::tempdir().unwrap();
    fs::create_dir(empty.path().join(FILE).with_extension("new")).unwrap();
    opened(empty.path())
        .unwrap()
        .execute(&swap(None, record(1, Phase::Acting)));
    assert!(
        opened(empty.path()).is_err(),
        "it is taken for a VM that never ran"
    );
}

#[test]
fn a_term_that_is_won_and_not_yet_acted_in_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut arbiter = opened(directory.path()).unwrap();
    let (pair, won) = (record(7, Phase::Acting), record(8, Phase::Won));
    arbiter.execute(&swap(None, pair.clone()));
    arbiter.execute(&swap(Some(pair.clone()), won.clone()));
    assert_eq!(found(directory.path()), Some(pair));
    let acting = record(8, Phase::Acting);
    arbiter.execute(&swap(Some(won), acting.clone()));
    eventually("it is never kept", || {
        found(directory.path()) == Some(acting.clone())
    });
}

#[test]
fn a_state_directory_that_hangs_does_not_hold_a_takeover() {
    let directory = tempfile::tempdir().unwrap();
    let mut arbiter = opened(directory.path()).unwrap();
    // Whoever opens it waits for a reader.
    let hangs = directory.path().join(FILE).with_extension("new");
    rustix::fs::mkfifoat(rustix::fs::CWD, &hangs, 0o600.into()).unwrap();
    let (done, takeover) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let (pair, won, acting) = (
            record(7, Phase::Acting),
            record(8, Phase::Won),
            record(8, Phase::Acting),
        );
        arbiter.assume(&pair);
        let wins = arbiter.execute(&swap(Some(pair), won.clone()));
        let acts = arbiter.execute(&swap(Some(won), acting));
        done.send((wins, acts, arbiter)).unwrap();
    });
    let (wins, acts, _arbiter) = takeover
        .recv_timeout(LIMIT)
        .expect("the takeover waits for a disk");
    assert_eq!((wins, acts), (ArbiterAnswer::Swapped, ArbiterAnswer::Swapped));
    // The thread is let go.
    let _ = File::open(&hangs).unwrap().read_to_end(&mut Vec::new());
}

/// Counts the warnings of a term that is taken.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_term_is_told_once_however_long_its_winner_works() {
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || sink.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let mut arbiter = NoArbiter::new();
        let mut before = None;
        for number in 0..5 {
            let work = Work {
                number,
                beat: number,
                fence_ms_max: 0,
            };
            let won = Record {
                work,
                ..record(8, Phase::Won)
            };
            arbiter.execute(&swap(before.replace(won.clone()), won));
        }
        arbiter.execute(&swap(before, record(8, Phase::Acting)));
    });
    let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(said.matches("term 8 is taken").count(), 1, "{said}");
}

#[test]
fn the_last_word_is_the_one_that_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut arbiter = opened(directory.path()).unwrap();
    // They come faster than they are written.
    (1..1000).for_each(|term| arbiter.assume(&record(term, Phase::Acting)));
    let last = swap(Some(record(999, Phase::Acting)), record(1000, Phase::Stopped));
    assert_eq!(arbiter.execute(&last), ArbiterAnswer::Swapped);
    assert_eq!(found(directory.path()), Some(record(1000, Phase::Stopped)));
}
