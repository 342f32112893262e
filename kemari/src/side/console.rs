//! Where console output goes that has been released: written by a thread of its own, since a terminal, a pipe
//! or a file may stand still, and neither the guest nor its protection waits for whoever reads the console.

mod file;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kemari_vmm::confine::{self, COMMON, Calls, OPEN_FILES};

use crate::sandbox::FILES;
use crate::threads::Monitor;

pub use file::ConsoleFile;

/// Bytes that wait for a console that stands still. Beyond them the oldest are lost. The console is told how
/// many that were, together with what it failed to take.
const BACKLOG_BYTES_MAX: usize = 1 << 20;
/// Most bytes handed to the console at once.
const CHUNK_BYTES_MAX: usize = 4096;
/// Longest wait for the last output at the end.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Backlog {
    bytes: VecDeque<u8>,
    /// Bytes that were pushed out, or that the console did not take, and that were not yet told.
    lost: u64,
    /// The console is taking some.
    is_writing: bool,
    /// Nobody writes any more.
    is_over: bool,
}

impl Backlog {
    fn is_busy(&self) -> bool {
        self.is_writing || !self.bytes.is_empty()
    }
}

/// What the writing thread asks of the kernel.
pub const CALLS: Calls = Calls {
    of: "console out",
    parts: &[COMMON, OPEN_FILES, FILES],
};

/// A writer that never waits.
pub struct Console(Arc<Monitor<Backlog>>);

impl Console {
    /// A console that is written to `sink`.
    pub fn to(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Monitor::default());
        let reader = shared.clone();
        thread::Builder::new().name("console out".into()).spawn(move || {
            confine::thread(&CALLS);
            pass_on(&reader, sink);
        })?;
        Ok(Self(shared))
    }
}

impl Drop for Console {
    /// The last output is waited for, though not for ever: with the process it would be gone.
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.notify();
        self.0
            .wait_while_within(FAREWELL_MAX, |backlog| backlog.is_busy());
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut backlog = self.0.lock();
        backlog.bytes.extend(bytes);
        let excess = backlog.bytes.len().saturating_sub(BACKLOG_BYTES_MAX);
        backlog.bytes.drain(..excess);
        backlog.lost += excess as u64;
        self.0.notify();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pass_on(shared: &Monitor<Backlog>, mut sink: impl Write) {
    loop {
        let mut backlog = shared.lock();
        while backlog.bytes.is_empty() {
            if backlog.is_over {
                return;
            }
            backlog = shared.wait(backlog);
        }
        let lost = std::mem::take(&mut backlog.lost);
        let length = backlog.bytes.len().min(CHUNK_BYTES_MAX);
        let chunk: Vec<u8> = backlog.bytes.drain(..length).collect();
        backlog.is_writing = true;
        drop(backlog);
        // A console that is gone is no reason to stop the guest.
        let is_told = lost == 0 || write_out(&mut sink, notice(lost).as_bytes()) == 0;
        let left = match is_told {
            true => write_out(&mut sink, &chunk) as u64,
            false => lost + chunk.len() as u64,
        };
        let _ = sink.flush();
        let mut backlog = shared.lock();
        backlog.is_writing = false;
        backlog.lost += left;
        shared.notify();
    }
}

fn notice(lost: u64) -> String {
    format!("\r\n[kemari: {lost} bytes of console output are lost]\r\n")
}

/// Writes what the sink takes; how many bytes it does not take.
fn write_out(sink: &mut impl Write, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while !rest.is_empty() {
        match sink.write(rest) {
            Ok(count) if count > 0 => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A sink that takes one write a permit, and shows what it took.
    struct Gated(Receiver<()>, Sender<Vec<u8>>);

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_console_that_stands_still_holds_nobody_up_and_is_told_what_it_missed() {
        let ((permit, permits), (taken, takes)) = (channel(), channel());
        let mut console = Console::to(Gated(permits, taken)).unwrap();
        console.write_all(b"first").unwrap();
        // Far more than the backlog takes, and nobody reads: this must return all the same.
        let line = [b'x'; 1000];
        for _ in 0..2 * BACKLOG_BYTES_MAX / line.len() {
            console.write_all(&line).unwrap();
        }
        console.write_all(b"last").unwrap();
        drop(console);
        let mut seen = Vec::new();
        while permit.send(()).is_ok() {
            match takes.recv_timeout(Duration::from_secs(5)) {
                Ok(bytes) => seen.extend(bytes),
                Err(_) => break,
            }
        }
        let text = String::from_utf8_lossy(&seen);
        assert!(text.ends_with("last"), "the newest output is there");
        assert!(text.contains("bytes of console output are lost"));
        assert!(seen.len() < BACKLOG_BYTES_MAX + 2 * CHUNK_BYTES_MAX);
    }
    /// A sink that takes so many bytes, fails so often, and takes all again; what it took is shared.
    struct Full {
        room: usize,
        failures: usize,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = match (self.room, self.failures) {
                (0, 0) => bytes.len(),
                (0, _) => {
                    self.failures -= 1;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                (room, _) => room.min(bytes.len()),
            };
            self.room = self.room.saturating_sub(count);
            self.taken.lock().unwrap().extend(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_file_does_not_take_is_told_when_it_takes_something_again() {
        let taken = Arc::default();
        let mut console = Console::to(Full {
            room: 3,
            failures: 2,
            taken: Arc::clone(&taken),
        })
        .unwrap();
        // Each is a chunk of its own: one fails with the rest of its bytes, one with the word of what is
        // lost.
        for chunk in ["first", "second", "third"] {
            console.write_all(chunk.as_bytes()).unwrap();
            drop(console.0.wait_while(|backlog| backlog.is_busy()));
        }
        let told = format!("fir{}third", notice(2 + 6));
        assert_eq!(String::from_utf8_lossy(&taken.lock().unwrap()), told);
    }
}
