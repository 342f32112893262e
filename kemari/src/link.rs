//! The link: two TCP connections between primary and secondary, one for pages and syncs, one for heartbeats, which
//! must not wait behind pages.
//!
//! Each connection begins with a preface that says what it is and to which session it belongs; then come the frames of
//! `kemari_sync`. Sockets never block: one loop reads, writes and decides.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use kemari_sync::wire::{FrameError, FrameHeader, HEADER_BYTES};

/// Bytes of a preface.
pub const PREFACE_BYTES: usize = 32;
const PREFACE_MAGIC: &[u8; 8] = b"KEMARI\r\n";
const PREFACE_VERSION: u16 = 1;

/// Longest time to establish one connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);

/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;

/// Most buffers written with one call.
const SLICES_MAX: usize = 8;

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
    /// The network failed.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The other end does not speak Kemari's protocol, or another version.
    #[error("the other end is no Kemari of this version: its first bytes are {0:02x?}")]
    Preface(Vec<u8>),
    /// A frame is refused.
    #[error(transparent)]
    Frame(#[from] FrameError),
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
        Ok(Self { purpose, session_nonce: u128::from_le_bytes(nonce) })
    }
}

/// Connects, says what the connection is for, and makes it non-blocking.
pub fn connect(address: SocketAddr, preface: &Preface) -> io::Result<Connection> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.write_all(&preface.encode())?;
    Connection::new(stream)
}

/// One connection, framed, that never blocks.
pub struct Connection {
    stream: TcpStream,
    /// What waits to be sent, and how much of its front is sent already.
    outgoing: VecDeque<Vec<u8>>,
    front_sent: usize,
    /// See [`Connection::take_spare`].
    spare: Vec<u8>,
    /// Received bytes that are not yet whole frames: `incoming[start..end]`.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
}

