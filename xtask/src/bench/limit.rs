//! The bare limit: what it costs to send so many bytes over the same kind of socket, with the same polling,
//! and to get eight bytes back. No sync can be faster than this.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab::Netns;

use super::place::{CORE_OF_A, CORE_OF_B, pin_this_thread};
use super::stats::Samples;

/// Bytes of the answer.
const REPLY_BYTES: usize = 8;
/// Bytes that the receiver takes at a time, as many as the program's link.
const READ_BYTES: usize = 256 << 10;
/// An answer that takes longer than this will not come.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A sender here, and a receiver in a thread of its own: as two sides of a pair, one on each core.
pub struct Limit {
    stream: TcpStream,
    /// Bytes of a message, for the receiver.
    expected: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    receiver: Option<JoinHandle<()>>,
}

impl Limit {
    /// Connects two ends over the loopback of `netns`.
    pub fn new(netns: &Netns) -> Result<Self> {
        let connect = || -> io::Result<(TcpStream, TcpStream)> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let stream = TcpStream::connect(listener.local_addr()?)?;
            let (other, _) = listener.accept()?;
            for stream in [&stream, &other] {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
            }
            Ok((stream, other))
        };
        let (stream, other) = netns.run(connect)?.context("no connection over loopback")?;
        let expected = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (bytes, end) = (expected.clone(), stop.clone());
        let receiver = thread::Builder::new()
            .name("limit".into())
            .spawn(move || receive(other, &bytes, &end))
            .context("a thread cannot be started")?;
        Ok(Self {
            stream,
            expected,
            stop,
            receiver: Some(receiver),
        })
    }

    /// Sends messages of `bytes` for so long; microseconds from the begin of each to its answer.
    pub fn measure(&mut self, bytes: usize, duration: Duration) -> Result<Samples> {
        self.expected.store(bytes, Ordering::SeqCst);
        // One buffer, as the program's: it lies in the processor's cache.
        let message: Vec<u8> = (0..bytes).map(|_| rand::random()).collect();
        let _pinned = pin_this_thread(CORE_OF_A)?;
        let mut samples = Samples::default();
        let until = Instant::now() + duration;
        loop {
            let begin = Instant::now();
            if begin >= until {
                break;
            }
            self.exchange(&message, begin)?;
            samples.push(begin.elapsed().as_nanos() as f64 / 1000.0);
        }
        // Until the next measurement the receiver may sleep.
        self.expected.store(0, Ordering::SeqCst);
        Ok(samples)
    }

    fn exchange(&mut self, message: &[u8], begin: Instant) -> Result<()> {
        let mut sent = 0;
        while sent < message.len() {
            sent += polled(
                self.stream.write_vectored(&[IoSlice::new(&message[sent..])]),
                begin,
            )?;
        }
        let (mut reply, mut received) = ([0; REPLY_BYTES], 0);
        while received < REPLY_BYTES {
            received += polled(self.stream.read(&mut reply[received..]), begin)?;
        }
        Ok(())
    }
}

/// What a call on a socket that does not block has done; nothing yet lets another thread run.
fn polled(result: io::Result<usize>, begin: Instant) -> Result<usize> {
    match result {
        Ok(0) => Err(anyhow!("the other end of the bare limit's connection is gone")),
        Ok(count) => Ok(count),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            if begin.elapsed() > ANSWER_MAX {
                return Err(anyhow!(
                    "no answer over loopback within {} s",
                    ANSWER_MAX.as_secs()
                ));
            }
            thread::yield_now();
            Ok(0)
        }
        Err(error) => Err(error).context("the bare limit's connection"),
    }
}

fn receive(mut stream: TcpStream, expected: &AtomicUsize, stop: &AtomicBool) {
    // Without its own core the measurement is slower, and says so by its numbers.
    let _pinned = pin_this_thread(CORE_OF_B);
    let (mut buffer, mut received) = (vec![0; READ_BYTES], 0);
    while !stop.load(Ordering::SeqCst) {
        let bytes = expected.load(Ordering::SeqCst);
        if bytes == 0 {
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => received += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
            Err(_) => return,
        }
        if received >= bytes {
            received -= bytes;
            // The socket's buffer is empty: it takes these few at once.
            if stream.write_all(&[0; REPLY_BYTES]).is_err() {
                return;
            }
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(receiver) = self.receiver.take() {
            let _ = receiver.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bytes_take_longer() {
        let netns = Netns::new("limit").unwrap();
        let mut limit = Limit::new(&netns).unwrap();
        let mut median = |bytes| {
            let samples = limit.measure(bytes, Duration::from_millis(100)).unwrap();
            samples.median().unwrap()
        };
        let (few, many) = (median(40 << 10), median(16 << 20));
        assert!(few > 0.0 && many > few, "40 KiB took {few} us, 16 MiB {many} us");
    }
}
