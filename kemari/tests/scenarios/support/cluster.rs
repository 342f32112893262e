//! An etcd of three members.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Netns, OUTSIDE_CONTROL, Process};
use tempfile::TempDir;

use super::{PATIENCE, wait_for};

/// Members.
const MEMBERS: usize = 3;
/// The first member's ports; those of the next are ten further on.
const CLIENT_PORT: usize = 2379;
const PEER_PORT: usize = 2380;
/// Longest wait for a member's word about its health.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Three members, outside the hosts. They end with the value.
pub(crate) struct Cluster {
    members: [Option<Process>; MEMBERS],
    outside: Netns,
    directory: TempDir,
}

impl Cluster {
    /// Where hosts reach the members.
    pub(crate) fn endpoints() -> Vec<String> {
        (0..MEMBERS).map(endpoint).collect()
    }

    /// Starts all members, and waits until they answer.
    pub(crate) fn start(outside: &Netns) -> Result<Self> {
        let mut cluster = Self {
            members: [const { None }; MEMBERS],
            outside: outside.clone(),
            directory: lab::scratch_dir()?,
        };
        (0..MEMBERS).try_for_each(|member| cluster.start_member(member))?;
        cluster.await_healthy(0)?;
        Ok(cluster)
    }

    /// Starts a member, again too: it has its data.
    pub(crate) fn start_member(&mut self, member: usize) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join(format!("{member}.log")))?;
        let all: Vec<String> = (0..MEMBERS)
            .map(|other| format!("{}={}", name(other), peer_url(other)))
            .collect();
        let mut command = self.outside.command("etcd");
        command
            .args(["--name", &name(member), "--log-level", "warn"])
            .arg("--data-dir")
            .arg(self.directory.path().join(name(member)))
            .args(["--listen-client-urls", &endpoint(member)])
            .args(["--advertise-client-urls", &endpoint(member)])
            .args(["--listen-peer-urls", &peer_url(member)])
            .args(["--initial-advertise-peer-urls", &peer_url(member)])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--initial-cluster-state", "new"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.members[member] = Some(Process::spawn("etcd", command)?);
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, member: usize) -> Result<()> {
        let mut process = self.members[member].take().context("the member runs")?;
        Ok(process.kill()?)
    }

    /// Waits until a member says that it belongs to a cluster that decides.
    pub(crate) fn await_healthy(&self, member: usize) -> Result<()> {
        let port = (CLIENT_PORT + 10 * member) as u16;
        wait_for("the arbiter's quorum", PATIENCE, || {
            let answer = self.outside.run(|| ask_health(port))?;
            Ok(answer
                .is_ok_and(|answer| answer.contains("\"health\":\"true\""))
                .then_some(()))
        })
    }
}

fn ask_health(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((OUTSIDE_CONTROL, port))?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn name(member: usize) -> String {
    format!("member-{member}")
}

fn endpoint(member: usize) -> String {
    format!("http://{OUTSIDE_CONTROL}:{}", CLIENT_PORT + 10 * member)
}

fn peer_url(member: usize) -> String {
    format!("http://127.0.0.1:{}", PEER_PORT + 10 * member)
}
