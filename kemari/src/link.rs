//! The link: two TCP connections between primary and secondary, one for pages and syncs, one for heartbeats,
//! which must not wait behind pages.
//!
//! A connection is encrypted and both ends show certificates, unless the configuration says
//! `plaintext = true`. Each begins with a preface that says what it is and to which session it belongs, and
//! that the other end repeats when it accepts; then come the frames of `kemari_sync`. Sockets never block:
//! one loop reads, writes and decides.

mod connection;
mod credentials;
mod identity;
mod listener;
mod refusal;
mod transport;
mod validity;
pub mod way;
mod words;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kemari_sync::wire::FrameError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::Config;

pub use connection::Connection;
pub use connection::Outgoing;
pub(crate) use connection::Receiver;
pub use credentials::Credentials;
pub use identity::IdentityError;
pub use identity::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};
pub use listener::{Arrival, Listener};
pub use words::decode;

/// Bytes of a preface.
pub const PREFACE_BYTES: usize = 32;
const PREFACE_MAGIC: &[u8; 8] = b"KEMARI\r\n";
const PREFACE_VERSION: u16 = 2;

/// Longest time to establish one connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);

/// Longest time in which the other end must answer a fresh connection, TLS handshake included.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Purpose {
    /// Handshake, pages, syncs, acks.
    Main = 1,
    /// Heartbeats.
    Heartbeat = 2,
    /// One question: what do you hold of this VM?
    Query = 3,
}

/// The first bytes of a connection: magic, version, purpose, four bytes of zero, the session's nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preface {
    /// What the connection is for.
    pub purpose: Purpose,
    /// Names the session that its two connections belong to.
    pub session_nonce: u128,
}

/// A link that cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// No connection comes to stand.
    #[error("it cannot be reached")]
    Unreachable(#[source] io::Error),
    /// The other end took the connection and said nothing.
    #[error("it did not answer within {ANSWER_TIMEOUT:?}; is it a Kemari secondary?")]
    Silent,
    /// The other end closed a fresh connection without a word.
    #[error(
        "it closed the connection without an answer: its log may say why; it may speak TLS where this side \
         does not, or the other way round"
    )]
    Unanswered,
    /// The network failed.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The other end does not speak Kemari's protocol, or another version.
    #[error("the other end is no Kemari of this version: its first bytes are {0:02x?}")]
    Preface(Vec<u8>),
    /// A frame is refused.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Somebody speaks for a host that its certificate does not name.
    #[error("{0}")]
    Claim(String),
    /// A frame's content is refused.
    #[error("{0}")]
    Refused(String),
}

impl Preface {
    /// The preface as it goes over the wire.
    pub fn encode(&self) -> [u8; PREFACE_BYTES] {
        let mut bytes = [0; PREFACE_BYTES];
        bytes[..8].copy_from_slice(PREFACE_MAGIC);
        bytes[8..10].copy_from_slice(&PREFACE_VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(self.purpose as u16).to_le_bytes());
        bytes[16..].copy_from_slice(&self.session_nonce.to_le_bytes());
        bytes
    }

    /// Reads a preface.
    pub fn decode(bytes: &[u8; PREFACE_BYTES]) -> Result<Self, LinkError> {
        let refused = || LinkError::Preface(bytes[..12].to_vec());
        let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if &bytes[..8] != PREFACE_MAGIC || number(8) != PREFACE_VERSION {
            return Err(refused());
        }
        let purpose = [Purpose::Main, Purpose::Heartbeat, Purpose::Query]
            .into_iter()
            .find(|purpose| *purpose as u16 == number(10))
            .ok_or_else(refused)?;
        let nonce: [u8; 16] = bytes[16..].try_into().expect("the preface ends with 16 bytes");
        Ok(Self {
            purpose,
            session_nonce: u128::from_le_bytes(nonce),
        })
    }
}

