//! One connection: frames over a transport that is plaintext or TLS.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use kemari_sync::wire::{FrameHeader, HEADER_BYTES, Message};

use super::transport::Transport;
use super::{LinkError, PREFACE_BYTES, Preface, Security};

/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;

/// Most buffers written with one call.
const SLICES_MAX: usize = 8;

/// One connection, framed, that never blocks.
pub struct Connection {
    transport: Transport,
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
    /// Takes over an accepted connection. A TLS handshake goes on while it is read and flushed.
    pub fn accept(stream: TcpStream, security: &Security) -> Result<Self, LinkError> {
        Self::over(Transport::accept(stream, security)?)
    }

    /// Takes over a connection that was made to the host of that name.
    pub fn dial(stream: TcpStream, security: &Security, host: &str) -> Result<Self, LinkError> {
        Self::over(Transport::dial(stream, security, host)?)
    }

    fn over(transport: Transport) -> Result<Self, LinkError> {
        transport.socket().set_nodelay(true)?;
        transport.socket().set_nonblocking(true)?;
        let incoming = vec![0; READ_BYTES];
        Ok(Self {
            transport,
            outgoing: VecDeque::new(),
            front_sent: 0,
            spare: Vec::new(),
            incoming,
            start: 0,
            end: 0,
        })
    }

    /// Where the other end is.
    pub fn peer_address(&self) -> String {
        let address = self.transport.socket().peer_addr();
        address.map_or_else(|_| "unknown".into(), |address| address.to_string())
    }

    /// Whether the other end has shown who it is. In plaintext nobody does.
    pub fn is_authenticated(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    /// Whether the other end may say this: a host that it names as its own must be the one of its certificate. In
    /// plaintext anyone may say anything.
    pub fn check_claim(&self, message: &Message) -> Result<(), LinkError> {
        match message {
            Message::Hello(hello) => self.transport.check_peer(&hello.incarnation.host),
            // Whoever was connected to was found at a host of that name already.
            _ => Ok(()),
        }
    }

    /// The socket, for polling.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.transport.socket().as_fd()
    }

    /// Whether something waits until the socket takes it.
    pub fn wants_to_write(&self) -> bool {
        !self.outgoing.is_empty() || self.transport.wants_to_write()
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
        self.outgoing
            .extend(buffers.into_iter().filter(|buffer| !buffer.is_empty()));
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
        while self.wants_to_write() {
            match self.write_once() {
                Ok(count) => self.consume(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write_once(&mut self) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        for (index, (slice, buffer)) in slices.iter_mut().zip(&self.outgoing).enumerate() {
            let skipped = if index == 0 { self.front_sent } else { 0 };
            *slice = IoSlice::new(&buffer[skipped..]);
        }
        self.transport
            .write(&slices[..self.outgoing.len().min(SLICES_MAX)])
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
        loop {
            let buffered = &self.incoming[self.start..self.end];
            self.transport.check_first_bytes(buffered)?;
            if let Some(bytes) = buffered.first_chunk::<PREFACE_BYTES>() {
                let preface = Preface::decode(bytes)?;
                self.start += PREFACE_BYTES;
                return Ok(Some(preface));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
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
        let Some(header) = buffered.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
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
        let count = self.transport.read(&mut self.incoming[self.end..])?;
        self.end += count.unwrap_or(0);
        Ok(count.is_some())
    }

    /// Says nothing more. What was said, an alert of TLS too, is still delivered if the other end gets time to read it:
    /// keep the connection until [`Self::has_left`].
    pub fn refuse(&mut self) {
        // Whoever is refused may be gone.
        let _ = self.flush();
        let _ = self.transport.socket().shutdown(std::net::Shutdown::Write);
    }

    /// Whether the other end of a refused connection has closed it. What it still sends is thrown away: unread, it would
    /// make the kernel throw away the refusal.
    pub fn has_left(&mut self) -> bool {
        self.transport.skip(&mut self.incoming)
    }
}
