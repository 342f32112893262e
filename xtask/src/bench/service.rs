//! Requests to the guest's service: single ones, and clients that ask without a pause.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::Netns;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::stats::Samples;
use crate::proof::client::connect;
use crate::proof::load::Load;
use crate::proof::resp::{Decoder, Reply, encode_request};

/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Keys that each client uses.
const KEYS_PER_CLIENT: u32 = 16;
/// Bytes of a value.
const VALUE_BYTES: usize = 64;
/// Bytes read at a time.
const READ_BYTES: usize = 16 << 10;

/// One connection with one request at a time.
pub struct Caller {
    stream: TcpStream,
    decoder: Decoder,
}

impl Caller {
    /// Connects from `netns`.
    pub fn new(netns: &Netns, service: SocketAddr) -> Result<Self> {
        let stream = connect(&Load {
            netns: Some(netns.clone()),
            ..Load::new(service, 0)
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        Ok(Self {
            stream,
            decoder: Decoder::default(),
        })
    }

    /// Asks, and does not wait.
    pub fn tell(&mut self, words: &[&str]) -> Result<()> {
        let shown = words.join(" ");
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let mut request = Vec::new();
        encode_request(&mut request, &words);
        self.stream
            .write_all(&request)
            .with_context(|| format!("`{shown}` cannot be sent to the guest"))
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, words: &[&str]) -> Result<Reply> {
        let shown = words.join(" ");
        self.tell(words)?;
        let mut bytes = [0; READ_BYTES];
        loop {
            if let Some(reply) = self.decoder.next_reply()? {
                if let Reply::Error(why) = reply {
                    bail!("the guest answered `{shown}` by: {why}");
                }
                return Ok(reply);
            }
            let count = self.stream.read(&mut bytes);
            let count = count.with_context(|| format!("no answer of the guest to `{shown}`"))?;
            ensure!(
                count > 0,
                "the guest closed the connection instead of answering `{shown}`"
            );
            self.decoder.feed(&bytes[..count]);
        }
    }

    /// Dirties pages and kicks, again and again, for so many seconds; what the guest says of it.
    pub fn kick_loop(&mut self, pages: u32, seconds: u32) -> Result<KickLoop> {
        let reply = self.ask(&["KICKLOOP", &pages.to_string(), &seconds.to_string()])?;
        let Reply::Bulk(Some(text)) = reply else {
            bail!("the guest answered KICKLOOP by {reply:?}");
        };
        KickLoop::parse(&String::from_utf8_lossy(&text))
    }
}

/// What the guest says of a loop of kicks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KickLoop {
    /// How many.
    pub kicks: u64,
    /// For how long, in microseconds.
    pub elapsed_us: u64,
    /// What a kick took the guest, in microseconds: the median.
    pub kick_us_median: f64,
}

impl KickLoop {
    fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.parse::<f64>().ok())
                .with_context(|| format!("the guest's report lacks `{name}`: {text}"))
        };
        Ok(Self {
            kicks: field("kicks")? as u64,
            elapsed_us: field("elapsed_us")? as u64,
            kick_us_median: field("kick_us_median")?,
        })
    }

    /// What one round took, in microseconds.
    pub fn round_us(&self) -> Option<f64> {
        (self.kicks > 0).then(|| self.elapsed_us as f64 / self.kicks as f64)
    }
}

/// Clients that each ask anew as soon as they are answered, half of them reads: all in this thread, so that
/// they cost as little as may be.
pub struct Clients {
    clients: Vec<Client>,
    random: ChaCha8Rng,
}

struct Client {
    number: usize,
    stream: TcpStream,
    decoder: Decoder,
    asked: Instant,
    waiting: bool,
}

/// What clients saw in a while.
#[derive(Clone, Debug, Default)]
pub struct Slice {
    /// Answers.
    pub answers: u64,
    /// For how long, in seconds.
    pub elapsed_s: f64,
    /// What each answer took, in microseconds.
    pub latencies_us: Samples,
}

impl Slice {
    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.answers as f64 / self.elapsed_s
    }
}

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Reads and writes, half and half.
    Half,
    /// Writes only.
    Writes,
}