/// How connections are protected.
#[derive(Clone)]
pub enum Security {
    /// Not at all: whoever reaches the network between the hosts reads, and may change,
    /// the guest's whole memory.
    Plaintext,
    /// TLS 1.3 with certificates of both ends.
    Tls(Arc<Credentials>),
}

impl Security {
    /// What the configuration says for the host `name`; reads its certificates. `None`: it says nothing, so
    /// there may be no link.
    pub fn of(config: &Config, name: &str) -> Result<Option<Self>, IdentityError> {
        match config.certificates_of(name) {
            Some(directory) => Ok(Some(Self::Tls(Arc::new(Credentials::load(directory, name)?)))),
            None => Ok(config.protection.plaintext.then_some(Self::Plaintext)),
        }
    }
}

/// Connects to the host of that name, says what the connection is for, and waits until the other end accepts.
/// Blocks for at most [`CONNECT_TIMEOUT`] and [`ANSWER_TIMEOUT`]; the connection itself does not block.
pub fn connect(
    security: &Security,
    host: &str,
    address: SocketAddr,
    preface: &Preface,
) -> Result<Connection, LinkError> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map_err(LinkError::Unreachable)?;
    let mut connection = Connection::dial(stream, security, host)?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    connection.send(preface.encode().to_vec());
    loop {
        match connection.receive_preface().map_err(unanswered)? {
            Some(answer) if answer == *preface => return Ok(connection),
            Some(_) => {
                return Err(LinkError::Refused(
                    "it answered as if to another connection".into(),
                ));
            }
            None => connection.flush(),
        }
        let rest = deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Err(LinkError::Silent);
        }
        let write = if connection.wants_to_write() {
            PollFlags::OUT
        } else {
            PollFlags::empty()
        };
        let mut fds = [PollFd::from_borrowed_fd(connection.fd(), PollFlags::IN | write)];
        // At least a millisecond, so that the last wait is no spin.
        let timeout = Timespec {
            tv_sec: rest.as_secs() as i64,
            tv_nsec: i64::from(rest.subsec_nanos().max(1_000_000)),
        };
        // An interrupted wait only means another turn.
        let _ = poll(&mut fds, Some(&timeout));
    }
}

