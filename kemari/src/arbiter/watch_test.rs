use std::fs;
use std::sync::mpsc::channel;
use std::sync::{OnceLock, Weak};

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Phase};

use super::*;
use crate::arbiter::file::Seen;
use crate::arbiter::{Deadline, FileArbiter, MARKER, testing};

const LIMIT: Duration = Duration::from_secs(30);

fn record(store: u128, term: Term) -> Record {
    Record {
        store,
        ..testing::record(term, Phase::Acting)
    }
}

const KNOWN: Option<Known> = Some(Known { store: 7, term: 5 });

#[test]
fn a_record_that_is_lost_older_or_anothers_is_told_and_the_right_one_is_not() {
    let judge = |found: Option<Record>| Judge::default().trouble(KNOWN, found.as_ref());
    assert_eq!(judge(Some(record(7, 5))), None);
    assert!(judge(None).unwrap().contains("lost the record"));
    assert!(judge(Some(record(8, 5))).unwrap().contains("another store"));
    assert!(judge(Some(record(7, 3))).unwrap().contains("went back to term 3"));
    for found in [None, Some(record(7, 5))] {
        assert_eq!(
            Judge::default().trouble(None, found.as_ref()),
            None,
            "nothing is known yet"
        );
    }
}

#[test]
fn what_a_change_of_membership_explains_is_told_only_if_it_lasts() {
    for (term, word) in [(4, "went back to term 4"), (6, "gone on to term 6")] {
        let mut judge = Judge::default();
        let found = record(7, term);
        assert_eq!(judge.trouble(KNOWN, Some(&found)), None);
        let lasting = judge.trouble(KNOWN, Some(&found)).unwrap();
        assert!(lasting.contains(word), "{lasting}");
        assert_eq!(judge.trouble(KNOWN, Some(&record(7, 5))), None);
        assert_eq!(
            judge.trouble(KNOWN, Some(&found)),
            None,
            "another time is another time"
        );
        // Membership goes on changing: each difference is a new one.
        let known = KNOWN.map(|known| Known { term: 9, ..known });
        let found = record(7, term + 4);
        assert_eq!(judge.trouble(known, Some(&found)), None);
    }
}

/// A takeover may fence for long, and says so itself.
#[test]
fn a_term_that_is_won_and_not_yet_acted_in_is_no_trouble() {
    let mut judge = Judge::default();
    let won = Record {
        phase: Phase::Won,
        ..record(7, 6)
    };
    for _ in 0..3 {
        assert_eq!(judge.trouble(KNOWN, Some(&won)), None);
    }
}

#[test]
fn what_is_known_anew_is_looked_at_at_once() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(MARKER), "").unwrap();
    let asked = FileArbiter::new(directory.path(), "demo");
    let prober = Prober::of_file(&asked, directory.path(), LIMIT).unwrap();
    let (tell, told) = channel();
    let watch = ArbiterWatch::start(prober, LIMIT, move |trouble, _| tell.send(trouble).unwrap()).unwrap();
    assert_eq!(told.recv_timeout(LIMIT).unwrap(), None, "nothing is known yet");
    watch.expect(KNOWN);
    let soon = Duration::from_millis(PROBE_INTERVAL_MS / 2);
    let trouble = told.recv_timeout(soon).unwrap().unwrap();
    assert!(trouble.contains("lost the record"), "{trouble}");
    watch.expect(KNOWN);
    assert!(told.try_recv().is_err(), "nothing has changed");
}

/// A directory of a file arbiter, watched.
struct Watched {
    directory: tempfile::TempDir,
    watch: ArbiterWatch,
    told: Receiver<Option<String>>,
}

impl Watched {
    /// One that holds these records, one after the other.
    fn with(records: &[Record]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(MARKER), "").unwrap();
        let mut expected = None;
        for record in records {
            swap(directory.path(), expected.replace(record.clone()), record);
        }
        let asked = FileArbiter::new(directory.path(), "demo");
        let prober = Prober::of_file(&asked, directory.path(), LIMIT).unwrap();
        let (tell, told) = channel();
        let tell = move |trouble, _| tell.send(trouble).unwrap();
        let watch = ArbiterWatch::start(prober, LIMIT, tell).unwrap();
        watch.expect(KNOWN);
        Self {
            directory,
            watch,
            told,
        }
    }

    /// Waits for this to be told: what was begun before something changed may be told after it.
    fn await_told(&self, what: &str, is_it: impl Fn(Option<&str>) -> bool) {
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let told = self
                .told
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("{what}: it is not told"));
            if is_it(told.as_deref()) {
                return;
            }
        }
    }

    fn await_word(&self, word: &str) {
        self.await_told(word, |told| told.is_some_and(|told| told.contains(word)));
    }

    fn await_all_well(&self) {
        self.await_told("all is well", |told| told.is_none());
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }
}

/// Writes a record by a client that has seen nothing.
fn swap(directory: &std::path::Path, expected: Option<Record>, new: &Record) {
    let new = new.clone();
    let swap = ArbiterRequest::Swap { expected, new };
    let answer = FileArbiter::new(directory, "demo").execute(&swap);
    assert_eq!(answer, ArbiterAnswer::Swapped);
}

