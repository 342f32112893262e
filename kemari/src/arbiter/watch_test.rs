use std::fs;
use std::sync::mpsc::channel;

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Incarnation, Phase};

use super::*;
use crate::arbiter::{FileArbiter, MARKER};

const LIMIT: Duration = Duration::from_secs(30);

fn record(store: u128, term: Term) -> Record {
    Record {
        vm: "demo".into(),
        store,
        term,
        base: term,
        owner: Incarnation {
            host: "a".into(),
            nonce: 1,
        },
        peer: None,
        phase: Phase::Acting,
        work: Default::default(),
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

#[test]
fn a_file_arbiter_is_probed_and_its_loss_is_told_until_it_is_made_good() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(MARKER), "").unwrap();
    let mut arbiter = FileArbiter::new(directory.path(), "demo");
    let mut write = |expected: Option<Record>, new: Record| {
        let swap = ArbiterRequest::Swap { expected, new };
        assert_eq!(arbiter.execute(&swap), ArbiterAnswer::Swapped);
    };
    write(None, record(7, 5));
    let asked = FileArbiter::new(directory.path(), "demo");
    let prober = Prober::of_file(&asked, directory.path(), LIMIT).unwrap();
    let (tell, told) = channel();
    let watch = ArbiterWatch::start(prober, LIMIT, move |trouble, _| tell.send(trouble).unwrap()).unwrap();
    // The first probe may have been begun before anything was known.
    watch.expect(KNOWN);
    assert_eq!(told.recv_timeout(LIMIT).unwrap(), None);
    assert_eq!(told.recv_timeout(LIMIT).unwrap(), None);
    assert!(watch.report().answered_ms.is_some() && watch.report().says.contains("term 5"));
    let names = || fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(names(), 2, "a probe leaves nothing behind");
    // Next time it is found that the storage is gone, and the age of the last good answer grows from there.
    fs::remove_file(directory.path().join(MARKER)).unwrap();
    watch.forget();
    let trouble = told.recv_timeout(LIMIT).unwrap().unwrap();
    assert!(trouble.contains(MARKER), "{trouble}");
    assert_eq!(watch.report().trouble, Some(trouble));
    fs::write(directory.path().join(MARKER), "").unwrap();
    watch.forget();
    assert_eq!(told.recv_timeout(LIMIT).unwrap(), None);
    // A store that went back is an alarm, until this side lives under another one: then it is looked at
    // afresh.
    fs::remove_file(directory.path().join("demo.00000000000000000001.record")).unwrap();
    let trouble = told.recv_timeout(LIMIT).unwrap().unwrap();
    assert!(trouble.contains("went back in time"), "{trouble}");
    FileArbiter::new(directory.path(), "demo").execute(&ArbiterRequest::Swap {
        expected: None,
        new: record(8, 5),
    });
    watch.expect(Some(Known { store: 8, term: 5 }));
    let until = Instant::now() + LIMIT;
    while watch.report().trouble.is_some() {
        assert!(Instant::now() < until, "{:?}", watch.report());
        thread::sleep(Duration::from_millis(10));
    }
}
