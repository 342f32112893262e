//! The etcd arbiter against a real etcd, a stopped one, and servers that answer rubbish.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use common::{TestEtcd, record};
use kemari::arbiter::{Access, Etcd};
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Phase, Record};

const TIMEOUT: Duration = Duration::from_secs(5);

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
    let mut arbiter = arbiter(&[&common::closed_endpoint(), &etcd.endpoint], TIMEOUT);
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
fn another_vms_record_and_a_store_that_went_back_are_refused() {
    let etcd = TestEtcd::start();
    let mut other = Etcd::new(
        std::slice::from_ref(&etcd.endpoint),
        Access::default(),
        "/kemari/",
        "other",
        TIMEOUT,
    )
    .unwrap();
    let foreign = Record {
        vm: "demo".into(),
        ..record(1, "a")
    };
    assert_eq!(swap(&mut other, None, &foreign), ArbiterAnswer::Swapped);
    let answer = read(&mut other);
    assert!(
        matches!(&answer, ArbiterAnswer::Unavailable(why) if why.contains("of the VM `demo`")),
        "{answer:?}"
    );

    // A second, younger store behind a proxy that switches over: another cluster, at an earlier revision.
    let young = TestEtcd::start();
    let proxy = Proxy::start(vec![etcd.address(), young.address()]);
    let mut arbiter = arbiter(&[&proxy], TIMEOUT);
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(None));
    let answer = read(&mut arbiter);
    assert!(
        matches!(&answer, ArbiterAnswer::Unavailable(why) if why.contains("different etcd clusters")),
        "{answer:?}"
    );
}

/// Forwards each connection to the next of its targets.
struct Proxy;

impl Proxy {
    fn start(targets: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for target in targets {
                let (mut client, _) = listener.accept().unwrap();
                let mut server = TcpStream::connect(target).unwrap();
                let request = common::read_request(&mut client);
                server.write_all(&request).unwrap();
                let mut answer = Vec::new();
                server.read_to_end(&mut answer).unwrap();
                client.write_all(&answer).unwrap();
            }
        });
        endpoint
    }
}

/// A server that gives each connection the next answer, having read the request.
fn fake(answers: Vec<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for answer in answers {
            let (mut client, _) = listener.accept().unwrap();
            common::read_request(&mut client);
            client.write_all(&answer).unwrap();
        }
    });
    endpoint
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

const EMPTY: &str = r#"{"header":{"cluster_id":"1","revision":"5"}}"#;

#[test]
fn rubbish_from_a_server_is_never_no_record() {
    for answer in [
        http("200 OK", "{}"),
        http("200 OK", "<html>welcome</html>"),
        http("200 OK", r#"{"header":{"cluster_id":"1","revision":"x"}}"#),
        http("404 Not Found", "no"),
        http(
            "503 Unavailable",
            r#"{"error":"etcdserver: no leader","code":14}"#,
        ),
        b"220 mail ready\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{\"header\"".to_vec(),
        b"".to_vec(),
        vec![b'x'; 100_000],
    ] {
        let mut arbiter = arbiter(&[&fake(vec![answer.clone()])], TIMEOUT);
        let text = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
        let read = read(&mut arbiter);
        assert!(matches!(read, ArbiterAnswer::Unavailable(_)), "{text}: {read:?}");
    }
}

#[test]
fn an_unclear_swap_is_unknown_and_a_refused_one_is_not() {
    let swap_after = |answer: Vec<u8>| {
        let mut arbiter = arbiter(&[&fake(vec![http("200 OK", EMPTY), answer])], TIMEOUT);
        swap(&mut arbiter, None, &record(1, "a"))
    };
    for unclear in [
        b"".to_vec(),
        http("200 OK", "what?"),
        http(
            "503 Unavailable",
            r#"{"error":"etcdserver: request timed out","code":14}"#,
        ),
        http("200 OK", r#"{"header":{"cluster_id":"1","revision":"6"}}"#),
    ] {
        let answer = swap_after(unclear);
        assert!(matches!(answer, ArbiterAnswer::Unknown(_)), "{answer:?}");
    }
    let answer = swap_after(http(
        "403 Forbidden",
        r#"{"error":"etcdserver: permission denied","code":7}"#,
    ));
    assert!(
        matches!(&answer, ArbiterAnswer::Unavailable(why) if why.contains("permission denied")),
        "{answer:?}"
    );
}

#[test]
fn an_earlier_revision_of_the_same_cluster_raises_the_alarm() {
    let earlier = r#"{"header":{"cluster_id":"1","revision":"4"}}"#;
    let mut arbiter = arbiter(
        &[&fake(vec![http("200 OK", EMPTY), http("200 OK", earlier)])],
        TIMEOUT,
    );
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(None));
    let answer = read(&mut arbiter);
    assert!(
        matches!(&answer, ArbiterAnswer::Unavailable(why) if why.contains("went back in time")),
        "{answer:?}"
    );
}
