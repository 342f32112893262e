//! The fence: a service outside the hosts that cuts the power of one of them when another asks for it.
//!
//! A host says `off N` and a newline, and hears `off` when host N's emulator is gone, and with it all its
//! I/O. Inside the hosts `lab-fence N` does that.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::{Context, Result};
use crate::host::Power;
use crate::netns::Netns;
use crate::network::OUTSIDE_CONTROL;

/// TCP port of the service (`image/host-fence.sh` knows it too).
const FENCE_PORT: u16 = 7099;
/// Longest wait for a line.
const LINE_LIMIT: Duration = Duration::from_secs(5);
/// Longest line, in bytes.
const LINE_BYTES_MAX: u64 = 64;

/// The running service; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Fence {
    outside: Netns,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fence {
    /// Serves the power supplies of `hosts`.
    pub(crate) fn start(outside: &Netns, hosts: Vec<Power>) -> Result<Fence> {
        let listener = outside.run(|| TcpListener::bind((OUTSIDE_CONTROL, FENCE_PORT)))?;
        let listener = listener.context(|| format!("listen on {OUTSIDE_CONTROL}:{FENCE_PORT}"))?;
        let ended = Arc::new(AtomicBool::new(false));
        let told = ended.clone();
        let serve_all = move || {
            for stream in listener.incoming().flatten() {
                if told.load(Ordering::Acquire) {
                    return;
                }
                if let Err(error) = serve(stream, &hosts) {
                    tracing::warn!(%error, "the fence could not answer");
                }
            }
        };
        Ok(Fence {
            outside: outside.clone(),
            ended,
            thread: Some(thread::spawn(serve_all)),
        })
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // One last connection wakes the service; where it fails the thread is left to the end of the process.
        let woken = self
            .outside
            .run(|| TcpStream::connect((OUTSIDE_CONTROL, FENCE_PORT)).is_ok());
        if let (Ok(true), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, hosts: &[Power]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LINE_LIMIT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_BYTES_MAX)).read_line(&mut line)?;
    let number = line
        .trim()
        .strip_prefix("off ")
        .and_then(|number| number.parse::<usize>().ok());
    match number.and_then(|number| hosts.get(number)) {
        Some(power) => {
            power.cut();
            stream.write_all(b"off\n")
        }
        None => stream.write_all(b"no such host\n"),
    }
}
