//! The control socket's client.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{
    Answer, COMMAND_TIMEOUT_MS, Command, IO_TIMEOUT_MS, LINE_BYTES_MAX, Request, Status, TapLine, TapRequest,
};

/// Why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing serves the socket.
    #[error(
        "no side of the VM runs here: nothing answers at {}. Start it with `kemari run` or `kemari secondary`, or \
         name another socket with --socket",
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
    #[error("the process behind {} answered in another way than Kemari {} expects: it has another version", .0.display(), crate::VERSION)]
    OtherVersion(PathBuf),
}

/// A client of the socket at one path. Each request is a connection of its own.
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the socket at `path`, not yet connected.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Asks how things stand.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.status_within(Duration::from_millis(IO_TIMEOUT_MS))
    }

    /// The same, waiting no longer than that for the answer.
    pub fn status_within(&self, timeout: Duration) -> Result<Status, ClientError> {
        let mut answers = self.ask(&Request::Status, timeout)?;
        match self.next(&mut answers)? {
            Answer::Status(status) => Ok(*status),
            other => Err(self.unexpected(other)),
        }
    }

    /// Orders something; the answer is a sentence.
    pub fn command(&self, command: Command) -> Result<String, ClientError> {
        let mut answers = self.ask(
            &Request::Command(command),
            Duration::from_millis(COMMAND_TIMEOUT_MS),
        )?;
        match self.next(&mut answers)? {
            Answer::Done(done) => Ok(done),
            other => Err(self.unexpected(other)),
        }
    }

    /// Taps a channel, and hands on each line until the tap has ended.
    pub fn tap(&self, request: &TapRequest, mut line: impl FnMut(TapLine)) -> Result<(), ClientError> {
        let timeout_ms = u64::from(request.seconds) * 1000 + IO_TIMEOUT_MS;
        let timeout = Duration::from_millis(timeout_ms);
        let mut answers = self.ask(&Request::Tap(request.clone()), timeout)?;
        loop {
            match self.next(&mut answers)? {
                Answer::Tap(told) => line(told),
                Answer::Done(_) => return Ok(()),
                other => return Err(self.unexpected(other)),
            }
        }
    }

    fn ask(&self, request: &Request, timeout: Duration) -> Result<BufReader<UnixStream>, ClientError> {
        let path = || self.path.clone();
        let send_timeout = timeout.min(Duration::from_millis(IO_TIMEOUT_MS));
        let mut stream = connect(&self.path, send_timeout).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { path: path(), source },
            // Nobody takes the clients that wait.
            io::ErrorKind::WouldBlock => ClientError::Io { path: path(), source },
            _ => ClientError::NotRunning { path: path(), source },
        })?;
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
        Ok(BufReader::new(stream))
    }

    fn next(&self, answers: &mut BufReader<UnixStream>) -> Result<Answer, ClientError> {
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
