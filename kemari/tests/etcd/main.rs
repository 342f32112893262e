//! The etcd arbiter against real etcds: one that is stopped, full or wiped; a cluster over TLS; users; and
//! servers that answer rubbish.

mod answers;
#[path = "../common/mod.rs"]
mod common;
mod tls;
mod users;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use common::{TestEtcd, closed_endpoint, record};
use kemari::arbiter::{Access, Etcd, Unproved};
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Phase, Record};

/// For one request. Who is killed answers at once, so this is never waited out.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait until a cluster has a leader (again), or a changed file is noticed.
const LEADER_LIMIT: Duration = Duration::from_secs(30);

fn arbiter(endpoints: &[&str], timeout: Duration) -> Etcd {
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
    Etcd::new(&endpoints, Access::default(), "/kemari/", "demo", timeout).unwrap()
}

fn read(arbiter: &mut Etcd) -> ArbiterAnswer {
    arbiter.execute(&ArbiterRequest::Read)
}

fn swap(arbiter: &mut Etcd, expected: Option<&Record>, new: &Record) -> ArbiterAnswer {
    arbiter.execute(&ArbiterRequest::Swap {
        expected: expected.cloned(),
        new: new.clone(),
    })
}

/// What it answers that is no record.
fn refusal(found: Result<Option<Record>, Unproved>) -> String {
    match found {
        Err(Unproved::Refused(why)) => why,
        other => panic!("that is no refusal: {other:?}"),
    }
}

/// Waits until the arbiter can be asked, and written.
fn await_probe(arbiter: &Etcd, expected: Option<&Record>) {
    let until = Instant::now() + LEADER_LIMIT;
    loop {
        match arbiter.probe() {
            Ok(found) => return assert_eq!(found.as_ref(), expected),
            Err(why) => assert!(Instant::now() < until, "{why:?}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// As an administrator does it: a new file takes the name of the old one.
fn write_secret(path: &Path, content: &str) {
    let aside = path.with_extension("new");
    fs::write(&aside, format!("{content}\n")).unwrap();
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(aside, path).unwrap();
}

#[test]
fn compares_and_sets() {
    let etcd = TestEtcd::start();
    let mut arbiter = arbiter(&[&etcd.endpoint], TIMEOUT);
    let (first, second) = (record(1, "a"), record(2, "b"));
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(None));
    assert_eq!(
        swap(&mut arbiter, Some(&first), &second),
        ArbiterAnswer::Conflict(None)
    );
    assert_eq!(swap(&mut arbiter, None, &first), ArbiterAnswer::Swapped);
    assert_eq!(
        swap(&mut arbiter, None, &second),
        ArbiterAnswer::Conflict(Some(first.clone()))
    );
    let almost = Record {
        phase: Phase::Won,
        ..first.clone()
    };
    assert_eq!(
        swap(&mut arbiter, Some(&almost), &second),
        ArbiterAnswer::Conflict(Some(first.clone()))
    );
    assert_eq!(swap(&mut arbiter, Some(&first), &second), ArbiterAnswer::Swapped);
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(Some(second)));
}

#[test]
fn exactly_one_of_many_wins_each_term() {
    let etcd = TestEtcd::start();
    const SIDES: usize = 8;
    const TERMS: u64 = 10;
    let barrier = Barrier::new(SIDES);
    let wins: Vec<Vec<u64>> = thread::scope(|scope| {
        let sides: Vec<_> = (0..SIDES)
            .map(|side| {
                let (etcd, barrier) = (&etcd, &barrier);
                scope.spawn(move || {
                    let mut arbiter = arbiter(&[&etcd.endpoint], TIMEOUT);
                    let mut wins = Vec::new();
                    for term in 1..=TERMS {
                        barrier.wait();
                        let ArbiterAnswer::Record(expected) = read(&mut arbiter) else {
                            panic!("no answer")
                        };
                        assert_eq!(expected.as_ref().map_or(0, |record| record.term), term - 1);
                        barrier.wait();
                        match swap(
                            &mut arbiter,
                            expected.as_ref(),
                            &record(term, &format!("h{side}")),
                        ) {
                            ArbiterAnswer::Swapped => wins.push(term),
                            ArbiterAnswer::Conflict(Some(winner)) => assert_eq!(winner.term, term),
                            other => panic!("{other:?}"),
                        }
                    }
                    wins
                })
            })
            .collect();
        sides.into_iter().map(|side| side.join().unwrap()).collect()
    });
    let mut all: Vec<u64> = wins.concat();
    all.sort_unstable();
    assert_eq!(
        all,
        (1..=TERMS).collect::<Vec<_>>(),
        "each term exactly once: {wins:?}"
    );
}

#[test]
fn another_member_is_asked_when_one_is_down() {
    let etcd = TestEtcd::start();
    let mut arbiter = arbiter(&[&closed_endpoint(), &etcd.endpoint], TIMEOUT);
    assert_eq!(swap(&mut arbiter, None, &record(1, "a")), ArbiterAnswer::Swapped);
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(Some(record(1, "a"))));
}

#[test]
fn a_stopped_etcd_is_unavailable_and_comes_back() {
    let mut etcd = TestEtcd::start();
    let mut arbiter = arbiter(&[&etcd.endpoint], Duration::from_millis(1500));
    assert_eq!(swap(&mut arbiter, None, &record(1, "a")), ArbiterAnswer::Swapped);
    etcd.kill();
    let ArbiterAnswer::Unavailable(why) = read(&mut arbiter) else {
        panic!("answered when killed")
    };
    assert!(why.contains("cannot connect"), "{why}");
    let answer = swap(&mut arbiter, Some(&record(1, "a")), &record(2, "a"));
    assert!(matches!(answer, ArbiterAnswer::Unavailable(_)), "{answer:?}");
    etcd.restart();
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(Some(record(1, "a"))));
}

