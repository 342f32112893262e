//! The control socket: requests, limits, and what stands at its path before.

mod names;
mod top;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kemari::control::{
    CONNECTIONS_MAX, Client, ClientError, Command, Control, Counters, Direction, LINE_BYTES_MAX, Peer,
    Protection, Readiness, Role, Server, ServerError, Status, TapLine, TapRequest, TapSink, TapStatistics,
    Timings,
};

struct Fake {
    status: Status,
    commands: Mutex<Vec<Command>>,
    tap_ended: AtomicBool,
}

impl Fake {
    fn saying(status: Status) -> Self {
        Self {
            status,
            commands: Mutex::default(),
            tap_ended: AtomicBool::default(),
        }
    }
}

fn status() -> Status {
    Status {
        vm: "demo".into(),
        host: "a".into(),
        version: "0.1.0".into(),
        config: None,
        role: Role::Primary,
        term: 3,
        epoch: 1234,
        protection: Protection::Copying {
            done_bytes: 1 << 28,
            total_bytes: 1 << 29,
        },
        readiness: None,
        since_s: 5,
        waiting_because: Some("the arbiter does not answer".into()),
        peer: Some(Peer {
            host: "b".into(),
            address: "10.0.0.2:7711".into(),
            connected: true,
            silent_ms: Some(12),
        }),
        arbiter: "term 3".into(),
        arbiter_answered_ms: None,
        arbiter_trouble: None,
        doubt: None,
        warnings: Vec::new(),
        counters: Counters {
            syncs: 1234,
            ..Counters::default()
        },
        disks: Vec::new(),
        channels: Vec::new(),
        takeover: None,
        drill: None,
        sandbox: None,
        pace: None,
        waits: Default::default(),
        timings: Timings::default(),
    }
}

impl Control for Fake {
    fn status(&self) -> Status {
        self.status.clone()
    }

    fn tap(&self, request: &TapRequest, sink: &mut TapSink<'_>) -> Result<(), String> {
        match request.channel.as_deref() {
            Some("net0.tx") => {
                for at_us in 0..3 {
                    sink.send(&TapLine::Event {
                        at_us,
                        direction: Direction::Out,
                    });
                }
                sink.send(&TapLine::Statistics(TapStatistics {
                    channel: "net0.tx".into(),
                    direction: request.direction,
                    seconds: 1.0,
                    events: 3,
                    intervals: vec![],
                    answers: vec![],
                }));
                Ok(())
            }
            Some("quiet") => {
                while sink.wanted() {
                    thread::sleep(Duration::from_millis(5));
                }
                self.tap_ended.store(true, Ordering::SeqCst);
                Ok(())
            }
            other => Err(format!("there is no channel `{}`", other.unwrap_or("any"))),
        }
    }

    fn command(&self, command: Command) -> Result<String, String> {
        self.commands.lock().unwrap().push(command.clone());
        match command {
            Command::Stop => Ok("the VM has stopped".into()),
            _ => Err("not now".into()),
        }
    }
}

struct Served {
    server: Server,
    fake: Arc<Fake>,
    directory: tempfile::TempDir,
}

impl Served {
    fn path(&self) -> &Path {
        self.server.path()
    }
}

fn serve() -> Served {
    serve_saying(status())
}

fn serve_saying(status: Status) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::saying(status));
    let server = Server::start(&directory.path().join("run/demo.sock"), fake.clone()).unwrap();
    Served {
        server,
        fake,
        directory,
    }
}

