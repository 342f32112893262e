//! What carries the bytes of a connection: TCP itself, or TLS over it.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;

use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;
use rustls::{ClientConnection, ServerConnection};

use super::refusal::sentence;
use super::validity::ends_s;
use super::{LinkError, Security};
use crate::config::certificate_name;

/// Bytes of TLS records read from the socket at a time.
const RECORDS_BYTES: usize = 256 << 10;

/// Most bytes that wait as TLS records until the socket takes them.
const RECORDS_BYTES_MAX: usize = 1 << 20;

pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// TLS over a socket that does not block.
pub(super) struct Tls {
    stream: TcpStream,
    session: rustls::Connection,
    /// Records from the socket that TLS has not taken yet: `records[start..end]`.
    records: Vec<u8>,
    start: usize,
    end: usize,
}

impl Transport {
    pub(super) fn accept(stream: TcpStream, security: &Security) -> Result<Self, LinkError> {
        Ok(match security {
            Security::Plaintext => Self::Plain(stream),
            Security::Tls(credentials) => {
                let session = ServerConnection::new(credentials.identity().server())
                    .map_err(|error| sentence(&error))?;
                Self::tls(stream, session.into())
            }
        })
    }

    pub(crate) fn dial(stream: TcpStream, security: &Security, host: &str) -> Result<Self, LinkError> {
        Ok(match security {
            Security::Plaintext => Self::Plain(stream),
            Security::Tls(credentials) => {
                let name = ServerName::DnsName(certificate_name(host).map_err(LinkError::Refused)?);
                let session = ClientConnection::new(credentials.identity().client(), name)
                    .map_err(|error| sentence(&error))?;
                Self::tls(stream, session.into())
            }
        })
    }

    fn tls(stream: TcpStream, mut session: rustls::Connection) -> Self {
        session.set_buffer_limit(Some(RECORDS_BYTES_MAX));
        Self::Tls(Box::new(Tls {
            stream,
            session,
            records: vec![0; RECORDS_BYTES],
            start: 0,
            end: 0,
        }))
    }

    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(tls) => &tls.stream,
        }
    }

    pub(super) fn wants_to_write(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.session.wants_write(),
        }
    }

    /// Takes from the front of `slices`, and says how much. As a socket does, it fails with `WouldBlock`.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write_vectored(slices),
            Self::Tls(tls) => tls.write(slices),
        }
    }

    /// Reads once; `None`: nothing is there now.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<Option<usize>, LinkError> {
        match self {
            Self::Plain(stream) => read_socket(stream, into),
            Self::Tls(tls) => tls.read(into),
        }
    }

    /// Looks whether the other end of a plaintext connection begins with a record of TLS.
    pub(crate) fn check_first_bytes(&self, bytes: &[u8]) -> Result<(), LinkError> {
        // RFC 8446, 5.1: the content type, then the version 3.1 or 3.3.
        let is_record = matches!(bytes, [0x14..=0x17, 3, ..]);
        match self {
            Self::Plain(_) if is_record => Err(LinkError::Refused(
                "the other end speaks TLS, but this side's configuration says `plaintext = true`: \
                 use the same configuration on both hosts"
                    .into(),
            )),
            _ => Ok(()),
        }
    }

    /// Whether the other end's certificate is for this host.
    pub(crate) fn check_peer(&self, host: &str) -> Result<(), LinkError> {
        let Self::Tls(tls) = self else { return Ok(()) };
        let refused = || {
            LinkError::Claim(format!(
                "the other end says that it is `{host}`, but its certificate is for another host"
            ))
        };
        let certificates = tls.session.peer_certificates().unwrap_or_default();
        let certificate = certificates.first().ok_or_else(refused)?;
        let parsed = ParsedCertificate::try_from(certificate).map_err(|error| sentence(&error))?;
        let name = ServerName::DnsName(certificate_name(host).map_err(LinkError::Refused)?);
        rustls::client::verify_server_name(&parsed, &name).map_err(|_| refused())
    }

    /// When the other end's certificate ends, in seconds since 1970, if it has shown one.
    pub(crate) fn peer_ends_s(&self) -> Option<u64> {
        let Self::Tls(tls) = self else { return None };
        let certificates = tls.session.peer_certificates()?;
        certificates
            .iter()
            .filter_map(|certificate| ends_s(certificate))
            .min()
    }

    /// Throws away what the socket has. Returns whether the other end has closed it.
    pub(super) fn skip(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            match self.socket().read(buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }
}

fn read_socket(mut stream: &TcpStream, into: &mut [u8]) -> Result<Option<usize>, LinkError> {
    loop {
        return match stream.read(into) {
            Ok(0) => Err(LinkError::Closed),
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error.into()),
        };
    }
}

impl Tls {
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let taken = self.session.writer().write_vectored(slices)?;
        let pushed = self.push();
        match taken {
            // Nothing was taken: either there was nothing, or the records of before have to leave first.
            0 => match pushed {
                Ok(0) if !slices.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
                other => other.map(|_| 0),
            },
            taken => match pushed {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                _ => Ok(taken),
            },
        }
    }

    /// Sends records. Returns how many bytes of them.
    fn push(&mut self) -> io::Result<usize> {
        let mut pushed = 0;
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.stream) {
                Ok(count) => pushed += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && pushed > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(pushed)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<Option<usize>, LinkError> {
        loop {
            match self.session.reader().read(into) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if self.start == self.end {
                let Some(count) = read_socket(&self.stream, &mut self.records)? else {
                    return Ok(None);
                };
                (self.start, self.end) = (0, count);
            }
            self.take_records()?;
        }
    }

    /// Hands some of the records that were read to TLS.
    fn take_records(&mut self) -> Result<(), LinkError> {
        // TLS takes a few KiB at a time, from memory: the socket is read in large pieces.
        self.start += self.session.read_tls(&mut &self.records[self.start..self.end])?;
        let outcome = self.session.process_new_packets();
        // Answers of the handshake; or the alert that tells the other end why it is refused. What does not
        // leave now stays, and the next write says why: what was read comes first.
        let _ = self.push();
        outcome.map(drop).map_err(|error| sentence(&error))
    }
}