#[test]
fn a_frozen_etcd_is_waited_for_within_the_limit() {
    let etcd = TestEtcd::start();
    let limit = Duration::from_millis(300);
    let mut arbiter = arbiter(&[&etcd.endpoint], limit);
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(None));
    etcd.freeze();
    let begun = Instant::now();
    assert!(matches!(read(&mut arbiter), ArbiterAnswer::Unavailable(_)));
    assert!(begun.elapsed() < 4 * limit, "waited {:?}", begun.elapsed());
}

#[test]
fn garbage_in_the_store_is_never_no_record() {
    let etcd = TestEtcd::start();
    for garbage in [
        "",
        "hello",
        "{}",
        "{\"format\":1}",
        "{\"format\":9,\"record\":{}}",
    ] {
        etcd.put("/kemari/demo", garbage);
        let mut arbiter = arbiter(&[&etcd.endpoint], TIMEOUT);
        let answer = read(&mut arbiter);
        assert!(
            matches!(&answer, ArbiterAnswer::Unavailable(why) if why.contains("cannot be used")),
            "{answer:?}"
        );
        let answer = swap(&mut arbiter, None, &record(1, "a"));
        assert!(matches!(answer, ArbiterAnswer::Unavailable(_)), "{answer:?}");
    }
}

#[test]
fn an_etcd_without_room_is_found_out_by_the_probe_and_reads_go_on() {
    let etcd = TestEtcd::start();
    let mut arbiter = arbiter(&[&etcd.endpoint], TIMEOUT);
    assert_eq!(arbiter.probe(), Ok(None));
    assert_eq!(swap(&mut arbiter, None, &record(1, "a")), ArbiterAnswer::Swapped);
    let before = etcd.get("/kemari/demo");
    assert_eq!(arbiter.probe(), Ok(Some(record(1, "a"))));
    assert_eq!(etcd.get("/kemari/demo"), before, "a probe changes nothing");
    let alarm = |action: &str| {
        let body = format!(
            r#"{{"action":"{action}","memberID":"{}","alarm":"NOSPACE"}}"#,
            etcd.member_id()
        );
        etcd.post("", "/v3/maintenance/alarm", &body);
    };
    alarm("ACTIVATE");
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(Some(record(1, "a"))));
    let why = refusal(arbiter.probe());
    assert!(why.contains("NOSPACE") && why.contains("alarm disarm"), "{why}");
    let refused = swap(&mut arbiter, Some(&record(1, "a")), &record(2, "a"));
    assert!(
        matches!(refused, ArbiterAnswer::Unavailable(_)),
        "nothing was done: {refused:?}"
    );
    alarm("DEACTIVATE");
    assert_eq!(arbiter.probe(), Ok(Some(record(1, "a"))));
}

#[test]
fn names_are_no_reason_to_refuse_and_a_gateway_that_is_off_is_named() {
    let etcd = TestEtcd::start();
    let open = |endpoints: &[&str]| arbiter(endpoints, TIMEOUT);
    let by_name = etcd.endpoint.replace("127.0.0.1", "localhost");
    await_probe(&open(&["http://nobody.invalid:2379", &by_name]), None);
    let away = closed_endpoint();
    for nobody in ["http://nobody.invalid:2379", &away] {
        match open(&[nobody]).probe() {
            Err(Unproved::Silent(why)) => assert!(why.contains("etcd cannot be asked"), "{why}"),
            other => panic!("{nobody}: {other:?}"),
        }
    }
    let off = TestEtcd::start_with(&["--enable-grpc-gateway=false"]);
    let why = refusal(open(&[&off.endpoint]).probe());
    assert!(why.contains("--enable-grpc-gateway"), "{why}");
}

#[test]
fn a_wiped_etcd_is_an_alarm_until_it_is_said_to_be_the_right_one() {
    let mut etcd = TestEtcd::start();
    let mut arbiter = arbiter(&[&etcd.endpoint], TIMEOUT);
    assert_eq!(swap(&mut arbiter, None, &record(1, "a")), ArbiterAnswer::Swapped);
    assert_eq!(
        swap(&mut arbiter, Some(&record(1, "a")), &record(2, "a")),
        ArbiterAnswer::Swapped
    );
    etcd.kill();
    etcd.wipe();
    etcd.restart();
    let why = refusal(arbiter.probe());
    assert!(
        why.contains("went back in time") && why.contains("kemari adopt-record"),
        "{why}"
    );
    assert!(matches!(read(&mut arbiter), ArbiterAnswer::Unavailable(_)));
    arbiter.forget();
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(None));
}