impl Connection {
    /// Takes over an established connection.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let incoming = vec![0; READ_BYTES];
        Ok(Self { stream, outgoing: VecDeque::new(), front_sent: 0, spare: Vec::new(), incoming, start: 0, end: 0 })
    }

    /// Where the other end is.
    pub fn peer_address(&self) -> String {
        self.stream.peer_addr().map_or_else(|_| "unknown".into(), |address| address.to_string())
    }

    /// The socket, for polling.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether something waits until the socket takes it.
    pub fn wants_to_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Queues whole frames and sends what the socket takes at once.
    pub fn send(&mut self, bytes: Vec<u8>) -> Result<(), LinkError> {
        if !bytes.is_empty() {
            self.outgoing.push_back(bytes);
        }
        self.flush()
    }

    /// Queues several buffers of whole frames, and sends what the socket takes at once, with as few calls as may be.
    pub fn send_all(&mut self, buffers: impl IntoIterator<Item = Vec<u8>>) -> Result<(), LinkError> {
        self.outgoing.extend(buffers.into_iter().filter(|buffer| !buffer.is_empty()));
        self.flush()
    }

    /// The largest buffer that was sent and is not needed any more, to be filled again: fresh memory would cost a page
    /// fault for each of its pages.
    pub fn take_spare(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Bytes that wait until the socket takes them.
    pub fn queued_bytes(&self) -> usize {
        self.outgoing.iter().map(Vec::len).sum::<usize>() - self.front_sent
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        while !self.outgoing.is_empty() {
            match self.write_once() {
                Ok(count) => self.consume(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write_once(&self) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        for (index, (slice, buffer)) in slices.iter_mut().zip(&self.outgoing).enumerate() {
            let skipped = if index == 0 { self.front_sent } else { 0 };
            *slice = IoSlice::new(&buffer[skipped..]);
        }
        (&self.stream).write_vectored(&slices[..self.outgoing.len().min(SLICES_MAX)])
    }

    fn consume(&mut self, mut count: usize) {
        while let Some(front) = self.outgoing.front() {
            let rest = front.len() - self.front_sent;
            if count < rest {
                self.front_sent += count;
                return;
            }
            count -= rest;
            self.front_sent = 0;
            if let Some(sent) = self.outgoing.pop_front()
                && sent.capacity() > self.spare.capacity()
            {
                self.spare = sent;
            }
        }
    }

    /// Takes one preface off a fresh connection, if it is there.
    pub fn receive_preface(&mut self) -> Result<Option<Preface>, LinkError> {
        self.fill()?;
        let Some(bytes) = self.incoming[self.start..self.end].first_chunk::<PREFACE_BYTES>() else {
            return Ok(None);
        };
        let preface = Preface::decode(bytes)?;
        self.start += PREFACE_BYTES;
        Ok(Some(preface))
    }

    /// Reads what is there and passes whole frames to `on_frame`, until one of them is answered with something: that is
    /// returned, and the next call goes on behind it. None: all that is there was read. The frame's checksum is not
    /// checked yet.
    pub fn receive<T>(
        &mut self,
        mut on_frame: impl FnMut(&FrameHeader, &[u8]) -> Result<Option<T>, LinkError>,
    ) -> Result<Option<T>, LinkError> {
        loop {
            while let Some((header, body_start)) = self.next_frame()? {
                let body = &self.incoming[body_start..body_start + header.length];
                self.start = body_start + header.length;
                if let Some(answer) = on_frame(&header, body)? {
                    return Ok(Some(answer));
                }
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// The first whole frame in the buffer and where its body begins.
    fn next_frame(&mut self) -> Result<Option<(FrameHeader, usize)>, LinkError> {
        let buffered = &self.incoming[self.start..self.end];
        let Some(header) = buffered.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = FrameHeader::parse(header)?;
        let whole = HEADER_BYTES + header.length;
        if buffered.len() < whole {
            // Bounded: the header has been checked against the limit of its kind.
            self.make_room(whole);
            return Ok(None);
        }
        Ok(Some((header, self.start + HEADER_BYTES)))
    }

    /// Moves what is buffered to the front, with room for `bytes` in all.
    fn make_room(&mut self, bytes: usize) {
        if self.start > 0 && self.start + bytes > self.incoming.len() {
            self.incoming.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.incoming.len() < bytes {
            self.incoming.resize(bytes + READ_BYTES, 0);
        }
    }

    /// Reads once. Returns whether anything came.
    fn fill(&mut self) -> Result<bool, LinkError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.incoming.len() {
            self.make_room(self.end - self.start + READ_BYTES);
        }
        match (&self.stream).read(&mut self.incoming[self.end..]) {
            Ok(0) => Err(LinkError::Closed),
            Ok(count) => {
                self.end += count;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kemari_sync::wire::{FrameKind, Goodbye, Message, encode};
    use std::net::TcpListener;

    fn pair() -> (Connection, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Connection::new(client).unwrap(), Connection::new(listener.accept().unwrap().0).unwrap())
    }

    #[test]
    fn a_preface_survives_the_wire_and_rubbish_is_refused() {
        let preface = Preface { purpose: Purpose::Heartbeat, session_nonce: 0x1234_5678_9abc };
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
        let (sender, mut receiver) = pair();
        let mut bytes = Vec::new();
        for index in 0..50 {
            encode(&Message::Goodbye(Goodbye::Unfit("x".repeat(index * 9))), &mut bytes);
        }
        let mut lengths = Vec::new();
        let mut chunks = bytes.chunks(37);
        while lengths.len() < 50 {
            if let Some(chunk) = chunks.next() {
                (&sender.stream).write_all(chunk).unwrap();
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
        assert!(matches!(receiver.receive(|_, _| Ok(Some(()))), Err(LinkError::Closed)));
    }

    #[test]
    fn rubbish_is_refused_at_its_first_header() {
        let (sender, mut receiver) = pair();
        (&sender.stream).write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(matches!(receiver.receive(|_, _| Ok(Some(()))), Err(LinkError::Frame(_))));
    }
}
