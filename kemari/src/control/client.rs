//! The control socket's client.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::geteuid;

use super::{
    Answer, COMMAND_TIMEOUT_MS, Command, IO_TIMEOUT_MS, LINE_BYTES_MAX, Request, Status, TapLine, TapRequest,
};

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing serves the socket.
    #[error(
        "no side of the VM runs here: nothing answers at {}. Start it with `kemari run` or `kemari \
         secondary`, or name another socket with --socket",
        path.display()
    )]
    NotRunning {
        /// Where nothing answered.
        path: PathBuf,
        /// How the system says it.
        source: io::Error,
    },
    /// Somebody may serve it, but not this user.
    #[error(
        "this user may not speak to {}: say it as the user that Kemari runs as (`sudo`)",
        path.display()
    )]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// How the system says it.
        source: io::Error,
    },
    /// It is another user's who is neither root nor this one.
    #[error(
        "{} is served by another user (number {user}) than whose it is: nothing was asked of it",
        path.display()
    )]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Who listens there.
        user: u32,
    },
    /// The connection broke.
    #[error("the process behind {} did not answer", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server said no.
    #[error("{0}")]
    Refused(String),
    /// The server is of another version.
    #[error(
        "the process behind {} answered in another way than Kemari {} expects: it has another version",
        .0.display(),
        crate::VERSION
    )]
    OtherVersion(PathBuf),
}

/// A client of the socket at one path. Each request is a connection of its own.
pub struct Client {
    path: PathBuf,
    /// Who may serve it beside root and this user; none: whoever does.
    owner: Option<u32>,
}

impl Client {
    /// A client of the socket at `path`, not yet connected.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            owner: None,
        }
    }

    /// The same, of a socket that was found and not named: it speaks only to root,
    /// to this user and to the owner.
    pub fn found(path: &Path, owner: u32) -> Self {
        Self {
            owner: Some(owner),
            ..Self::new(path)
        }
    }

    /// Asks how things stand.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.status_within(Duration::from_millis(IO_TIMEOUT_MS))
    }

    /// The same, waiting no longer than that for the whole answer.
    pub(crate) fn status_within(&self, timeout: Duration) -> Result<Status, ClientError> {
        let deadline = Instant::now() + timeout;
        if timeout.is_zero() {
            return Err(self.broken(io::ErrorKind::TimedOut.into()));
        }
        let stream = self.ask(&Request::Status, timeout)?;
        let mut answers = BufReader::new(Until { stream, deadline });
        match self.next(&mut answers)? {
            Answer::Status(status) => Ok(*status),
            other => Err(self.unexpected(other)),
        }
    }

    /// Orders something; the answer is a sentence.
    pub fn command(&self, command: Command) -> Result<String, ClientError> {
        let stream = self.ask(
            &Request::Command(command),
            Duration::from_millis(COMMAND_TIMEOUT_MS),
        )?;
        let mut answers = BufReader::new(stream);
        match self.next(&mut answers)? {
            Answer::Done(done) => Ok(done),
            other => Err(self.unexpected(other)),
        }
    }

    /// Taps a channel, and hands on each line until the tap has ended.
    pub fn tap(&self, request: &TapRequest, mut line: impl FnMut(TapLine)) -> Result<(), ClientError> {
        let timeout_ms = u64::from(request.seconds) * 1000 + IO_TIMEOUT_MS;
        let timeout = Duration::from_millis(timeout_ms);
        let mut answers = BufReader::new(self.ask(&Request::Tap(request.clone()), timeout)?);
        loop {
            match self.next(&mut answers)? {
                Answer::Tap(told) => line(told),
                Answer::Done(_) => return Ok(()),
                other => return Err(self.unexpected(other)),
            }
        }
    }

    fn ask(&self, request: &Request, timeout: Duration) -> Result<UnixStream, ClientError> {
        let path = || self.path.clone();
        let send_timeout = timeout.min(Duration::from_millis(IO_TIMEOUT_MS));
        let mut stream = connect(&self.path, send_timeout).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { path: path(), source },
            // Nobody takes the clients that wait.
            io::ErrorKind::WouldBlock => ClientError::Io { path: path(), source },
            _ => ClientError::NotRunning { path: path(), source },
        })?;
        self.check_peer(&stream)?;
        let sent = || -> io::Result<()> {
            stream.set_read_timeout(Some(timeout))?;
            let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
            line.push(b'\n');
            match stream.write_all(&line) {
                // A busy server refuses without reading: its answer is there.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                written => written,
            }
        }();
        sent.map_err(|source| self.broken(source))?;
        Ok(stream)
    }

    fn check_peer(&self, stream: &UnixStream) -> Result<(), ClientError> {
        let Some(owner) = self.owner else { return Ok(()) };
        let peer = socket_peercred(stream).map_err(|error| self.broken(error.into()))?;
        let user = peer.uid.as_raw();
        match peer.uid.is_root() || peer.uid == geteuid() || user == owner {
            true => Ok(()),
            false => Err(ClientError::Stranger {
                path: self.path.clone(),
                user,
            }),
        }
    }

    fn next(&self, answers: &mut impl BufRead) -> Result<Answer, ClientError> {
        let mut line = String::new();
        answers
            .by_ref()
            .take(LINE_BYTES_MAX as u64)
            .read_line(&mut line)
            .map_err(|source| self.broken(source))?;
        if line.is_empty() {
            return Err(self.broken(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_str(&line).map_err(|_| ClientError::OtherVersion(self.path.clone()))
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn unexpected(&self, answer: Answer) -> ClientError {
        match answer {
            Answer::Refused(reason) => ClientError::Refused(reason),
            _ => ClientError::OtherVersion(self.path.clone()),
        }
    }
}

/// A stream that is read until then and no longer, in however small pieces it comes.
struct Until {
    stream: UnixStream,
    deadline: Instant,
}

impl Read for Until {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

/// Connects, and waits no longer than that, neither for it nor for what is sent.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    net::connect(&socket, &address)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::process::Uid;

    use super::*;

    const STRANGER: u32 = 65_533;
    const OWNER: u32 = 65_532;

    #[test]
    fn who_listens_at_a_socket_that_was_found_is_root_oneself_or_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let _own = UnixListener::bind(&path).unwrap();
        let client = Client::found(&path, OWNER);
        client.check_peer(&UnixStream::connect(&path).unwrap()).unwrap();
        assert!(geteuid().is_root(), "this test wants root");
        let listens = |user: u32| {
            std::fs::remove_file(&path).unwrap();
            let listener = UnixListener::bind(&path).unwrap();
            std::thread::scope(|scope| {
                // Who listens is who called listen() last; other threads stay who they are.
                let listen = || {
                    let (user, root) = (Uid::from_raw(user), Uid::ROOT);
                    rustix::thread::set_thread_res_uid(root, user, root).unwrap();
                    net::listen(&listener, 1).unwrap();
                };
                scope.spawn(listen).join().unwrap();
            });
            listener
        };
        let _stranger = listens(STRANGER);
        let asked = client.status_within(Duration::from_secs(2));
        assert!(
            matches!(asked, Err(ClientError::Stranger { user: STRANGER, .. })),
            "{asked:?}"
        );
        let _owner = listens(OWNER);
        client.check_peer(&UnixStream::connect(&path).unwrap()).unwrap();
    }
}
