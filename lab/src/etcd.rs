//! An etcd for the arbiter's record.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::error::{Context, Error, Result, tail};
use crate::netns::Netns;
use crate::network::OUTSIDE_CONTROL;
use crate::packages::unpacked;
use crate::process::Process;
use crate::scratch::scratch_dir;

/// The port that clients use.
const CLIENT_PORT: u16 = 2379;
/// Longest wait until it is healthy; measured: 1 s.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Longest wait for one answer about its health.
const HEALTH_LIMIT: Duration = Duration::from_secs(1);

/// A running etcd outside the hosts, with its data in a temporary directory; killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    dir: TempDir,
}

impl Etcd {
    /// Starts etcd in `outside` ([`crate::LocalNet::outside`]) and waits until it is healthy. Hosts reach it
    /// at [`Etcd::endpoint`].
    pub fn start(outside: &Netns) -> Result<Etcd> {
        let program = unpacked("etcd-server")?.join("usr/bin/etcd");
        let dir = scratch_dir()?;
        let log = File::create(dir.path().join("log")).context(|| "make etcd's log".into())?;
        let mut command = outside.command(program);
        let endpoint = format!("http://{OUTSIDE_CONTROL}:{CLIENT_PORT}");
        command.arg("--data-dir").arg(dir.path().join("data"));
        command.args([
            "--listen-client-urls",
            &endpoint,
            "--advertise-client-urls",
            &endpoint,
        ]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        command.args(["--log-level", "warn"]);
        command
            .stdout(log.try_clone().context(|| "share etcd's log".into())?)
            .stderr(log);
        let mut etcd = Etcd {
            process: Process::spawn("etcd", command)?,
            dir,
        };
        let deadline = Instant::now() + START_LIMIT;
        while !outside.run(is_healthy)? {
            if Instant::now() >= deadline || !etcd.process.is_running() {
                let log_tail = tail(&etcd.log(), 20);
                return Err(Error::Timeout {
                    what: "etcd did not start".into(),
                    waited: START_LIMIT,
                    log_tail,
                });
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(etcd)
    }

    /// Where hosts reach it: `http://ADDRESS:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{OUTSIDE_CONTROL}:{CLIENT_PORT}")
    }

    /// Stops answering (SIGSTOP), with connections left open.
    pub fn pause(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// Ends a [`Etcd::pause`].
    pub fn resume(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

/// Whether etcd says so itself.
fn is_healthy() -> bool {
    let ask = |address: Ipv4Addr| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, CLIENT_PORT)), HEALTH_LIMIT)?;
        stream.set_read_timeout(Some(HEALTH_LIMIT))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask(OUTSIDE_CONTROL).is_ok_and(|answer| answer.contains("\"health\":\"true\""))
}
