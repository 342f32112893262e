//! One connection: it never reconnects, and records everything.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::history::{Answer, Clock, ConnectionEnd, History, Nanos, Operation, Request};
use super::load::Load;
use super::resp::{Decoder, Reply, encode_request};

/// How long a read waits before the connection looks whether it is to stop.
const LOOK_UP: Duration = Duration::from_millis(50);
/// How long a connection listens, after its last answer, for answers that it never asked for.
const LISTEN_AFTER: Duration = Duration::from_millis(20);

/// A connection's order: go on asking.
pub(super) const WORK: u8 = 0;
/// A connection's order: ask nothing more, and take the answers to what was asked.
pub(super) const DRAIN: u8 = 1;
/// A connection's order: stop at once.
pub(super) const STOP: u8 = 2;

/// What a connection tells while it works.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Acknowledged writes so far.
    pub acknowledged: AtomicU64,
    /// Why the connection was lost, when it was.
    pub lost: OnceLock<String>,
}

/// The connection and what it has seen.
pub(super) struct Connection<'a> {
    id: u16,
    load: &'a Load,
    clock: Clock,
    live: &'a Live,
    stream: TcpStream,
    decoder: Decoder,
    operations: Vec<Operation>,
    /// Indexes into `operations`, oldest first.
    outstanding: VecDeque<usize>,
    last_heard: Nanos,
}

