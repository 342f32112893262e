//! What several tests need: a real etcd, records, free ports.
#![allow(dead_code, reason = "each test program uses a part")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kemari_sync::{Incarnation, Phase, Record};

/// A record of the VM `demo` that `host` owns in `term`.
pub(crate) fn record(term: u64, host: &str) -> Record {
    Record {
        vm: "demo".into(),
        store: 7,
        term,
        base: term,
        owner: Incarnation {
            host: host.into(),
            nonce: u128::from(term) << 64,
        },
        peer: None,
        phase: Phase::Acting,
        work: Default::default(),
    }
}

/// A port of loopback that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// An endpoint where nobody listens.
pub(crate) fn closed_endpoint() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

/// Reads an HTTP request with a `Content-Length`, whole.
pub(crate) fn read_request(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some(end) = text.find("\r\n\r\n") {
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "));
            if bytes.len() >= end + 4 + length.map_or(0, |length| length.parse::<usize>().unwrap()) {
                return bytes;
            }
        }
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "the request ended early: {text}");
        bytes.extend(&part[..count]);
    }
}

/// An etcd of this test alone, on loopback, with its data in a temporary directory. Ends with the value.
pub(crate) struct TestEtcd {
    child: Child,
    directory: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    options: Vec<String>,
    /// Its client URL.
    pub endpoint: String,
}

impl TestEtcd {
    /// Starts it and waits until it answers. Panics with the reason if Debian's `etcd-server` is missing.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with further options.
    pub(crate) fn start_with(options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        // A free port may be taken by somebody else before etcd binds it: then others are tried.
        for _ in 0..5 {
            let directory = tempfile::tempdir().unwrap();
            let (client_port, peer_port) = (free_port(), free_port());
            let child = spawn(&directory, client_port, peer_port, &options);
            let endpoint = format!("http://127.0.0.1:{client_port}");
            let mut etcd = Self {
                child,
                directory,
                client_port,
                peer_port,
                options: options.clone(),
                endpoint,
            };
            if etcd.wait() {
                return etcd;
            }
        }
        panic!("etcd does not start: try `etcd --data-dir /tmp/x` by hand");
    }

    /// `host:port`
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Kills it, as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again with the same data and ports.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.directory, self.client_port, self.peer_port, &self.options);
        assert!(self.wait(), "etcd does not come back");
    }

    /// Stops it without ending it.
    pub(crate) fn freeze(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        // Its threads stop one after the other: until the last one has, one of them may answer.
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED).unwrap();
    }

    /// Takes all that a killed one had stored.
    pub(crate) fn wipe(&self) {
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
    }

    /// Puts `value` at `key`, past the arbiter.
    pub(crate) fn put(&self, key: &str, value: &str) {
        let body = format!(r#"{{"key":"{}","value":"{}"}}"#, encode(key), encode(value));
        self.post("", "/v3/kv/put", &body);
    }

    /// What stands at `key`, with its revisions.
    pub(crate) fn get(&self, key: &str) -> serde_json::Value {
        self.post("", "/v3/kv/range", &format!(r#"{{"key":"{}"}}"#, encode(key)))["kvs"].clone()
    }

    /// Its number in its cluster.
    pub(crate) fn member_id(&self) -> String {
        let answer = self.post("", "/v3/maintenance/status", "{}");
        answer["header"]["member_id"].as_str().unwrap().to_owned()
    }

    /// POSTs to the gateway with further `headers`, and expects that it is taken.
    pub(crate) fn post(&self, headers: &str, path: &str, body: &str) -> serde_json::Value {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{path}: {answer}");
        serde_json::from_str(body).unwrap()
    }

    fn wait(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if self.healthy() {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn healthy(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address()) else {
            return false;
        };
        let mut answer = String::new();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.contains("\"health\":\"true\"")
    }
}

fn encode(text: &str) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(text)
}

fn spawn(directory: &tempfile::TempDir, client_port: u16, peer_port: u16, options: &[String]) -> Child {
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let log = File::create(directory.path().join("log")).unwrap();
    Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(options)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("cannot start `etcd`: install Debian's package etcd-server")
}

impl Drop for TestEtcd {
    fn drop(&mut self) {
        // Already dead is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
