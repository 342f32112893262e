//! The clients: connections that work side by side, a thread each, and never reconnect.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::connection::{Connection, DRAIN, Live, STOP, WORK};
use super::history::{Clock, ConnectionEnd, History};
use super::load::{CONNECTIONS_MAX, Load, Protocol};
use super::postgres::client as postgres;
use super::resp::{Decoder, Reply, encode_request};

/// How long the first connect of a client may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of the connection that reads everything back at the end.
pub const FINAL_READER: u16 = u16::MAX;

/// Clients at work.
#[derive(Debug)]
pub struct Swarm {
    stop: Arc<AtomicU8>,
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
        if load.protocol == Protocol::Postgres {
            postgres::prepare(load)?;
        }
        let streams = (0..load.connections)
            .map(|_| connect(load))
            .collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicU8::new(WORK));
        let mut swarm = Self {
            stop: stop.clone(),
            live: (0..load.connections).map(|_| Arc::default()).collect(),
            threads: Vec::new(),
        };
        for (id, stream) in (0..).zip(streams) {
            let (load, lives, stop) = (load.clone(), swarm.live.clone(), stop.clone());
            let thread = std::thread::Builder::new()
                .name(format!("client-{id}"))
                .spawn(move || work(id, &load, clock, &lives, &stop, stream));
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
        self.live.iter().filter(|live| live.lost.get().is_some()).count()
    }

    /// Why the first of them was lost.
    pub fn loss(&self) -> Option<&str> {
        self.live
            .iter()
            .find_map(|live| live.lost.get())
            .map(String::as_str)
    }

    /// Tells every client to stop at once, and to leave open what was not answered.
    pub fn stop(&self) {
        self.stop.store(STOP, Ordering::Relaxed);
    }

    /// Stops every client and returns what they all saw. `drain`: first they take the answers to what they
    /// asked; otherwise that stays open.
    pub fn finish(mut self, drain: bool) -> Result<History> {
        if drain {
            // Who was told to stop at once is not called back.
            let _ = self
                .stop
                .compare_exchange(WORK, DRAIN, Ordering::Relaxed, Ordering::Relaxed);
        } else {
            self.stop();
        }
        let mut history = History::default();
        for thread in std::mem::take(&mut self.threads) {
            history.merge(thread.join().map_err(|_| anyhow!("a client's thread panicked"))?);
        }
        Ok(history)
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What one client does, and what it saw.
fn work(
    id: u16,
    load: &Load,
    clock: Clock,
    lives: &[Arc<Live>],
    state: &AtomicU8,
    stream: TcpStream,
) -> History {
    if load.protocol == Protocol::Postgres {
        let worker = postgres::Worker {
            id,
            load,
            clock,
            lives,
            state,
        };
        return worker.work(stream);
    }
    match Connection::new(id, load, clock, &lives[usize::from(id)], stream) {
        Ok(connection) => connection.work(state),
        Err(e) => History {
            operations: Vec::new(),
            connections: vec![ConnectionEnd {
                connection: id,
                lost: Some(format!("the socket refused its options: {e}")),
                stray_answers: 0,
            }],
        },
    }
}

/// Reads everything once over a new connection: every key, or what became of every transaction in `history`.
pub fn read_all_keys(load: &Load, clock: Clock, history: &History) -> Result<History> {
    if load.protocol == Protocol::Postgres {
        return postgres::read_all(load, clock, history);
    }
    let stream = connect(load)?;
    let live = Live::default();
    let history = Connection::new(FINAL_READER, load, clock, &live, stream)?.read_all();
    match history.connections.iter().find_map(|end| end.lost.clone()) {
        Some(why) => Err(anyhow!("the final read of all keys failed: {why}")),
        None => Ok(history),
    }
}

/// Asks the service whether it serves.
pub fn ping(load: &Load) -> Result<()> {
    if load.protocol == Protocol::Postgres {
        return postgres::ask(load, "SELECT 1").map(drop);
    }
    let reply = ask(load, &["PING"], CONNECT_TIMEOUT)?;
    ensure!(
        reply == Reply::Simple("PONG".into()),
        "the service answered PING by {reply:?}"
    );
    Ok(())
}

/// Sends one request over a connection of its own, and waits for its answer;
/// what the service refuses is an error.
pub fn ask(load: &Load, words: &[&str], timeout: Duration) -> Result<Reply> {
    let mut stream = connect(load)?;
    stream.set_read_timeout(Some(timeout))?;
    let shown = words.first().copied().unwrap_or_default();
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let mut request = Vec::new();
    encode_request(&mut request, &words);
    stream
        .write_all(&request)
        .with_context(|| format!("{shown} cannot be sent"))?;
    let (mut decoder, mut bytes) = (Decoder::default(), [0; 4096]);
    loop {
        let count = stream
            .read(&mut bytes)
            .with_context(|| format!("{shown} got no answer"))?;
        ensure!(
            count > 0,
            "the service closed the connection instead of answering {shown}"
        );
        decoder.feed(&bytes[..count]);
        match decoder.next_reply()? {
            None => {}
            Some(Reply::Error(text)) => bail!("the service refused {shown}: {text}"),
            Some(reply) => return Ok(reply),
        }
    }
}

/// Connects from the load's network namespace.
pub fn connect(load: &Load) -> Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&load.service, CONNECT_TIMEOUT);
    let stream = match &load.netns {
        Some(netns) => netns.run(connect)?,
        None => connect(),
    };
    stream.with_context(|| format!("no connection to the service at {}", load.service))
}
