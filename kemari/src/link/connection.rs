//! One connection: frames over a transport that is plaintext or TLS.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use kemari_sync::wire::{FrameHeader, HEADER_BYTES, Message};

use super::transport::Transport;
use super::{LinkError, PREFACE_BYTES, Preface, Security};

/// Bytes read at a time into the connection's own buffer.
const READ_BYTES: usize = 256 << 10;

/// Bytes read at a time while it is not known what comes: a small part of a long frame that is to be received
/// elsewhere, but all of most others.
const FIRST_READ_BYTES: usize = 8 << 10;

/// Most buffers written with one call.
const SLICES_MAX: usize = 8;

/// Where received frames go.
pub(crate) trait Receiver<T> {
    /// Where the body of a frame that is still arriving is to be received, of which `received` bytes are
    /// there already; as long as the header. `None` before any of it is there: in the connection's buffer.
    /// `None` later: nobody wants it any more, and nothing is said of it.
    fn room(&mut self, header: &FrameHeader, received: usize) -> Option<&mut [u8]>;

    /// A frame is whole, its checksum not checked yet. `body` is `None` if it lies where [`Self::room`]
    /// wanted it. Some answer ends the receiving.
    fn frame(&mut self, header: &FrameHeader, body: Option<&[u8]>) -> Result<Option<T>, LinkError>;
}

/// A receiver that takes every frame out of the connection's buffer.
struct Buffered<F>(F);

impl<T, F: FnMut(&FrameHeader, &[u8]) -> Result<Option<T>, LinkError>> Receiver<T> for Buffered<F> {
    fn room(&mut self, _: &FrameHeader, _: usize) -> Option<&mut [u8]> {
        None
    }

    fn frame(&mut self, header: &FrameHeader, body: Option<&[u8]>) -> Result<Option<T>, LinkError> {
        (self.0)(header, body.unwrap_or_default())
    }
}

/// Whole frames that are to be sent.
pub struct Outgoing {
    bytes: Vec<u8>,
    /// How many bytes at its front were sent already.
    sent: usize,
}

impl Outgoing {
    /// What follows the first `sent` bytes.
    pub fn after(bytes: Vec<u8>, sent: usize) -> Self {
        Self { bytes, sent }
    }

    /// What is to be sent yet.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Keeps only so many bytes of the rest.
    pub fn truncate(&mut self, length: usize) {
        self.bytes.truncate(self.sent + length);
    }
}

impl From<Vec<u8>> for Outgoing {
    fn from(bytes: Vec<u8>) -> Self {
        Self::after(bytes, 0)
    }
}

/// One connection, framed, that never blocks.
///
/// If it breaks while something is sent, that is told by receiving, after all that the other end has said
/// before: it may have said why it goes, or acked what it was sent.
pub struct Connection {
    transport: Transport,
    /// What waits to be sent.
    outgoing: VecDeque<Outgoing>,
    /// See [`Connection::take_spare`].
    spare: Vec<u8>,
    /// Received bytes that are not yet whole frames: `incoming[start..end]`.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    /// A frame whose body is being received elsewhere, and how many bytes of it were.
    arriving: Option<(FrameHeader, usize)>,
    /// Why nothing can be sent any more.
    broken: Option<LinkError>,
}

/// The first frame in a connection's buffer.
enum Frame {
    /// Its header, and where its body begins.
    Whole(FrameHeader, usize),
    /// Not all of its body is there.
    Begun(FrameHeader),
}

/// What became of a body that is received elsewhere.
enum Arrival {
    /// More of it has to come.
    Open,
    /// It is there.
    Whole,
    /// It was thrown away.
    Unwanted,
}

impl Connection {
    /// Takes over an accepted connection. A TLS handshake goes on while it is read and flushed.
    pub fn accept(stream: TcpStream, security: &Security) -> Result<Self, LinkError> {
        Self::over(Transport::accept(stream, security)?)
    }

    /// Takes over a connection that was made to the host of that name.
    pub(crate) fn dial(stream: TcpStream, security: &Security, host: &str) -> Result<Self, LinkError> {
        Self::over(Transport::dial(stream, security, host)?)
    }

    fn over(transport: Transport) -> Result<Self, LinkError> {
        transport.socket().set_nodelay(true)?;
        transport.socket().set_nonblocking(true)?;
        let incoming = vec![0; READ_BYTES];
        Ok(Self {
            transport,
            outgoing: VecDeque::new(),
            spare: Vec::new(),
            incoming,
            start: 0,
            end: 0,
            arriving: None,
            broken: None,
        })
    }

