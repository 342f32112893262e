//! The clients: connections that work side by side, a thread each, and never reconnect.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::connection::{Connection, Live};
use super::history::{Clock, History};
use super::load::{CONNECTIONS_MAX, Load};

/// How long the first connect of a client may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of the connection that reads all keys at the end.
pub const FINAL_READER: u16 = u16::MAX;

/// Clients at work.
#[derive(Debug)]
pub struct Swarm {
    stop: Arc<AtomicBool>,
    live: Vec<Arc<Live>>,
    threads: Vec<JoinHandle<History>>,
}

impl Swarm {
    /// Connects all clients and sets them to work. Fails if any of them cannot connect.
    pub fn start(load: &Load, clock: Clock) -> Result<Self> {
        ensure!(
            (1..=CONNECTIONS_MAX).contains(&load.connections),
            "{} connections were asked for: between 1 and {CONNECTIONS_MAX} are possible",
            load.connections
        );
        let streams = (0..load.connections)
            .map(|_| connect(load))
            .collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut swarm = Self {
            stop: stop.clone(),
            live: Vec::new(),
            threads: Vec::new(),
        };
        for (id, stream) in (0..).zip(streams) {
            let live = Arc::new(Live::default());
            swarm.live.push(live.clone());
            let (load, stop) = (load.clone(), stop.clone());
            let thread = std::thread::Builder::new()
                .name(format!("client-{id}"))
                .spawn(move || match Connection::new(id, &load, clock, &live, stream) {
                    Ok(connection) => connection.work(&stop),
                    Err(e) => History {
                        operations: Vec::new(),
                        connections: vec![super::history::ConnectionEnd {
                            connection: id,
                            lost: Some(format!("the socket refused its options: {e}")),
                            stray_answers: 0,
                        }],
                    },
                });
            swarm
                .threads
                .push(thread.context("a client's thread could not be started")?);
        }
        Ok(swarm)
    }

    /// Acknowledged writes so far, by connection.
    pub fn acknowledged(&self) -> Vec<u64> {
        self.live
            .iter()
            .map(|live| live.acknowledged.load(Ordering::Relaxed))
            .collect()
    }

    /// Number of connections lost so far.
    pub fn lost(&self) -> usize {
        self.live
            .iter()
            .filter(|live| live.lost.load(Ordering::Relaxed))
            .count()
    }

    /// Lets every client take the answers to what it has asked, and returns what they all saw.
    pub fn finish(mut self) -> Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        let mut history = History::default();
        for thread in std::mem::take(&mut self.threads) {
            history.merge(thread.join().map_err(|_| anyhow!("a client's thread panicked"))?);
        }
        Ok(history)
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Reads every key once over a new connection.
pub fn read_all_keys(load: &Load, clock: Clock) -> Result<History> {
    let stream = connect(load)?;
    let live = Live::default();
    let history = Connection::new(FINAL_READER, load, clock, &live, stream)?.read_all();
    match history.connections.iter().find_map(|end| end.lost.clone()) {
        Some(why) => Err(anyhow!("the final read of all keys failed: {why}")),
        None => Ok(history),
    }
}

/// Connects from the load's network namespace.
pub fn connect(load: &Load) -> Result<TcpStream> {
    let service = load.service;
    within(load.netns.as_deref(), move || {
        TcpStream::connect_timeout(&service, CONNECT_TIMEOUT)
    })?
    .with_context(|| format!("no connection to the service at {service}"))
}

/// Runs a function on a thread that has entered a network namespace; sockets it makes stay in that namespace.
pub fn within<T: Send>(netns: Option<&Path>, run: impl FnOnce() -> T + Send) -> Result<T> {
    let Some(path) = netns else { return Ok(run()) };
    let enter_and_run = || -> Result<T> {
        let file = std::fs::File::open(path)
            .with_context(|| format!("the network namespace {} cannot be opened", path.display()))?;
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(kind)).with_context(
            || {
                format!(
                    "the network namespace {} cannot be entered: this needs root",
                    path.display()
                )
            },
        )?;
        Ok(run())
    };
    std::thread::scope(|scope| scope.spawn(enter_and_run).join())
        .map_err(|_| anyhow!("a thread in {} panicked", path.display()))?
}
