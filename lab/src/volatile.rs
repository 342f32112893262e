//! Disks with a volatile write cache, as real ones have: what was not flushed may be gone after a power cut.
//!
//! Killing an emulator proves nothing about flushes, since this machine's page cache lives on. So a disk of
//! this kind is a small NBD server that keeps unflushed writes in its own memory; QEMU is its client. At a
//! power cut each unflushed sector of 512 bytes, by itself, is either written or forgotten.
//!
//! Such a disk also becomes slow, or fails, on command.

mod cache;
mod protocol;

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::{Context, Result};
pub use cache::Loss;
use cache::WriteCache;

/// How a disk behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// How much longer each request takes.
    pub delay: Duration,
    /// Whether writes and flushes fail with an I/O error.
    pub fails_writes: bool,
}

/// A disk with a volatile write cache; its server ends when it is dropped.
#[derive(Debug)]
pub struct VolatileDisk {
    shared: Arc<Shared>,
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when a client has gone.
    gone: Condvar,
}

#[derive(Debug)]
struct State {
    cache: WriteCache,
    behaviour: Behaviour,
    client: Option<UnixStream>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VolatileDisk {
    /// Serves the raw image `file` at the Unix socket `socket`, to one client at a time.
    pub(crate) fn serve(file: &Path, socket: PathBuf) -> Result<VolatileDisk> {
        let what = || format!("serve {} at {}", file.display(), socket.display());
        let state = State {
            cache: WriteCache::open(file).context(what)?,
            behaviour: Behaviour::default(),
            client: None,
            ended: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            gone: Condvar::new(),
        });
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).context(what)?;
        let server = shared.clone();
        let thread = thread::spawn(move || serve_all(&listener, &server));
        Ok(VolatileDisk {
            shared,
            socket,
            thread: Some(thread),
        })
    }

    /// Where QEMU finds it.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Changes how it behaves, from the next request on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.lock().behaviour = behaviour;
    }

    /// What power cuts have done to it so far.
    pub fn loss(&self) -> Loss {
        self.shared.lock().cache.loss()
    }

    /// The power is gone: its client is cut off, and of what was not flushed a random part is forgotten.
    pub(crate) fn lose_power(&self) -> Result<()> {
        let mut state = self.shared.lock();
        if let Some(client) = &state.client {
            // It may have gone already.
            let _ = client.shutdown(Shutdown::Both);
        }
        while state.client.is_some() {
            state = self
                .shared
                .gone
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state
            .cache
            .lose_power()
            .context(|| "write what a power cut leaves".into())
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        if let Some(client) = &state.client {
            let _ = client.shutdown(Shutdown::Both);
        }
        drop(state);
        // One last connection wakes the server; where it fails the thread is left to the end of the process.
        if let (Ok(_), Some(thread)) = (UnixStream::connect(&self.socket), self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn serve_all(listener: &UnixListener, shared: &Shared) {
    for stream in listener.incoming().flatten() {
        {
            let mut state = shared.lock();
            if state.ended {
                return;
            }
            state.client = stream.try_clone().ok();
        }
        if let Err(error) = serve_one(stream, shared)
            && error.kind() != io::ErrorKind::UnexpectedEof
        {
            tracing::debug!(%error, "a volatile disk has lost its client");
        }
        shared.lock().client = None;
        shared.gone.notify_all();
    }
}

fn serve_one(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let bytes = shared.lock().cache.bytes();
    if !protocol::negotiate(&mut stream, bytes)? {
        return Ok(());
    }
    while let Some(request) = protocol::read_request(&mut stream)? {
        let behaviour = shared.lock().behaviour;
        if !behaviour.delay.is_zero() {
            thread::sleep(behaviour.delay);
        }
        let done = shared.lock().cache.carry_out(&request, behaviour.fails_writes);
        protocol::answer(&mut stream, request.handle, done)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "volatile_test.rs"]
mod tests;