#[test]
fn asks_and_orders() {
    let served = serve();
    let client = Client::new(served.path());
    assert_eq!(client.status().unwrap(), status());
    assert_eq!(client.command(Command::Stop).unwrap(), "the VM has stopped");
    let refused = client.command(Command::Switchover).unwrap_err();
    assert!(
        matches!(&refused, ClientError::Refused(why) if why == "not now"),
        "{refused}"
    );
    assert_eq!(
        *served.fake.commands.lock().unwrap(),
        [Command::Stop, Command::Switchover]
    );
    assert_eq!(
        std::fs::metadata(served.path()).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

/// A program that fails to write, or dies of it, has other exit statuses than these.
#[test]
fn a_verdict_needs_no_reader() {
    let ready = Status {
        protection: Protection::On,
        readiness: Some(Readiness {
            ready: true,
            reasons: Vec::new(),
            checked_ms: 1,
        }),
        ..status()
    };
    let doubtful = Status {
        protection: Protection::Doubtful,
        ..status()
    };
    for (status, verdict) in [(ready, 0), (doubtful, 2)] {
        let served = serve_saying(status);
        for format in [None, Some("--json")] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let ended = std::process::Command::new(env!("CARGO_BIN_EXE_kemari"))
                .args(["status", "--check", "--socket"])
                .arg(served.path())
                .args(format)
                .stdout(writer)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!((ended.status.code(), &*said), (Some(verdict), ""), "{format:?}");
        }
    }
}

#[test]
fn status_is_readable() {
    let text = status().to_string();
    for part in [
        "demo on a: primary, term 3, epoch 1234",
        "50 % of 512 MiB",
        "the arbiter does not answer",
        "12 ms ago",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

#[test]
fn taps_stream() {
    let served = serve();
    let client = Client::new(served.path());
    let request = |channel: &str, seconds| TapRequest {
        channel: Some(channel.into()),
        direction: Direction::Out,
        seconds,
        events: true,
    };
    let mut lines = Vec::new();
    client
        .tap(&request("net0.tx", 1), |line| lines.push(line))
        .unwrap();
    assert_eq!(lines.len(), 4);
    assert_eq!(
        lines[2],
        TapLine::Event {
            at_us: 2,
            direction: Direction::Out
        }
    );
    assert!(matches!(&lines[3], TapLine::Statistics(statistics) if statistics.events == 3));
    let unknown = client
        .tap(&request("net9", 1), |_| panic!("no line expected"))
        .unwrap_err();
    assert_eq!(unknown.to_string(), "there is no channel `net9`");
    let endless = client
        .tap(&request("net0.tx", u32::MAX), |_| panic!("no line expected"))
        .unwrap_err();
    assert!(endless.to_string().contains("a tap lasts 1 to"), "{endless}");
}

#[test]
fn a_tap_ends_with_its_client() {
    let served = serve();
    let mut stream = UnixStream::connect(served.path()).unwrap();
    let request = r#"{"tap":{"channel":"quiet","direction":"both","seconds":60,"events":false}}"#;
    writeln!(stream, "{request}").unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(
        !served.fake.tap_ended.load(Ordering::SeqCst),
        "ended while the client waits"
    );
    drop(stream);
    eventually("the tap goes on without its client", || {
        served.fake.tap_ended.load(Ordering::SeqCst)
    });
}

#[test]
fn rubbish_is_refused_and_harms_nobody() {
    let served = serve();
    let too_long = "x".repeat(2 * LINE_BYTES_MAX);
    for rubbish in [
        "",
        "{}",
        "\"reboot\"",
        "{\"command\":\"dance\"}",
        "\u{0}\u{1}",
        "GET / HTTP/1.1",
        &too_long,
    ] {
        let mut stream = UnixStream::connect(served.path()).unwrap();
        // The server may answer, and close, before all of it is written.
        let _ = writeln!(stream, "{rubbish}");
        let mut answer = String::new();
        let read = BufReader::new(stream).read_line(&mut answer);
        assert!(
            read.is_err() || answer.contains("refused"),
            "{rubbish:.20}: {answer}"
        );
    }
    assert_eq!(Client::new(served.path()).status().unwrap(), status());
}

#[test]
fn clients_are_limited_and_the_silent_are_let_go() {
    let served = serve();
    let silent: Vec<UnixStream> = (0..CONNECTIONS_MAX)
        .map(|_| UnixStream::connect(served.path()).unwrap())
        .collect();
    let refused = Client::new(served.path()).status().unwrap_err();
    assert!(refused.to_string().contains("try again later"), "{refused}");
    drop(silent);
    eventually("places stay taken", || {
        Client::new(served.path()).status().is_ok()
    });
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_refused() {
    let served = serve();
    let path = served.path().to_owned();
    let second = Server::start(&path, Arc::new(Fake::saying(status())))
        .err()
        .unwrap();
    assert!(
        matches!(&second, ServerError::InUse(_)) && second.to_string().contains("kemari status"),
        "{second}"
    );
    assert_eq!(
        Client::new(&path).status().unwrap(),
        status(),
        "the first one goes on"
    );

    let stale: PathBuf = served.directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists(), "a dead listener leaves its socket");
    let third = Server::start(&stale, Arc::new(Fake::saying(status()))).unwrap();
    assert_eq!(Client::new(&stale).status().unwrap(), status());
    drop(third);
    assert!(!stale.exists(), "the socket is removed at the end");

    let file = served.directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(
        Server::start(&file, Arc::new(Fake::saying(status()))),
        Err(ServerError::NotASocket(_))
    ));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn nobody_at_home() {
    let directory = tempfile::tempdir().unwrap();
    let error = Client::new(&directory.path().join("none.sock"))
        .status()
        .unwrap_err();
    assert!(
        matches!(error, ClientError::NotRunning { .. }) && error.to_string().contains("kemari run"),
        "{error}"
    );
}

#[test]
fn another_version_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(b"{\"something\":\"new\"}\n").unwrap();
    });
    assert!(matches!(
        Client::new(&path).status(),
        Err(ClientError::OtherVersion(_))
    ));
    server.join().unwrap();
}

fn eventually(otherwise: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < until, "{otherwise}");
        thread::sleep(Duration::from_millis(10));
    }
}
