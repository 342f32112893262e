//! Lines on their way to standard error: a queue that takes what it has room for and never waits, and a
//! thread that writes.
//!
//! A terminal may be stopped, a pipe may have no reader or one that does not read, a disk may be full. Until
//! that is over the thread keeps the line that it is at, and tries it again; lines that come meanwhile and
//! find no room are dropped, and their number is told where they are missing.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kemari_vmm::confine::{self, COMMON, Calls};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::own_line;
use crate::threads::Monitor;

/// Bytes that wait while nothing can be written.
const BACKLOG_BYTES_MAX: usize = 1 << 20;
/// Once lines were dropped, none is taken until no more than so many bytes wait: what is missing is missing
/// in one place.
const BACKLOG_BYTES_AGAIN: usize = BACKLOG_BYTES_MAX / 2;
/// Longest line in bytes. What is beyond it is cut off.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Pause after a write that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What the thread asks of the kernel.
pub(crate) const CALLS: Calls = Calls {
    of: "log",
    parts: &[COMMON],
};

#[derive(Default)]
struct Backlog {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that were dropped and not yet told.
    dropped: u64,
    /// A line is being written.
    is_writing: bool,
}

impl Backlog {
    fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.lines.push_back(line);
    }

    fn tell_dropped(&mut self) {
        match std::mem::take(&mut self.dropped) {
            0 => {}
            dropped => self.push(own_line(
                "WARN",
                format_args!("{dropped} lines were dropped here, as the log could not be written"),
            )),
        }
    }

    fn is_idle(&self) -> bool {
        self.lines.is_empty() && self.dropped == 0 && !self.is_writing
    }
}

impl Monitor<Backlog> {
    fn next_line(&self) -> Vec<u8> {
        let mut backlog = self.lock();
        backlog.is_writing = false;
        loop {
            if let Some(line) = backlog.lines.pop_front() {
                backlog.bytes -= line.len();
                backlog.is_writing = true;
                return line;
            }
            if backlog.dropped > 0 {
                backlog.tell_dropped();
                continue;
            }
            self.notify();
            backlog = self.wait(backlog);
        }
    }
}

/// The way to the writing thread.
#[derive(Clone)]
pub(crate) struct Queue(Arc<Monitor<Backlog>>);

impl Queue {
    /// Starts the thread. It lives as long as the process.
    pub(super) fn start(sink: impl AsFd + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Monitor::<Backlog>::default());
        let lines = shared.clone();
        thread::Builder::new().name("log".into()).spawn(move || {
            confine::thread(&CALLS);
            loop {
                write_out(&sink, &lines.next_line());
            }
        })?;
        Ok(Self(shared))
    }

    /// Takes a line with its end, or drops and counts it.
    pub(super) fn push(&self, line: &[u8]) {
        let mut backlog = self.0.lock();
        let room = match backlog.dropped {
            0 => BACKLOG_BYTES_MAX,
            _ => BACKLOG_BYTES_AGAIN,
        };
        if backlog.bytes + line.len().min(LINE_BYTES_MAX) > room {
            backlog.dropped += 1;
            return;
        }
        backlog.tell_dropped();
        let mut line = line.to_vec();
        if line.len() > LINE_BYTES_MAX {
            line.truncate(LINE_BYTES_MAX - 1);
            line.push(b'\n');
        }
        backlog.push(line);
        self.0.notify();
    }

    /// Waits until everything is written, but no longer than `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        self.0.wait_while_within(limit, |backlog| !backlog.is_idle());
    }
}