#[test]
fn a_file_arbiter_is_probed_and_its_loss_is_told_until_it_is_made_good() {
    let watched = Watched::with(&[record(7, 5)]);
    watched.await_all_well();
    // The first probe may have been begun before anything was known.
    watched.watch.forget();
    watched.await_all_well();
    assert!(watched.watch.report().answered_ms.is_some() && watched.watch.report().says.contains("term 5"));
    // While the next one is under way there may be more.
    let until = Instant::now() + LIMIT;
    while fs::read_dir(watched.directory.path()).unwrap().count() != 2 {
        assert!(Instant::now() < until, "a probe leaves something behind");
        thread::sleep(Duration::from_millis(10));
    }
    // Next time it is found that the storage is gone, and the age of the last good answer grows from there.
    fs::remove_file(watched.path(MARKER)).unwrap();
    watched.watch.forget();
    watched.await_word(MARKER);
    let trouble = watched.watch.report().trouble.expect("it is in the report");
    assert!(trouble.contains(MARKER), "{trouble}");
    fs::write(watched.path(MARKER), "").unwrap();
    watched.watch.forget();
    watched.await_all_well();
}

/// What has begun before may have asked before something changed.
#[test]
fn a_look_that_is_asked_for_begins_afterwards() {
    let watched = Watched::with(&[record(7, 5)]);
    for _ in 0..3 {
        fs::remove_file(watched.path(MARKER)).unwrap();
        let (look, until) = (watched.watch.look(), Instant::now() + LIMIT);
        assert!(!watched.watch.has_looked(look + 1));
        while !watched.watch.has_looked(look) {
            assert!(Instant::now() < until, "it does not look");
            thread::sleep(Duration::from_millis(1));
        }
        let trouble = watched.watch.report().trouble.expect("it is found");
        assert!(trouble.contains(MARKER), "{trouble}");
        fs::write(watched.path(MARKER), "").unwrap();
    }
}

/// The new store counts its records from one: what was seen of the one before says that it went back, until
/// it is forgotten.
#[test]
fn a_store_that_went_back_is_an_alarm_until_this_side_lives_under_another() {
    let watched = Watched::with(&[record(7, 4), record(7, 5)]);
    watched.await_all_well();
    for number in 1..=2 {
        fs::remove_file(watched.path(&format!("demo.{number:020}.record"))).unwrap();
    }
    watched.await_word("went back in time");
    swap(watched.directory.path(), None, &record(8, 5));
    watched.await_word("went back in time (record 1, after 2 was seen)");
    watched.watch.expect(Some(Known { store: 8, term: 5 }));
    watched.await_all_well();
}

/// A store that is changed by this very side while it is probed, or does not answer as it should.
struct Probed {
    watch: Arc<OnceLock<Weak<Shared>>>,
    answer: ArbiterAnswer,
}

impl Arbiter for Probed {
    fn execute(&mut self, _: &ArbiterRequest) -> ArbiterAnswer {
        let watch = self
            .watch
            .get()
            .and_then(Weak::upgrade)
            .expect("it is being watched");
        watch.lock().known = Some(Known { store: 7, term: 9 });
        self.answer.clone()
    }
}

/// A store that answers so, which nobody looks at but who calls [`Shared::look`].
fn unwatched(answer: ArbiterAnswer) -> ArbiterWatch {
    let watch = Arc::new(OnceLock::new());
    let probed = Probed {
        watch: watch.clone(),
        answer,
    };
    let shared = Arc::new(Shared {
        prober: Prober::File {
            way: Arc::new(Mutex::new(Deadline::new(Box::new(probed), LIMIT).unwrap())),
            seen: Seen::default(),
        },
        state: Mutex::new(State {
            known: KNOWN,
            ..State::default()
        }),
    });
    watch.set(Arc::downgrade(&shared)).unwrap();
    let (wake, _) = channel();
    ArbiterWatch { shared, wake }
}

/// What one look finds at a store that answers so, and how the arbiter stands then.
fn look(answer: ArbiterAnswer) -> (Option<String>, Report) {
    let watch = unwatched(answer);
    let trouble = watch.shared.look(&mut Judge::default());
    (trouble, watch.report())
}

#[test]
fn a_look_that_is_over_or_has_begun_is_not_the_one_that_is_asked_for() {
    let watch = unwatched(ArbiterAnswer::Record(Some(record(7, 5))));
    watch.shared.look(&mut Judge::default());
    let asked = watch.look();
    assert!(!watch.has_looked(asked), "it was over before");
    let (_, begun) = watch.shared.lock().begin();
    let later = watch.look();
    watch.shared.lock().over = begun;
    assert!(watch.has_looked(asked) && !watch.has_looked(later));
}

#[test]
fn what_changes_while_it_is_looked_was_not_looked_at() {
    let (trouble, report) = look(ArbiterAnswer::Record(Some(record(7, 5))));
    assert_eq!(trouble, None, "it was at term 5 when it was asked");
    assert!(report.answered_ms.is_some());
}

#[test]
fn an_arbiter_that_refuses_has_not_answered_as_it_should() {
    let (trouble, report) = look(ArbiterAnswer::Unavailable("it is read-only".into()));
    assert_eq!(trouble.as_deref(), Some("it is read-only"));
    assert_eq!((report.answered_ms, report.is_silent), (None, false));
    assert_eq!(report.says, "it is read-only");
}