    /// Where the other end is.
    pub(crate) fn peer_address(&self) -> String {
        let address = self.transport.socket().peer_addr();
        address.map_or_else(|_| "unknown".into(), |address| address.to_string())
    }

    /// Whether the other end has shown who it is. In plaintext nobody does.
    pub(crate) fn is_authenticated(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    /// When the other end's certificate ends, in seconds since 1970, if it has shown one.
    pub(crate) fn peer_ends_s(&self) -> Option<u64> {
        self.transport.peer_ends_s()
    }

    /// Whether the other end may say this: a host that it names as its own must be the one of its
    /// certificate. In plaintext anyone may say anything.
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
        self.broken.is_none() && (!self.outgoing.is_empty() || self.transport.wants_to_write())
    }

    /// Queues whole frames and sends what the socket takes at once.
    pub fn send(&mut self, bytes: Vec<u8>) {
        self.send_all([bytes]);
    }

    /// Queues several buffers of whole frames, and sends what the socket takes at once,
    /// with as few calls as may be.
    pub fn send_all(&mut self, buffers: impl IntoIterator<Item = impl Into<Outgoing>>) {
        let buffers = buffers.into_iter().map(Into::into);
        self.outgoing
            .extend(buffers.filter(|buffer: &Outgoing| !buffer.rest().is_empty()));
        self.flush();
    }

    /// Sends whole frames out of the caller's memory, if nothing waits before them. Returns whether they were
    /// taken; what the socket does not take of them at once is copied.
    pub(crate) fn send_now(&mut self, bytes: &[u8]) -> bool {
        self.flush();
        if self.wants_to_write() || self.broken.is_some() {
            return false;
        }
        let count = match self.transport.write(&[IoSlice::new(bytes)]) {
            Ok(count) => count,
            Err(error) if is_passing(&error) => 0,
            Err(error) => {
                self.give_up(error);
                return false;
            }
        };
        if count < bytes.len() {
            self.outgoing.push_back(bytes[count..].to_vec().into());
            self.flush();
        }
        true
    }

