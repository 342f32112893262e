//! Answers that get lost or are rubbish, and answers of another store.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use kemari::arbiter::{Access, Etcd, Unproved};
use kemari_sync::{ArbiterAnswer, Record};

use crate::common::{TestEtcd, read_request, record};
use crate::{TIMEOUT, arbiter, read, swap};

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
    let way = way_to([(etcd.address(), true), (young.address(), true)]);
    let mut arbiter = arbiter(&[&way], TIMEOUT);
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(None));
    let answer = read(&mut arbiter);
    assert!(
        matches!(&answer, ArbiterAnswer::Unavailable(why) if why.contains("different etcd clusters")),
        "{answer:?}"
    );
}

/// Passes one request after the other on to the next of these addresses, and its answer back,
/// or loses the answer.
fn way_to(targets: impl IntoIterator<Item = (String, bool)> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for ((address, passes_back), client) in targets.into_iter().zip(listener.incoming()) {
            let mut client = client.unwrap();
            let mut server = TcpStream::connect(address).unwrap();
            server.write_all(&read_request(&mut client)).unwrap();
            let mut answer = Vec::new();
            server.read_to_end(&mut answer).unwrap();
            if passes_back {
                client.write_all(&answer).unwrap();
            }
        }
    });
    endpoint
}

#[test]
fn a_swap_whose_answer_is_lost_is_unknown_and_read_back_as_done() {
    let etcd = TestEtcd::start();
    // A swap is a read and a transaction: the second answer is that of the transaction.
    let address = etcd.address();
    let endpoint = way_to((0..).map(move |number| (address.clone(), number != 1)));
    let mut arbiter = arbiter(&[&endpoint], TIMEOUT);
    let answer = swap(&mut arbiter, None, &record(1, "a"));
    assert!(matches!(answer, ArbiterAnswer::Unknown(_)), "{answer:?}");
    assert_eq!(read(&mut arbiter), ArbiterAnswer::Record(Some(record(1, "a"))));
}

/// A server that gives each connection the next answer, having read the request.
fn fake(answers: Vec<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for answer in answers {
            let (mut client, _) = listener.accept().unwrap();
            read_request(&mut client);
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

/// What the silent one would say is not known; what the other one has said is.
#[test]
fn a_cluster_of_which_one_member_refuses_is_not_silent() {
    let denied = r#"{"error":"etcdserver: permission denied","code":7}"#;
    let refuses = || fake(vec![http("403 Forbidden", denied)]);
    // Nobody listens there.
    let silent = || "http://127.0.0.1:1".to_owned();
    for endpoints in [[refuses(), silent()], [silent(), refuses()]] {
        let found = arbiter(&[&endpoints[0], &endpoints[1]], TIMEOUT).probe();
        assert!(matches!(found, Err(Unproved::Refused(_))), "{found:?}");
    }
    let found = arbiter(&[&silent(), &silent()], TIMEOUT).probe();
    assert!(matches!(found, Err(Unproved::Silent(_))), "{found:?}");
}