/// A connection that ends before the first answer was refused, and the reason did not come through.
fn unanswered(error: LinkError) -> LinkError {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    match error {
        LinkError::Closed => LinkError::Unanswered,
        LinkError::Io(error) if matches!(error.kind(), ConnectionReset | BrokenPipe) => LinkError::Unanswered,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kemari_sync::wire::{FrameHeader, FrameKind, Goodbye, Message, PAGE_BYTES, PageBatchWriter, encode};
    use std::net::TcpListener;
    use std::time::Instant;

    fn pair() -> (Connection, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let plaintext = Security::Plaintext;
        (
            Connection::dial(client, &plaintext, "b").unwrap(),
            Connection::accept(accepted, &plaintext).unwrap(),
        )
    }

    #[test]
    fn a_preface_survives_the_wire_and_rubbish_is_refused() {
        let preface = Preface {
            purpose: Purpose::Heartbeat,
            session_nonce: 0x1234_5678_9abc,
        };
        let bytes = preface.encode();
        assert_eq!(Preface::decode(&bytes).unwrap(), preface);
        for at in [0, 8, 10] {
            let mut damaged = bytes;
            damaged[at] ^= 0x40;
            assert!(Preface::decode(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn frames_arrive_whole_and_in_order_however_they_are_cut() {
        let (mut sender, mut receiver) = pair();
        let mut bytes = Vec::new();
        for index in 0..50 {
            encode(
                &Message::Goodbye(Goodbye::Unfit("x".repeat(index * 9))),
                &mut bytes,
            );
        }
        let mut lengths = Vec::new();
        let mut chunks = bytes.chunks(37);
        while lengths.len() < 50 {
            if let Some(chunk) = chunks.next() {
                sender.send(chunk.to_vec());
            }
            let length = receiver.receive(|header, body| {
                header.check(body)?;
                assert_eq!(header.kind, FrameKind::Goodbye);
                Ok(Some(body.len()))
            });
            lengths.extend(length.unwrap());
        }
        assert!(lengths.is_sorted());
        drop(sender);
        std::thread::sleep(Duration::from_millis(20));
        assert!(matches!(
            receiver.receive(|_, _| Ok(Some(()))),
            Err(LinkError::Closed)
        ));
    }

    #[test]
    fn rubbish_is_refused_at_its_first_header() {
        let (mut sender, mut receiver) = pair();
        sender.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec());
        std::thread::sleep(Duration::from_millis(20));
        assert!(matches!(
            receiver.receive(|_, _| Ok(Some(()))),
            Err(LinkError::Frame(_))
        ));
    }

    /// Wants pages of a sync in a place of its own, until `most` bytes of them are there.
    struct Elsewhere {
        place: Vec<u8>,
        most: usize,
        whole: Vec<FrameKind>,
    }

    impl Receiver<()> for Elsewhere {
        fn room(&mut self, header: &FrameHeader, received: usize) -> Option<&mut [u8]> {
            (header.kind == FrameKind::Pages && received < self.most)
                .then(|| &mut self.place[..header.length])
        }

        fn frame(&mut self, header: &FrameHeader, body: Option<&[u8]>) -> Result<Option<()>, LinkError> {
            header.check(body.unwrap_or(&self.place[..header.length]))?;
            self.whole.push(header.kind);
            Ok(None)
        }
    }

    fn pages_and_goodbyes() -> Vec<u8> {
        let mut bytes = Vec::new();
        for fill in 1..=3 {
            let mut batch = PageBatchWriter::new(false, &mut bytes);
            for gfn in 0..20 {
                batch.push(gfn, &[fill; PAGE_BYTES]);
            }
            batch.finish();
            encode(&Message::Goodbye(Goodbye::Unfit("x".into())), &mut bytes);
        }
        bytes
    }

    #[test]
    fn what_is_sent_at_once_does_not_overtake_what_waits() {
        let (mut sender, mut receiver) = pair();
        assert!(sender.send_now(&[1; 100]), "nothing waits");
        // More than the kernel takes.
        sender.send(vec![2; 64 << 20]);
        assert!(sender.wants_to_write());
        assert!(!sender.send_now(&[3; 100]));
        let queued_bytes = sender.queued_bytes();
        assert!(queued_bytes < 64 << 20);
        receiver.refuse();
        drop(receiver);
        while sender.wants_to_write() {
            sender.flush();
        }
        assert!(!sender.send_now(&[4; 100]), "nobody takes it");
    }

    #[test]
    fn a_long_body_is_received_where_it_is_wanted() {
        for (most, chunk) in [(usize::MAX, 999), (usize::MAX, 100_000), (30_000, 999)] {
            let (mut sender, mut receiver) = pair();
            let mut there = Elsewhere {
                place: vec![0; 100_000],
                most,
                whole: Vec::new(),
            };
            for chunk in pages_and_goodbyes().chunks(chunk) {
                sender.send(chunk.to_vec());
                assert!(receiver.receive_to(&mut there).unwrap().is_none());
            }
            let kinds = [FrameKind::Pages, FrameKind::Goodbye];
            let expected: Vec<FrameKind> = match most {
                usize::MAX => [kinds; 3].concat(),
                // Nobody wants the rest: it goes, and what comes behind it is not touched.
                _ => [kinds[1]; 3].to_vec(),
            };
            let deadline = Instant::now() + Duration::from_secs(10);
            while there.whole.len() < expected.len() && Instant::now() < deadline {
                sender.flush();
                assert!(receiver.receive_to(&mut there).unwrap().is_none());
            }
            assert_eq!(there.whole, expected, "{most} {chunk}");
        }
    }
}
