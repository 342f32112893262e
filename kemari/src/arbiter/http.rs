//! As much of an HTTP client as etcd's JSON gateway needs: one POST, in the clear or over TLS, with a
//! deadline, and the knowledge whether anything was sent when it fails.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::config::Endpoint;

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Longest line of a header, in bytes.
const LINE_BYTES_MAX: u64 = 8 << 10;
/// Most header lines.
const HEADERS_MAX: usize = 100;

/// A status and a body.
#[derive(Debug)]
pub(crate) struct Response {
    /// The HTTP status.
    pub status: u16,
    /// What came behind the header.
    pub body: Vec<u8>,
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Whether the server may have received the request.
    pub sent: bool,
    /// Why, as a sentence.
    pub sentence: String,
}

/// A request.
pub(crate) struct Post<'a> {
    /// To which member.
    pub endpoint: &'a Endpoint,
    /// At which of its addresses.
    pub address: SocketAddr,
    /// For an endpoint that speaks TLS.
    pub tls: Option<&'a Arc<ClientConfig>>,
    /// Value of the header `Authorization`.
    pub token: Option<&'a str>,
    /// The resource.
    pub path: &'a str,
    /// JSON.
    pub body: &'a [u8],
}

impl Post<'_> {
    /// Sends it and waits for the answer; connecting ends at `connect_until` and everything at `deadline`.
    pub(super) fn send(&self, connect_until: Instant, deadline: Instant) -> Result<Response, Failure> {
        let name = self.endpoint.authority();
        let unsent = |error: io::Error| Failure {
            sent: false,
            sentence: format!("cannot connect to {name}: {}", explain(&error)),
        };
        let stream = self.connect(connect_until).map_err(unsent)?;
        let token = self
            .token
            .map_or(String::new(), |token| format!("Authorization: {token}\r\n"));
        let mut request = format!(
            "POST {} HTTP/1.1\r\nHost: {name}\r\nContent-Type: application/json\r\n\
             {token}Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.path,
            self.body.len()
        )
        .into_bytes();
        request.extend(self.body);
        stream.exchange(&request, deadline).map_err(|error| Failure {
            sent: true,
            sentence: format!("no answer from {name}: {}", explain(&error)),
        })
    }

    /// Connects, up to the end of a handshake: nothing of the request has left before that.
    fn connect(&self, until: Instant) -> io::Result<Stream> {
        let stream = TcpStream::connect_timeout(&self.address, left(until)?)?;
        stream.set_nodelay(true)?;
        let mut stream = Until {
            stream,
            deadline: until,
        };
        let Some(name) = self.endpoint.tls_name() else {
            return Ok(Stream::Plain(stream));
        };
        let config = self
            .tls
            .ok_or_else(|| io::Error::other("no authority's certificate is configured for it"))?;
        let mut session = ClientConnection::new(config.clone(), name.clone()).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        Ok(Stream::Tls(Box::new(StreamOwned::new(session, stream))))
    }
}

/// A connection that a request can be sent over.
enum Stream {
    Plain(Until),
    Tls(Box<StreamOwned<ClientConnection, Until>>),
}

impl Stream {
    fn exchange(self, request: &[u8], deadline: Instant) -> io::Result<Response> {
        match self {
            Self::Plain(mut stream) => {
                stream.deadline = deadline;
                stream.write_all(request)?;
                read_response(BufReader::new(stream))
            }
            Self::Tls(mut stream) => {
                stream.sock.deadline = deadline;
                stream.write_all(request)?;
                stream.flush()?;
                read_response(BufReader::new(stream))
            }
        }
    }
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it did not answer in time".to_owned(),
        io::ErrorKind::UnexpectedEof => "it closed the connection before its answer was whole".to_owned(),
        _ => error.to_string(),
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// A stream whose reads and writes together end at the deadline.
struct Until {
    stream: TcpStream,
    deadline: Instant,
}

impl Read for Until {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(buffer)
    }
}

impl Write for Until {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a server's answer up to its end.
pub(super) fn read_response(mut reader: impl BufRead) -> io::Result<Response> {
    let status_line = line(&mut reader)?;
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5)?.parse().ok());
    let status = status.ok_or_else(|| invalid("it does not speak HTTP"))?;
    let (mut length, mut chunked) = (None, false);
    for count in 0.. {
        let header = line(&mut reader)?;
        if header.is_empty() {
            break;
        }
        if count == HEADERS_MAX {
            return Err(invalid("its answer has too many headers"));
        }
        let Some((name, value)) = header.split_once(':') else {
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(
                value
                    .trim()
                    .parse::<u64>()
                    .map_err(|_| invalid("its answer has no valid length"))?,
            );
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.trim().eq_ignore_ascii_case("chunked");
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let size = line(&mut reader)?;
            let size = u64::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
                .map_err(|_| invalid("its answer has a chunk without a length"))?;
            if size == 0 {
                break;
            }
            exactly(&mut reader, size, &mut body)?;
            line(&mut reader)?;
        }
    } else if let Some(length) = length {
        exactly(&mut reader, length, &mut body)?;
    } else {
        reader.take(ANSWER_BYTES_MAX).read_to_end(&mut body)?;
    }
    Ok(Response { status, body })
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes)?;
    match bytes.pop() {
        Some(b'\n') => Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned()),
        Some(_) if bytes.len() as u64 + 1 == LINE_BYTES_MAX => Err(invalid("its answer has an endless line")),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn exactly(reader: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
    // The length may be any number.
    if length > ANSWER_BYTES_MAX.saturating_sub(body.len() as u64) {
        return Err(invalid("its answer is too long"));
    }
    match reader.take(length).read_to_end(body)? as u64 {
        read if read == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses() {
        let read = |text: &str| read_response(text.as_bytes());
        let plain = read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        assert_eq!((plain.status, plain.body.as_slice()), (200, b"{}".as_slice()));
        let chunked =
            "HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n";
        let chunked = read(chunked).unwrap();
        assert_eq!(
            (chunked.status, chunked.body.as_slice()),
            (503, b"abcd".as_slice())
        );
        assert_eq!(
            read("HTTP/1.0 200 OK\r\n\r\nto the end").unwrap().body,
            b"to the end"
        );
    }

    #[test]
    fn cut_and_endless_responses() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        for length in 0..whole.len() {
            assert!(read_response(&whole.as_bytes()[..length]).is_err(), "{length}");
        }
        assert!(read_response("220 smtp ready\r\n".as_bytes()).is_err());
        assert!(read_response("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".as_bytes()).is_err());
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\nffffffffffffffff\r\n";
        let endless = io::Cursor::new(chunks.to_vec()).chain(io::repeat(b'x').take(1 << 20));
        let refused = read_response(BufReader::new(endless)).unwrap_err();
        assert_eq!(refused.to_string(), "its answer is too long");
        let endless = io::Cursor::new(b"HTTP/1.1 200 OK\r\n".to_vec()).chain(io::repeat(b'x'));
        assert!(read_response(BufReader::new(endless)).is_err());
        let headers = io::Cursor::new("HTTP/1.1 200 OK\r\n".to_owned() + &"a: b\r\n".repeat(200));
        assert!(read_response(headers).is_err());
    }
}
