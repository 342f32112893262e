//! A client of the bare guest's service, and a load of several of them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::network::GUEST;

/// Longest wait for one answer, and for a connection.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(40);

/// One connection, never renewed.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects, as soon as the guest listens.
    pub(crate) fn connect() -> Self {
        let begin = Instant::now();
        let stream = loop {
            match TcpStream::connect_timeout(&GUEST.into(), Duration::from_secs(2)) {
                Ok(stream) => break stream,
                Err(error) if begin.elapsed() > ANSWER_TIME_MAX => {
                    panic!("no connection to the guest: {error}")
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.set_nodelay(true).expect("an option of every TCP socket");
        stream.set_read_timeout(Some(ANSWER_TIME_MAX)).expect("not zero");
        Self {
            reader: BufReader::new(stream),
        }
    }

    pub(crate) fn send(&mut self, words: &[&str]) -> io::Result<()> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.reader.get_mut().write_all(request.as_bytes())
    }

    /// An answer: a line with its first character, or the text of a bulk string (`$-1` if there is none).
    pub(crate) fn receive(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_owned();
        let Some(length) = line
            .strip_prefix('$')
            .and_then(|digits| digits.parse::<usize>().ok())
        else {
            return Ok(line);
        };
        let mut bytes = vec![0; length + 2];
        self.reader.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// One request and its answer, words separated by spaces.
    pub(crate) fn ask(&mut self, request: &str) -> String {
        let words: Vec<&str> = request.split(' ').collect();
        self.send(&words)
            .and_then(|()| self.receive())
            .unwrap_or_else(|error| panic!("{request}: {error}"))
    }

    /// A request whose answer begins with `+OK`.
    pub(crate) fn ok(&mut self, request: &str) {
        let answer = self.ask(request);
        assert!(answer.starts_with("+OK"), "{request}: {answer}");
    }

    /// A number that the guest gives about itself.
    pub(crate) fn info(&mut self, key: &str) -> u64 {
        let text = self.ask("INFO");
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.parse().ok())
            .unwrap_or_else(|| panic!("INFO has no {key}: {text}"))
    }
}

/// Clients that write, read back and compare until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(clients: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..clients)
            .map(|number| {
                let (stop, done) = (stop.clone(), done.clone());
                thread::spawn(move || write_and_read(number, &stop, &done))
            })
            .collect();
        Self { stop, done, threads }
    }

    /// Whether no client has failed.
    pub(crate) fn is_well(&self) -> bool {
        !self.threads.iter().any(|thread| thread.is_finished())
    }

    /// Stops; any contradiction or lost connection is a failure.
    /// Returns how many values were written and read back.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        self.done.load(Ordering::SeqCst)
    }
}

fn write_and_read(number: usize, stop: &AtomicBool, done: &AtomicU64) {
    let mut client = Client::connect();
    let mut value = 0u64;
    while !stop.load(Ordering::SeqCst) {
        value += 1;
        client.ok(&format!("SET load{number} {value}"));
        let found = client.ask(&format!("GET load{number}"));
        assert_eq!(
            found,
            value.to_string(),
            "client {number} reads what it did not write"
        );
        done.fetch_add(1, Ordering::SeqCst);
    }
}
