//! The control socket's server: a thread that accepts, and one more for each client.

use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::{
    Answer, CONNECTIONS_MAX, Control, IO_TIMEOUT_MS, LINE_BYTES_MAX, Request, TAP_SECONDS_MAX, TapLine,
    TapRequest,
};

/// Longest time that the last answers may take when the service ends.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A running process serves it.
    #[error(
        "the control socket {} is in use: this VM already runs on this host; ask it with `kemari status --socket {}`",
        .0.display(), .0.display()
    )]
    InUse(PathBuf),
    /// Something that is no socket stands there.
    #[error("{} is no socket and was left alone: remove it, or set another `control` for this host", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot make the control socket {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A served control socket. Dropping it ends the service and removes the socket.
pub struct Server {
    path: PathBuf,
    ends: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `control` at `path`. A socket that a dead process left there is replaced, a live one refused.
    pub fn start(path: &Path, control: Arc<dyn Control>) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Io {
            path: path.to_owned(),
            source,
        };
        clear(path)?;
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        // Bound under a name nobody knows and made private before it appears: it is never open to others.
        let aside = Self::place_aside(path);
        let listener = UnixListener::bind(&aside).map_err(failed)?;
        let placed = std::fs::set_permissions(&aside, Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&aside, path));
        if let Err(error) = placed {
            // The error that counts is the first one.
            let _ = std::fs::remove_file(&aside);
            return Err(failed(error));
        }
        let (ends, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = {
            let (ends, open) = (ends.clone(), open.clone());
            thread::spawn(move || accept(&listener, &control, &ends, &open))
        };
        Ok(Self {
            path: path.to_owned(),
            ends,
            open,
            thread: Some(thread),
        })
    }

    /// Where a socket is made before it takes the name `path`: as long for each process.
    pub fn place_aside(path: &Path) -> PathBuf {
        path.with_extension(format!("{:06x}.new", std::process::id()))
    }

    /// Where it is served.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let woken = UnixStream::connect(&self.path).is_ok();
        if let Err(error) = std::fs::remove_file(&self.path) {
            debug!("cannot remove the control socket: {error}");
        }
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            // A panic there was reported by the thread itself.
            let _ = thread.join();
        }
        // Whoever was just answered, that the VM has ended, is to read it before the process ends.
        let deadline = Instant::now() + LAST_ANSWERS_TIMEOUT;
        while self.open.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn clear(path: &Path) -> Result<(), ServerError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |source| ServerError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ServerError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(ServerError::InUse(path.to_owned())),
    }
}

fn accept(listener: &UnixListener, control: &Arc<dyn Control>, ends: &AtomicBool, open: &Arc<AtomicUsize>) {
    loop {
        let stream = listener.accept();
        if ends.load(Ordering::SeqCst) {
            return;
        }
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("the control socket cannot accept: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if open.load(Ordering::SeqCst) >= CONNECTIONS_MAX {
            let busy = Answer::Refused(format!(
                "{CONNECTIONS_MAX} clients are connected already: try again later"
            ));
            if let Err(error) = send(&stream, &busy) {
                debug!("a client left before it was refused: {error}");
            }
            continue;
        }
        open.fetch_add(1, Ordering::SeqCst);
        let (control, open) = (control.clone(), open.clone());
        thread::spawn(move || {
            let _leave = Leave(&open);
            if let Err(error) = serve(&stream, control.as_ref()) {
                debug!("a control client left: {error}");
            }
        });
    }
}

/// Counts a client out, however its thread ends.
struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(stream: &UnixStream, control: &dyn Control) -> io::Result<()> {
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