impl Clients {
    /// Connects so many.
    pub fn new(netns: &Netns, service: SocketAddr, count: usize) -> Result<Self> {
        let client = |number| -> Result<Client> {
            let Caller { stream, decoder } = Caller::new(netns, service)?;
            stream.set_nonblocking(true)?;
            Ok(Client {
                number,
                stream,
                decoder,
                asked: Instant::now(),
                waiting: false,
            })
        };
        Ok(Self {
            clients: (0..count).map(client).collect::<Result<_>>()?,
            random: ChaCha8Rng::seed_from_u64(count as u64),
        })
    }

    /// Works for so long. At the end every client has got its answer.
    pub fn work(&mut self, duration: Duration, mix: Mix) -> Result<Slice> {
        let (begin, mut slice) = (Instant::now(), Slice::default());
        let mut waiting = 0;
        for client in &mut self.clients {
            client.ask(&mut self.random, mix)?;
            waiting += 1;
        }
        while waiting > 0 {
            for ready in self.ready(begin + duration + ANSWER_MAX)? {
                let client = &mut self.clients[ready];
                if !client.answered(&mut slice)? {
                    continue;
                }
                match begin.elapsed() < duration {
                    true => client.ask(&mut self.random, mix)?,
                    false => waiting -= 1,
                }
            }
        }
        slice.elapsed_s = begin.elapsed().as_secs_f64();
        Ok(slice)
    }

    /// The clients for which something has come.
    fn ready(&self, deadline: Instant) -> Result<Vec<usize>> {
        let waiting: Vec<usize> = (0..self.clients.len())
            .filter(|&index| self.clients[index].waiting)
            .collect();
        let mut fds: Vec<PollFd<'_>> = waiting
            .iter()
            .map(|&index| PollFd::new(&self.clients[index].stream, PollFlags::IN))
            .collect();
        let timeout = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for answers"),
        }
        ensure!(
            Instant::now() < deadline,
            "the guest did not answer for {} s",
            ANSWER_MAX.as_secs()
        );
        let ready = waiting
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(&index, _)| index).collect())
    }
}

impl Client {
    fn ask(&mut self, random: &mut ChaCha8Rng, mix: Mix) -> Result<()> {
        let key = format!(
            "bench:{}:{}",
            self.number,
            random.random_range(0..KEYS_PER_CLIENT)
        );
        let mut request = Vec::new();
        if mix == Mix::Half && random.random_bool(0.5) {
            encode_request(&mut request, &[b"GET", key.as_bytes()]);
        } else {
            let value: [u8; VALUE_BYTES] = random.random();
            encode_request(&mut request, &[b"SET", key.as_bytes(), &value]);
        }
        self.asked = Instant::now();
        self.waiting = true;
        // Nothing is under way on this connection, so its buffer has room.
        self.stream
            .write_all(&request)
            .context("a request cannot be sent")
    }

    /// Whether the answer is there now.
    fn answered(&mut self, slice: &mut Slice) -> Result<bool> {
        let mut bytes = [0; READ_BYTES];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("the guest closed a connection"),
            Ok(count) => self.decoder.feed(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("an answer cannot be received"),
        }
        let Some(reply) = self.decoder.next_reply()? else {
            return Ok(false);
        };
        if let Reply::Error(why) = reply {
            bail!("the guest refused a request: {why}");
        }
        slice.answers += 1;
        slice
            .latencies_us
            .push(self.asked.elapsed().as_nanos() as f64 / 1000.0);
        self.waiting = false;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_report_is_read() {
        let text = "kicks:200\npages:10\nelapsed_us:1000000\nkick_us_min:80.1\nkick_us_median:91.5\n\
                    kick_us_p90:100.0\n";
        let report = KickLoop::parse(text).unwrap();
        assert_eq!((report.kicks, report.kick_us_median), (200, 91.5));
        assert_eq!(report.round_us(), Some(5000.0));
        assert!(
            KickLoop::parse("kicks:1\n")
                .unwrap_err()
                .to_string()
                .contains("elapsed_us")
        );
    }
}