impl io::Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a line, however long that takes: nobody waits for this thread.
fn write_out(sink: &impl AsFd, line: &[u8]) {
    let mut rest = line;
    while !rest.is_empty() {
        match rustix::io::write(sink, rest) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            // Somebody else has set what they share with this process to non-blocking.
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::new(sink, PollFlags::OUT)];
                if poll(&mut fds, None).is_err() {
                    thread::sleep(RETRY_PAUSE);
                }
            }
            Err(_) => thread::sleep(RETRY_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader, Read};
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    use rustix::pipe::{PipeFlags, pipe, pipe_with};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Fills the queue and more; returns how many lines it was given.
    fn flood(queue: &Queue) -> usize {
        let line = [[b'x'; 99].as_slice(), b"\n"].concat();
        let count = 2 * BACKLOG_BYTES_MAX / line.len();
        let begun = Instant::now();
        (0..count).for_each(|_| queue.push(&line));
        assert!(begun.elapsed() < PATIENCE, "nobody may wait for the log");
        count
    }

    fn told(line: &str) -> Option<u64> {
        let (_, rest) = line.split_once("kemari::log: ")?;
        rest.split_once(" lines were dropped")?.0.parse().ok()
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up_and_is_told_what_it_missed() {
        for flags in [PipeFlags::empty(), PipeFlags::NONBLOCK] {
            let (reader, writer) = pipe_with(flags).expect("a pipe");
            let queue = Queue::start(writer).expect("a thread");
            queue.push(b"first\n");
            let given = flood(&queue);
            let begun = Instant::now();
            queue.flush(Duration::from_millis(20));
            assert!(begun.elapsed() < PATIENCE, "the end does not wait for ever");
            rustix::io::ioctl_fionbio(&reader, false).expect("a pipe that waits");
            let mut lines = BufReader::new(File::from(reader)).lines();
            let mut next = || lines.next().expect("a line").expect("a readable pipe");
            assert_eq!(next(), "first");
            let mut written = 0;
            let dropped = loop {
                let line = next();
                match told(&line) {
                    Some(dropped) => break dropped,
                    None => written += 1,
                }
                assert_eq!(line.len(), 99);
            };
            assert_eq!(written + dropped as usize, given);
            queue.push(b"last\n");
            assert_eq!(next(), "last");
        }
    }

    #[test]
    fn a_line_that_finds_no_space_is_written_when_there_is_some() {
        let full = File::options().write(true).open("/dev/full").expect("it exists");
        let number = full.as_raw_fd();
        let queue = Queue::start(full).expect("a thread");
        queue.push(b"kept\n");
        let begun = Instant::now();
        while !queue.0.lock().is_writing {
            assert!(begun.elapsed() < PATIENCE, "the thread never comes to the line");
            thread::sleep(Duration::from_millis(1));
        }
        let (reader, writer) = pipe().expect("a pipe");
        // SAFETY: both descriptors are open, and the thread keeps its own one for good.
        assert_eq!(unsafe { libc::dup2(writer.as_raw_fd(), number) }, number);
        queue.flush(PATIENCE);
        let mut bytes = [0; 5];
        File::from(reader).read_exact(&mut bytes).expect("the line");
        assert_eq!(&bytes, b"kept\n");
    }

    #[test]
    fn a_reader_that_is_gone_ends_nothing() {
        let (reader, writer) = pipe().expect("a pipe");
        let queue = Queue::start(writer).expect("a thread");
        drop(reader);
        flood(&queue);
        queue.flush(Duration::from_millis(20));
        assert!(queue.0.lock().dropped > 0);
        assert!(queue.0.lock().bytes <= BACKLOG_BYTES_MAX);
    }

    #[test]
    fn what_is_written_is_flushed_and_a_long_line_is_cut() {
        let (reader, writer) = pipe().expect("a pipe");
        let queue = Queue::start(writer).expect("a thread");
        queue.push(&[b'y'; 2 * LINE_BYTES_MAX]);
        queue.flush(PATIENCE);
        assert!(queue.0.lock().is_idle());
        let mut bytes = vec![0; LINE_BYTES_MAX];
        File::from(reader).read_exact(&mut bytes).expect("the line");
        assert_eq!(bytes.last(), Some(&b'\n'));
    }

    #[test]
    fn what_is_missing_is_missing_in_one_place() {
        let queue = Queue(Arc::default());
        flood(&queue);
        let dropped = queue.0.lock().dropped;
        assert!(dropped > 0);
        while queue.0.lock().bytes > BACKLOG_BYTES_AGAIN + LINE_BYTES_MAX {
            queue.0.next_line();
            queue.push(b"no room yet\n");
        }
        assert!(queue.0.lock().dropped > dropped, "one was taken");
        while queue.0.lock().bytes > BACKLOG_BYTES_AGAIN / 2 {
            queue.0.next_line();
        }
        queue.push(b"again\n");
        let backlog = queue.0.lock();
        assert_eq!(backlog.dropped, 0);
        assert_eq!(backlog.lines.back().unwrap(), b"again\n");
    }
}