impl<'a> Connection<'a> {
    /// Takes over a connected stream.
    pub(crate) fn new(
        id: u16,
        load: &'a Load,
        clock: Clock,
        live: &'a Live,
        stream: TcpStream,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK_UP))?;
        stream.set_write_timeout(Some(load.answer_timeout))?;
        let (decoder, operations, outstanding) = Default::default();
        let last_heard = clock.now();
        Ok(Self {
            id,
            load,
            clock,
            live,
            stream,
            decoder,
            operations,
            outstanding,
            last_heard,
        })
    }

    /// Writes its own keys and reads its own and others' until `state` is [`DRAIN`] or [`STOP`].
    pub(crate) fn work(mut self, state: &AtomicU8) -> History {
        let mut random = ChaCha8Rng::seed_from_u64(self.load.seed.wrapping_add(u64::from(self.id) << 32));
        let mut counters = vec![0; self.load.keys_per_connection as usize];
        let mut work = || -> Result<(), String> {
            while state.load(Ordering::Relaxed) == WORK {
                while self.outstanding.len() < self.load.pipeline.max(1) {
                    let (key, request) = choose(self.id, self.load, &mut random, &mut counters);
                    self.ask(key, request)?;
                }
                self.listen()?;
            }
            while !self.outstanding.is_empty() && state.load(Ordering::Relaxed) == DRAIN {
                self.listen()?;
            }
            Ok(())
        };
        let result = work();
        self.end(result)
    }

    /// Reads each key once, one after the other.
    pub(crate) fn read_all(mut self) -> History {
        let mut read = || -> Result<(), String> {
            for key in 0..self.load.keys() {
                self.ask(key, Request::Get)?;
                while !self.outstanding.is_empty() {
                    self.listen()?;
                }
            }
            Ok(())
        };
        let result = read();
        self.end(result)
    }

    fn ask(&mut self, key: u32, request: Request) -> Result<(), String> {
        let name = self.load.key_name(key);
        let mut bytes = Vec::new();
        match request {
            Request::Set(counter) => {
                encode_request(
                    &mut bytes,
                    &[b"SET", name.as_bytes(), &self.load.value(key, counter)],
                );
            }
            Request::Get => encode_request(&mut bytes, &[b"GET", name.as_bytes()]),
        }
        let invoked = self.clock.now();
        if self.outstanding.is_empty() {
            self.last_heard = invoked;
        }
        self.outstanding.push_back(self.operations.len());
        self.operations.push(Operation {
            connection: self.id,
            key,
            request,
            invoked,
            answer: None,
        });
        self.stream
            .write_all(&bytes)
            .map_err(|e| format!("sending failed: {e}"))
    }

    /// Waits for bytes, at most [`LOOK_UP`], and takes the answers in them.
    fn listen(&mut self) -> Result<(), String> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => return Err("the server closed the connection".into()),
            Ok(n) => self.decoder.feed(&bytes[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                let silent = Duration::from_nanos(self.clock.now().saturating_sub(self.last_heard));
                if !self.outstanding.is_empty() && silent > self.load.answer_timeout {
                    return Err(format!("no answer for {} s", silent.as_secs()));
                }
                return Ok(());
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(e) => return Err(format!("receiving failed: {e}")),
        }
        self.last_heard = self.clock.now();
        while !self.outstanding.is_empty() {
            match self.decoder.next_reply() {
                Ok(Some(reply)) => self.take(reply)?,
                Ok(None) => return Ok(()),
                Err(e) => return Err(format!("the server's bytes are no RESP: {e}")),
            }
        }
        Ok(())
    }

    fn take(&mut self, reply: Reply) -> Result<(), String> {
        let Some(oldest) = self.outstanding.pop_front() else {
            return Ok(());
        };
        let op = &mut self.operations[oldest];
        let answer = match (op.request, reply) {
            // A refusal leaves the request open: it may have been carried out all the same.
            (_, Reply::Error(text)) => return Err(format!("the server refused: {text}")),
            (Request::Set(_), Reply::Simple(text)) if text == "OK" => Answer::Written,
            (Request::Get, Reply::Bulk(None)) => Answer::Value(0),
            (Request::Get, Reply::Bulk(Some(value))) => match self.load.counter_of(op.key, &value) {
                Ok(counter) => Answer::Value(counter),
                Err(why) => Answer::Impossible(why),
            },
            (request, other) => Answer::Impossible(format!("{request:?} was answered by {other:?}")),
        };
        if answer == Answer::Written {
            self.live.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        let out_of_step = matches!(answer, Answer::Impossible(_));
        op.answer = Some((self.last_heard, answer));
        if out_of_step {
            Err("an answer that cannot be one to its request".into())
        } else {
            Ok(())
        }
    }

    fn end(mut self, result: Result<(), String>) -> History {
        let mut stray_answers = 0;
        if result.is_ok() && self.outstanding.is_empty() {
            stray_answers = self.strays();
        }
        let lost = result.err();
        if let Some(why) = &lost {
            let _ = self.live.lost.set(why.clone());
        }
        let connections = vec![ConnectionEnd {
            connection: self.id,
            lost,
            stray_answers,
        }];
        History {
            operations: self.operations,
            connections,
        }
    }

    /// Counts answers that arrive although nothing is outstanding.
    fn strays(&mut self) -> u64 {
        let mut bytes = [0; 4096];
        let waiting = self.stream.set_read_timeout(Some(LISTEN_AFTER));
        if let (Ok(()), Ok(n)) = (waiting, self.stream.read(&mut bytes)) {
            self.decoder.feed(&bytes[..n]);
        }
        let mut count = 0;
        while let Ok(Some(_)) = self.decoder.next_reply() {
            count += 1;
        }
        count + u64::from(self.decoder.pending_bytes() > 0)
    }
}

/// The next request: a write of an own key, or a read of an own or another's key.
fn choose(id: u16, load: &Load, random: &mut ChaCha8Rng, counters: &mut [u64]) -> (u32, Request) {
    let n = random.random_range(0..load.keys_per_connection);
    if random.random_range(0..100) >= load.reads_percent {
        counters[n as usize] += 1;
        return (load.own_key(id, n), Request::Set(counters[n as usize]));
    }
    let whose = if random.random_bool(0.5) {
        id
    } else {
        random.random_range(0..load.connections)
    };
    (load.own_key(whose, n), Request::Get)
}
