//! The link: who may speak to whom, and that a refusal has a reason on both sides.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kemari::certs;
use kemari::link::{
    Arrival, CA_FILE, CERTIFICATE_FILE, Connection, Credentials, KEY_FILE, Listener, Preface, Purpose,
    Security, connect,
};
use kemari_sync::Incarnation;
use kemari_sync::wire::{Goodbye, Hello, Message, PROTOCOL_VERSION, decode, encode};

/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A set of certificates.
struct Set(tempfile::TempDir);

impl Set {
    fn new(hosts: &[&str]) -> Self {
        let set = Self(tempfile::tempdir().unwrap());
        set.make(hosts, 100);
        set
    }

    fn make(&self, hosts: &[&str], days: u32) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        certs::make(self.0.path(), &hosts, days).unwrap();
    }

    fn path(&self, host: &str) -> PathBuf {
        self.0.path().join(host)
    }

    fn of(&self, host: &str) -> Security {
        Security::Tls(Arc::new(Credentials::load(&self.path(host), host).unwrap()))
    }
}

/// What the listener of `b` saw until nothing more comes.
struct Seen {
    sessions: Vec<(Connection, Connection)>,
    queries: usize,
    refusals: Vec<String>,
}

/// Lets somebody do something to a listening `b`; returns what that one was told, and what `b` saw.
fn meet<T: Send + 'static>(
    b: Security,
    visit: impl FnOnce(std::net::SocketAddr) -> T + Send + 'static,
) -> (T, Seen) {
    let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap(), b).unwrap();
    let address = listener.address().unwrap();
    let visitor = thread::spawn(move || visit(address));
    let mut seen = Seen {
        sessions: Vec::new(),
        queries: 0,
        refusals: Vec::new(),
    };
    let start = Instant::now();
    let mut quiet_since = None;
    while start.elapsed() < PATIENCE {
        for arrival in listener.poll(start.elapsed().as_millis() as u64) {
            match arrival {
                Arrival::Session { main, heartbeat } => seen.sessions.push((main, heartbeat)),
                Arrival::Query(_) => seen.queries += 1,
                Arrival::Refused { reason, .. } => seen.refusals.push(reason.to_string()),
            }
        }
        // A little longer than the visit: its end may be what is seen last.
        if visitor.is_finished()
            && quiet_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(100)
        {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    (visitor.join().unwrap(), seen)
}

/// Connects as a primary does; `Err` is what its operator reads.
fn open_session(
    security: &Security,
    address: std::net::SocketAddr,
) -> Result<(Connection, Connection), String> {
    let open = |purpose| {
        connect(
            security,
            "b",
            address,
            &Preface {
                purpose,
                session_nonce: 7,
            },
        )
        .map_err(|error| error.to_string())
    };
    Ok((open(Purpose::Main)?, open(Purpose::Heartbeat)?))
}

/// Both sides must refuse, each with its reason, and nothing must come of it.
fn refused(a: Security, b: Security, a_reads: &str, b_reads: &str) {
    let (outcome, seen) = meet(b, move |address| open_session(&a, address).err());
    let told = outcome.expect("no session may come of it");
    assert!(
        told.contains(a_reads),
        "the primary reads `{told}`, not `{a_reads}`"
    );
    assert!(seen.sessions.is_empty() && seen.queries == 0);
    assert!(
        seen.refusals.iter().any(|reason| reason.contains(b_reads)),
        "the secondary reads {:?}, not `{b_reads}`",
        seen.refusals
    );
}

fn hello(host: &str) -> Message {
    Message::Hello(Hello {
        session: 1,
        protocol: PROTOCOL_VERSION,
        vm: "vm".into(),
        config_digest: 1,
        incarnation: Incarnation {
            host: host.into(),
            nonce: 1,
        },
        term: 1,
        peer: None,
        last: None,
    })
}

/// Waits for the next message.
fn next(connection: &mut Connection) -> Message {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        connection.flush();
        let message = connection.receive(|header, body| {
            header.check(body)?;
            Ok(Some(decode(header.kind, body)?))
        });
        if let Some(message) = message.unwrap() {
            return message;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("no message came");
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, &mut bytes);
    bytes
}

/// The connections of a session, main and heartbeat: the ends that `a` has made,
/// and those that `b` has accepted.
struct Ends {
    is_encrypted: bool,
    ours: (Connection, Connection),
    theirs: (Connection, Connection),
}

/// A session between `a` and `b`, encrypted, and one in plaintext.
fn sessions() -> [Ends; 2] {
    let set = Set::new(&["a", "b"]);
    [
        (true, set.of("a"), set.of("b")),
        (false, Security::Plaintext, Security::Plaintext),
    ]
    .map(|(is_encrypted, a, b)| {
        let (outcome, mut seen) = meet(b, move |address| open_session(&a, address));
        assert_eq!(seen.refusals, [""; 0]);
        Ends {
            is_encrypted,
            ours: outcome.unwrap(),
            theirs: seen.sessions.remove(0),
        }
    })
}

#[test]
fn two_hosts_of_a_set_talk_and_only_in_their_own_names() {
    for ends in sessions() {
        let Ends {
            is_encrypted,
            ours: (mut main, mut heartbeat),
            theirs: (mut other_main, mut other_heartbeat),
        } = ends;
        main.send(encoded(&hello("a")));
        let greeting = next(&mut other_main);
        assert_eq!(greeting, hello("a"));
        for connection in [&other_main, &other_heartbeat] {
            assert!(connection.check_claim(&greeting).is_ok());
            // Plaintext proves nothing, and the documentation says so.
            let lie = connection.check_claim(&hello("c"));
            assert_eq!(lie.is_err(), is_encrypted);
            if let Err(error) = lie {
                assert!(error.to_string().contains("says that it is `c`"), "{error}");
            }
        }
        let goodbye = Message::Goodbye(Goodbye::Stopped);
        other_heartbeat.send(encoded(&goodbye));
        assert_eq!(next(&mut heartbeat), goodbye);
    }
}

/// Whoever goes while the other end is sending to it leaves a reset behind,
/// and that must not drown what it said.
#[test]
fn what_was_said_before_a_connection_broke_is_heard() {
    for ends in sessions() {
        let ((mut main, _heartbeat), (mut other, other_heartbeat)) = (ends.ours, ends.theirs);
        let goodbye = Message::Goodbye(Goodbye::Stopped);
        other.send(encoded(&goodbye));
        // Unread, it makes the kernel reset the connection when it is closed.
        main.send(encoded(&hello("a")));
        thread::sleep(Duration::from_millis(50));
        drop((other, other_heartbeat));
        for _ in 0..3 {
            main.send(encoded(&hello("a")));
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(next(&mut main), goodbye);
        let end = main.receive(|_, _| Ok(Some(())));
        assert!(end.is_err(), "{end:?}");
    }
}

#[test]
fn bulk_data_passes_whole_both_ways_without_blocking() {
    for ends in sessions() {
        let ((mut main, _heartbeat), (mut other, _other_heartbeat)) = (ends.ours, ends.theirs);
        let reason = |index: usize| "x".repeat(index % 500);
        const MESSAGES: usize = 20_000;
        let batch = |range: std::ops::Range<usize>| {
            range.map(move |index| encoded(&Message::Goodbye(Goodbye::Unfit(reason(index)))))
        };
        // More than sockets and TLS take: the rest waits in the connection.
        main.send_all(batch(0..MESSAGES));
        other.send_all(batch(0..MESSAGES));
        let (mut here, mut there) = (0, 0);
        let start = Instant::now();
        while (here, there) != (MESSAGES, MESSAGES) && start.elapsed() < PATIENCE {
            for (connection, count) in [(&mut main, &mut here), (&mut other, &mut there)] {
                connection.flush();
                let end = connection.receive(|header, body| {
                    header.check(body)?;
                    let expected = Message::Goodbye(Goodbye::Unfit(reason(*count)));
                    assert_eq!(decode(header.kind, body)?, expected);
                    *count += 1;
                    Ok(None::<()>)
                });
                end.unwrap();
            }
        }
        assert_eq!((here, there), (MESSAGES, MESSAGES));
        assert!(!main.wants_to_write() && main.queued_bytes() == 0);
    }
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let (ours, theirs) = (Set::new(&["b"]), Set::new(&["a"]));
    // The primary looks first.
    refused(
        theirs.of("a"),
        ours.of("b"),
        "not signed by the authority",
        "it refused this side",
    );
    // A primary that takes our secondary, but has another's certificate: the secondary looks.
    let mixed = Set::new(&["a"]);
    fs::copy(ours.path("b").join(CA_FILE), mixed.path("a").join(CA_FILE)).unwrap();
    let error = Credentials::load(&mixed.path("a"), "a")
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("not signed by the authority"),
        "such a primary does not even start: {error}"
    );
}

#[test]
fn an_expired_certificate_is_refused() {
    let set = Set::new(&["b"]);
    set.make(&["a"], 1);
    let a = set.of("a");
    let Security::Tls(credentials) = &a else {
        unreachable!()
    };
    let identity = credentials.identity();
    assert_eq!(identity.check_after(Duration::from_secs(12 * 3600)), Ok(()));
    let later = identity.check_after(Duration::from_secs(48 * 3600)).unwrap_err();
    assert!(
        later.contains("host `a`") && later.contains("has expired"),
        "{later}"
    );
    // One that has expired: valid for a time before now only.
    let old = Set::new(&["b"]);
    old.make(&["a"], 0);
    thread::sleep(Duration::from_millis(1100));
    let error = Credentials::load(&old.path("a"), "a").err().unwrap().to_string();
    assert!(error.contains("has expired"), "{error}");
}

#[test]
fn a_host_in_anothers_place_is_refused() {
    let set = Set::new(&["a", "b", "c"]);
    // `c` listens where `b` should.
    refused(
        set.of("a"),
        set.of("c"),
        "it is for another host",
        "it refused this side",
    );
}

/// A client that does not look at its own certificate is refused by the secondary, and told so.
fn stranger_refused(b: &Set, shows: Option<PathBuf>, told: &str, b_reads: &str) {
    let ca = fs::read_to_string(b.path("b").join(CA_FILE)).unwrap();
    let (answer, seen) = meet(b.of("b"), move |address| stranger(address, &ca, shows.as_deref()));
    assert!(
        answer.contains(told),
        "the client is told `{answer}`, not `{told}`"
    );
    assert!(
        seen.refusals.iter().any(|reason| reason.contains(b_reads)),
        "{:?}",
        seen.refusals
    );
    assert!(seen.sessions.is_empty() && seen.queries == 0);
}

#[test]
fn strangers_are_told_why() {
    let set = Set::new(&["b"]);
    stranger_refused(&set, None, "CertificateRequired", "showed no certificate");
    let other = Set::new(&["a"]);
    stranger_refused(
        &set,
        Some(other.path("a")),
        "alert",
        "not signed by the authority",
    );
    set.make(&["a"], 0);
    thread::sleep(Duration::from_millis(1100));
    stranger_refused(&set, Some(set.path("a")), "CertificateExpired", "it has expired");
}

/// A TLS client that trusts the set, and shows what it likes. Returns what it is told.
fn stranger(address: std::net::SocketAddr, ca: &str, shows: Option<&Path>) -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use std::io::{Read, Write};
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let builder =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
    let config = match shows {
        None => builder.with_no_client_auth(),
        Some(directory) => {
            let certificate = CertificateDer::from_pem_file(directory.join(CERTIFICATE_FILE)).unwrap();
            let key = PrivateKeyDer::from_pem_file(directory.join(KEY_FILE)).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    let mut session = rustls::ClientConnection::new(Arc::new(config), "b".try_into().unwrap()).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    let preface = Preface {
        purpose: Purpose::Main,
        session_nonce: 7,
    };
    let outcome = stream
        .write_all(&preface.encode())
        .and_then(|()| stream.read(&mut [0; 64]));
    outcome.expect_err("no stranger is accepted").to_string()
}

#[test]
fn plaintext_and_tls_do_not_meet() {
    let set = Set::new(&["a", "b"]);
    refused(Security::Plaintext, set.of("b"), "TLS", "does not speak TLS");
    refused(
        set.of("a"),
        Security::Plaintext,
        "closed the connection without an answer",
        "says `plaintext = true`",
    );
}

#[test]
fn rubbish_and_silence_are_not_answered_for_ever() {
    let set = Set::new(&["b"]);
    for b in [set.of("b"), Security::Plaintext] {
        let (_, seen) = meet(b, |address| {
            use std::io::{Read, Write};
            let mute = TcpStream::connect(address).unwrap();
            let mut loud = TcpStream::connect(address).unwrap();
            loud.write_all(b"GET / HTTP/1.1\r\nHost: b\r\nAccept: text/html\r\n\r\n")
                .unwrap();
            loud.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut rest = Vec::new();
            loud.read_to_end(&mut rest).unwrap();
            mute.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(
                (&mute).read(&mut [0; 8]).unwrap(),
                0,
                "the mute one is given up, too"
            );
        });
        assert_eq!(seen.refusals.len(), 2, "{:?}", seen.refusals);
        assert!(seen.sessions.is_empty());
    }
    // And who connects to something that never answers hears of it.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let told = open_session(&Security::Plaintext, mute.local_addr().unwrap())
        .err()
        .unwrap();
    assert!(told.contains("did not answer within"), "{told}");
}

#[test]
fn replaced_certificates_count_from_the_next_connection() {
    let (old, new) = (Set::new(&["a", "b"]), Set::new(&["a", "b"]));
    let (a, b) = (old.of("a"), old.of("b"));
    let copy = |host: &str| {
        for file in [CA_FILE, KEY_FILE, CERTIFICATE_FILE] {
            fs::copy(new.path(host).join(file), old.path(host).join(file)).unwrap();
        }
    };
    copy("b");
    refused(
        a.clone(),
        b.clone(),
        "not signed by the authority",
        "it refused this side",
    );
    copy("a");
    let (outcome, seen) = meet(b.clone(), move |address| open_session(&a, address).is_ok());
    assert!(outcome && seen.sessions.len() == 1);
    // Files that are no good leave the last good ones in use.
    fs::write(old.path("b").join(CERTIFICATE_FILE), "rubbish").unwrap();
    let a = new.of("a");
    let (outcome, _) = meet(b, move |address| open_session(&a, address).is_ok());
    assert!(outcome);
}

fn load_error(directory: &Path, host: &str) -> String {
    Credentials::load(directory, host)
        .err()
        .expect("these certificates are no good")
        .to_string()
}

#[test]
fn certificates_that_are_no_good_are_refused_at_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let set = Set::new(&["a", "b"]);
    let (a, b) = (set.path("a"), set.path("b"));
    assert!(load_error(&set.path("nowhere"), "a").contains("cannot be read"));
    assert!(load_error(&a, "b").contains("host `b`: it is for another host"));
    fs::set_permissions(a.join(KEY_FILE), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(load_error(&a, "a").contains("can be read by other users"));
    fs::set_permissions(a.join(KEY_FILE), fs::Permissions::from_mode(0o600)).unwrap();
    fs::copy(b.join(KEY_FILE), a.join(KEY_FILE)).unwrap();
    assert!(load_error(&a, "a").contains("cannot be used"));
    fs::write(b.join(CERTIFICATE_FILE), "").unwrap();
    assert!(load_error(&b, "b").contains("no certificate is in it"));
}

#[test]
fn a_set_grows_and_nothing_is_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let set = Set::new(&["a", "b"]);
    for key in [set.path("a").join(KEY_FILE), set.path("ca.key")] {
        assert_eq!(
            fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600,
            "{}",
            key.display()
        );
    }
    let make = |hosts: &[&str]| {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        certs::make(set.0.path(), &hosts, 10).map_err(|error| error.to_string())
    };
    let before = fs::read(set.path("a").join(CERTIFICATE_FILE)).unwrap();
    assert!(make(&["c", "a"]).unwrap_err().contains("is not overwritten"));
    assert!(!set.path("c").exists(), "all or nothing");
    assert_eq!(fs::read(set.path("a").join(CERTIFICATE_FILE)).unwrap(), before);
    // A host that is added belongs to the set.
    make(&["c"]).unwrap();
    let c = set.of("c");
    let (outcome, _) = meet(set.of("b"), move |address| open_session(&c, address).is_ok());
    assert!(outcome);
    for bad in ["../x", "10.0.0.1", "-x", "a b", ""] {
        assert!(
            make(&[bad])
                .unwrap_err()
                .contains("cannot stand in a certificate"),
            "{bad}"
        );
    }
    assert!(make(&["d", "d"]).unwrap_err().contains("named twice"));
    assert!(make(&[]).unwrap_err().contains("--hosts"));
    fs::remove_file(set.path("ca.key")).unwrap();
    assert!(make(&["d"]).unwrap_err().contains("lacks one of"));
}
