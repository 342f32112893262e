//! The control socket's server: a thread that accepts, and one more for each client.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kemari_vmm::confine::{self, COMMON, Calls, OPEN_FILES, STREAMS};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tracing::{debug, warn};

use super::place::{self, Found, Place};
use super::{
    Answer, CONNECTIONS_MAX, Control, IO_TIMEOUT_MS, LINE_BYTES_MAX, Request, TAP_SECONDS_MAX, TapLine,
    TapRequest,
};
use crate::rest::{self, Rest};
use crate::sandbox::{FILES, SOCKETS};
use crate::threads::{self, helpers};

/// How often it is looked whether the socket is still in its place, in milliseconds: what cleans up `/run` or
/// `/tmp` knows nothing of it.
const LOOK_INTERVAL_MS: u64 = 5_000;
/// Longest time that the last answers may take when the service ends.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A running process serves it.
    #[error(
        "the control socket {} is in use: this VM already runs on this host; ask it with `kemari status \
         --socket {}` (two sides on one machine need a `control` and a `state_dir` each)",
        .0.display(), .0.display()
    )]
    InUse(PathBuf),
    /// Something that is no socket stands there.
    #[error(
        "{} is no socket and was left alone: remove it, or set another `control` for this host",
        .0.display()
    )]
    NotASocket(PathBuf),
    /// No socket can have such a path.
    #[error(
        "the path of the control socket {} is {excess} bytes too long: set a shorter `control` for this host",
        path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// How much shorter it must be, in bytes.
        excess: usize,
    },
    /// The system refused.
    #[error("cannot make the control socket {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What the threads of the control socket and of its clients ask of the kernel.
pub(crate) const CALLS: Calls = Calls {
    of: "control",
    parts: &[COMMON, OPEN_FILES, STREAMS, FILES, SOCKETS],
};

/// A served control socket. Dropping it ends the service and removes the socket.
pub struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the accepting thread has in common with others.
struct Shared {
    control: Arc<dyn Control>,
    ends: AtomicBool,
    /// Clients that are connected.
    open: AtomicUsize,
    /// Wakes the thread.
    bell: OwnedFd,
}

impl Server {
    /// Serves `control` at `path`. A socket that a dead process left there is replaced, a live one refused.
    pub fn start(path: &Path, control: Arc<dyn Control>) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Io {
            path: path.to_owned(),
            source,
        };
        let acceptor = Acceptor::new(path, control)?;
        let shared = acceptor.shared.clone();
        let thread = threads::start("control", move || {
            confine::thread(&CALLS);
            acceptor.run();
        })
        .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            shared,
            thread: Some(thread),
        })
    }

    /// Whether a socket could have this path.
    ///
    /// # Errors
    /// If it is too long.
    pub fn check(path: &Path) -> Result<(), ServerError> {
        place::check(path)
    }

    /// Where it is served.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        // A full counter would wake it too.
        let _ = rustix::io::write(&self.shared.bell, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic ends the process.
            let _ = thread.join();
        }
        // Whoever was just answered, that the VM has ended, is to read it before the process ends.
        let deadline = Instant::now() + LAST_ANSWERS_TIMEOUT;
        while self.shared.open.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The accepting thread.
struct Acceptor {
    shared: Arc<Shared>,
    path: PathBuf,
    listener: UnixListener,
    place: Place,
    rest: Rest,
    begun: Instant,
    /// What was found in the socket's place last.
    told: Found,
}

impl Acceptor {
    fn new(path: &Path, control: Arc<dyn Control>) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Io {
            path: path.to_owned(),
            source,
        };
        let (listener, place) = Place::take(path)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        let shared = Arc::new(Shared {
            control,
            ends: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            bell: bell.map_err(|error| failed(error.into()))?,
        });
        Ok(Self {
            shared,
            path: path.to_owned(),
            listener,
            place,
            rest: Rest::default(),
            begun: Instant::now(),
            told: Found::It,
        })
    }

    fn run(mut self) {
        let mut look_ms = LOOK_INTERVAL_MS;
        while !self.shared.ends.load(Ordering::SeqCst) {
            let now_ms = self.now_ms();
            if now_ms >= look_ms {
                self.look_after_place();
                look_ms = now_ms + LOOK_INTERVAL_MS;
            }
            let rests_until = self.rest.until_ms(now_ms);
            if rests_until.is_none() {
                self.accept(now_ms);
            }
            self.wait(rests_until.unwrap_or(look_ms).min(look_ms).saturating_sub(now_ms));
        }
        self.place.leave();
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn wait(&self, timeout_ms: u64) {
        let timeout = Timespec {
            tv_sec: (timeout_ms / 1000) as i64,
            tv_nsec: (timeout_ms % 1000 * 1_000_000) as i64,
        };
        let bell = PollFd::new(&self.shared.bell, PollFlags::IN);
        let listener = PollFd::new(&self.listener, PollFlags::IN);
        // An interrupted wait only means another turn of the loop.
        let _ = match self.rest.until_ms(self.now_ms()) {
            None => poll(&mut [bell, listener], Some(&timeout)),
            Some(_) => poll(&mut [bell], Some(&timeout)),
        };
    }

    /// Takes the clients that have come: no more at a time than may be connected, since whoever connects
    /// without end would keep the thread from its place and from its end.
    fn accept(&mut self, now_ms: u64) {
        for _ in 0..CONNECTIONS_MAX {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    self.rest.end();
                    self.take(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.rest.end(),
                Err(error) if rest::is_of_connection(&error) => {}
                Err(error) => {
                    if self.rest.begin(now_ms) {
                        warn!("the control socket cannot accept: {error}; it is tried again");
                    }
                    return;
                }
            }
        }
    }

    fn take(&self, stream: UnixStream) {
        if self.shared.open.load(Ordering::SeqCst) >= CONNECTIONS_MAX {
            return refuse(
                &stream,
                format!("{CONNECTIONS_MAX} clients are connected already: try again later"),
            );
        }
        self.shared.open.fetch_add(1, Ordering::SeqCst);
        let stream = Arc::new(stream);
        let work = || {
            let (stream, leave) = (stream.clone(), Leave(self.shared.clone()));
            move || {
                if let Err(error) = serve(&stream, leave.0.control.as_ref()) {
                    debug!("a control client left: {error}");
                }
            }
        };
        // A host without threads has to be looked at, too: a spare helper answers.
        let Err(error) = threads::start("client", work()) else {
            return;
        };
        self.shared.open.fetch_add(1, Ordering::SeqCst);
        if !helpers::run_if_spare("client", work()) {
            refuse(&stream, format!("{error}; try again later"));
        }
    }

    /// A socket that was cleaned away is made again; one that somebody else has replaced is left to them.
    fn look_after_place(&mut self) {
        let found = self.place.look();
        let is_news = std::mem::replace(&mut self.told, found) != found;
        match found {
            Found::It => {}
            Found::Another if is_news => warn!(
                "{} is another's socket now: `kemari status` does not reach this side any more",
                self.path.display()
            ),
            Found::Another => {}
            Found::Nothing => match self.place_again() {
                Ok(()) => warn!(
                    "the control socket {} was removed by somebody, and is made again",
                    self.path.display()
                ),
                Err(error) if is_news => warn!("{:#}", anyhow::Error::from(error)),
                Err(_) => {}
            },
        }
    }

    fn place_again(&mut self) -> Result<(), ServerError> {
        let (listener, place) = Place::take(&self.path)?;
        listener.set_nonblocking(true).map_err(|source| ServerError::Io {
            path: self.path.clone(),
            source,
        })?;
        (self.listener, self.place, self.told) = (listener, place, Found::It);
        Ok(())
    }
}