    /// The largest buffer that was sent and is not needed any more, to be filled again: fresh memory would
    /// cost a page fault for each of its pages.
    pub(crate) fn take_spare(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Bytes that wait until the socket takes them.
    pub fn queued_bytes(&self) -> usize {
        self.outgoing.iter().map(|buffer| buffer.rest().len()).sum()
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) {
        while self.wants_to_write() {
            match self.write_once() {
                Ok(count) => self.consume(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_passing(&error) => {}
                Err(error) => self.give_up(error),
            }
        }
    }

    fn give_up(&mut self, error: io::Error) {
        self.outgoing.clear();
        self.broken.get_or_insert(error.into());
    }

    /// All that is there was read.
    fn nothing_more<T>(&mut self) -> Result<Option<T>, LinkError> {
        self.broken.take().map_or(Ok(None), Err)
    }

    fn write_once(&mut self) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        for (slice, buffer) in slices.iter_mut().zip(&self.outgoing) {
            *slice = IoSlice::new(buffer.rest());
        }
        self.transport
            .write(&slices[..self.outgoing.len().min(SLICES_MAX)])
    }

    fn consume(&mut self, mut count: usize) {
        while let Some(front) = self.outgoing.front_mut() {
            let rest = front.rest().len();
            if count < rest {
                front.sent += count;
                return;
            }
            count -= rest;
            if let Some(Outgoing { bytes, .. }) = self.outgoing.pop_front()
                && bytes.capacity() > self.spare.capacity()
            {
                self.spare = bytes;
            }
        }
    }

    /// Takes one preface off a fresh connection, if it is there.
    pub(crate) fn receive_preface(&mut self) -> Result<Option<Preface>, LinkError> {
        loop {
            let buffered = &self.incoming[self.start..self.end];
            self.transport.check_first_bytes(buffered)?;
            if let Some(bytes) = buffered.first_chunk::<PREFACE_BYTES>() {
                let preface = Preface::decode(bytes)?;
                self.start += PREFACE_BYTES;
                return Ok(Some(preface));
            }
            if !self.fill()? {
                return self.nothing_more();
            }
        }
    }

    /// Reads what is there and passes whole frames to `on_frame`, until one of them is answered with
    /// something: that is returned, and the next call goes on behind it. None: all that is there was read.
    /// The frame's checksum is not checked yet.
    pub fn receive<T>(
        &mut self,
        on_frame: impl FnMut(&FrameHeader, &[u8]) -> Result<Option<T>, LinkError>,
    ) -> Result<Option<T>, LinkError> {
        self.receive_to(&mut Buffered(on_frame))
    }

    /// As [`Self::receive`], and lets the receiver say where the body of a long frame goes.
    pub(crate) fn receive_to<T>(&mut self, receiver: &mut impl Receiver<T>) -> Result<Option<T>, LinkError> {
        loop {
            if let Some((header, received)) = self.arriving {
                match self.receive_body(&header, received, receiver)? {
                    Arrival::Open => return self.nothing_more(),
                    Arrival::Unwanted => {}
                    Arrival::Whole => {
                        if let Some(answer) = receiver.frame(&header, None)? {
                            return Ok(Some(answer));
                        }
                    }
                }
            }
            while let Some(frame) = self.next_frame()? {
                match frame {
                    Frame::Whole(header, body_start) => {
                        let body = &self.incoming[body_start..body_start + header.length];
                        self.start = body_start + header.length;
                        if let Some(answer) = receiver.frame(&header, Some(body))? {
                            return Ok(Some(answer));
                        }
                    }
                    Frame::Begun(header) if receiver.room(&header, 0).is_some() => {
                        self.start += HEADER_BYTES;
                        self.arriving = Some((header, 0));
                        break;
                    }
                    Frame::Begun(header) => {
                        // Bounded: the header has been checked against the limit of its kind.
                        self.make_room(HEADER_BYTES + header.length);
                        break;
                    }
                }
            }
            if self.arriving.is_none() && !self.fill()? {
                return self.nothing_more();
            }
        }
    }

    /// Receives the rest of a body where the receiver wants it.
    fn receive_body<T>(
        &mut self,
        header: &FrameHeader,
        mut received: usize,
        receiver: &mut impl Receiver<T>,
    ) -> Result<Arrival, LinkError> {
        let mut room = receiver.room(header, received);
        let outcome = loop {
            let rest = header.length - received;
            if rest == 0 {
                break if room.is_some() {
                    Arrival::Whole
                } else {
                    Arrival::Unwanted
                };
            }
            let buffered = rest.min(self.end - self.start);
            if buffered > 0 {
                if let Some(room) = &mut room {
                    room[received..received + buffered]
                        .copy_from_slice(&self.incoming[self.start..self.start + buffered]);
                }
                self.start += buffered;
                received += buffered;
                continue;
            }
            let into = match &mut room {
                Some(room) => &mut room[received..header.length],
                None => {
                    let most = rest.min(self.incoming.len());
                    &mut self.incoming[..most]
                }
            };
            match self.transport.read(into)? {
                Some(count) => received += count,
                None => break Arrival::Open,
            }
        };
        self.arriving = matches!(outcome, Arrival::Open).then_some((*header, received));
        Ok(outcome)
    }

    /// The first frame in the buffer, if its header is there.
    fn next_frame(&self) -> Result<Option<Frame>, LinkError> {
        let buffered = &self.incoming[self.start..self.end];
        let Some(header) = buffered.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::parse(header)?;
        Ok(Some(match buffered.len() < HEADER_BYTES + header.length {
            true => Frame::Begun(header),
            false => Frame::Whole(header, self.start + HEADER_BYTES),
        }))
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
        let mut most = READ_BYTES;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            most = FIRST_READ_BYTES;
        } else if self.end == self.incoming.len() {
            self.make_room(self.end - self.start + READ_BYTES);
        }
        let most = most.min(self.incoming.len() - self.end);
        let count = self
            .transport
            .read(&mut self.incoming[self.end..self.end + most])?;
        self.end += count.unwrap_or(0);
        Ok(count.is_some())
    }

    /// Says nothing more. What was said, an alert of TLS too, is still delivered if the other end gets time
    /// to read it: keep the connection until [`Self::has_left`].
    pub fn refuse(&mut self) {
        // Whoever is refused may be gone.
        self.flush();
        let _ = self.transport.socket().shutdown(std::net::Shutdown::Write);
    }

    /// Whether the other end of a refused connection has closed it. What it still sends is thrown away:
    /// unread, it would make the kernel throw away the refusal.
    pub(crate) fn has_left(&mut self) -> bool {
        self.transport.skip(&mut self.incoming)
    }
}

/// Whether trying again may be all that is needed.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