fn refuse(stream: &UnixStream, reason: String) {
    if let Err(error) = send(stream, &Answer::Refused(reason)) {
        debug!("a client left before it was refused: {error}");
    }
}

/// Counts a client out, however its thread ends.
struct Leave(Arc<Shared>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Takes one client's request, and answers it.
pub(crate) fn serve(stream: &UnixStream, control: &dyn Control) -> io::Result<()> {
    let timeout = Some(Duration::from_millis(IO_TIMEOUT_MS));
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    let mut line = String::new();
    let read = BufReader::new(stream.take(LINE_BYTES_MAX as u64)).read_line(&mut line)?;
    if read == 0 {
        return Ok(());
    }
    if !line.ends_with('\n') && read == LINE_BYTES_MAX {
        return send(
            stream,
            &Answer::Refused(format!("a request is one line of at most {LINE_BYTES_MAX} bytes")),
        );
    }
    let answer = match serde_json::from_str::<Request>(&line) {
        Err(error) => Answer::Refused(format!(
            "this is no request that Kemari {} knows: {error}",
            crate::VERSION
        )),
        Ok(Request::Status) => Answer::Status(Box::new(control.status())),
        Ok(Request::Command(command)) => match control.command(command) {
            Ok(done) => Answer::Done(done),
            Err(reason) => Answer::Refused(reason),
        },
        Ok(Request::Tap(request)) => tap(stream, control, &request),
    };
    send(stream, &answer)
}

fn tap(stream: &UnixStream, control: &dyn Control, request: &TapRequest) -> Answer {
    if !(1..=TAP_SECONDS_MAX).contains(&request.seconds) {
        return Answer::Refused(format!(
            "a tap lasts 1 to {TAP_SECONDS_MAX} seconds, not {}",
            request.seconds
        ));
    }
    match control.tap(request, &mut TapSink { stream, wanted: true }) {
        Ok(()) => Answer::Done("the tap is detached".into()),
        Err(reason) => Answer::Refused(reason),
    }
}

fn send(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Where a tap puts what it sees. A client that does not take it within [`IO_TIMEOUT_MS`] is gone.
pub struct TapSink<'a> {
    stream: &'a UnixStream,
    wanted: bool,
}

impl TapSink<'_> {
    /// Sends one line; false once the client is gone, and the tap should end.
    pub fn send(&mut self, line: &TapLine) -> bool {
        if self.wanted {
            self.wanted = send(self.stream, &Answer::Tap(line.clone())).is_ok();
        }
        self.wanted
    }

    /// Whether the client is still there: to be asked now and then while nothing passes.
    pub fn wanted(&mut self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        // The client says nothing after its request, so anything to read is its end.
        let mut fds = [PollFd::new(self.stream, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if self.wanted && poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0) {
            self.wanted = false;
        }
        self.wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Command, Status};

    struct Nobody;

    impl Control for Nobody {
        fn status(&self) -> Status {
            unreachable!("nobody asks")
        }

        fn tap(&self, _: &TapRequest, _: &mut TapSink<'_>) -> Result<(), String> {
            unreachable!("nobody asks")
        }

        fn command(&self, _: Command) -> Result<String, String> {
            unreachable!("nobody asks")
        }
    }

    #[test]
    fn who_connects_without_end_has_one_turn_after_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("demo.sock");
        let mut acceptor = Acceptor::new(&path, Arc::new(Nobody)).unwrap();
        let connect = |_| UnixStream::connect(&path).unwrap();
        let _clients: Vec<_> = (0..2 * CONNECTIONS_MAX).map(connect).collect();
        acceptor.accept(0);
        let mut left = 0;
        while acceptor.listener.accept().is_ok() {
            left += 1;
        }
        assert_eq!(
            left, CONNECTIONS_MAX,
            "one turn takes no more than may be connected"
        );
    }
}
