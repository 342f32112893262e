//! The connections: what came in, what is to go out, and what each waits for.
//!
//! Requests of one connection are answered in order. While one is being carried out the next ones wait, but
//! for `SET`s, which join one group commit.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::socket::tcp;

use crate::commit::Client;
use crate::jobs::Job;
use crate::resp;

/// Bytes of requests that are kept.
const INPUT_BYTES_MAX: usize = resp::REQUEST_BYTES_MAX;
/// Bytes of replies from which on no further request is begun.
const OUTPUT_BYTES_MAX: usize = 8 * 1024;
/// `SET`s of one connection under way at a time.
const SETS_MAX: usize = 16;

/// What a connection waits for.
pub enum Activity {
    /// Nothing: it takes requests.
    None,
    /// The outcome of so many `SET`s.
    Sets(usize),
    /// The end of a job.
    Job(Job),
    /// The end of a test of the disk, or of a reset.
    Other,
}

/// One connection.
pub struct Connection {
    /// Which life of the connection this is.
    pub generation: u64,
    /// What it waits for.
    pub activity: Activity,
    /// Replies that the socket has not taken yet.
    pub output: Vec<u8>,
    input: Vec<u8>,
    /// Nothing more is read: the connection closes when the replies are sent.
    closing: bool,
    live: bool,
}

impl Connection {
    fn new() -> Connection {
        Connection {
            generation: 0,
            activity: Activity::None,
            output: Vec::new(),
            input: Vec::new(),
            closing: false,
            live: false,
        }
    }

    /// So many free connections.
    pub fn pool(count: usize) -> Vec<Connection> {
        let mut pool = vec![];
        pool.resize_with(count, Connection::new);
        pool
    }

    /// Who it is, in this life.
    pub fn client(&self, connection: usize) -> Client {
        Client {
            connection,
            generation: self.generation,
        }
    }

    /// Reads what its socket has received. A closed socket listens again.
    pub fn receive(&mut self, socket: &mut tcp::Socket<'_>, port: u16) {
        if !socket.is_open() {
            if self.live {
                *self = Connection {
                    generation: self.generation + 1,
                    ..Connection::new()
                };
            }
            // It cannot fail: the socket is closed and the port is not 0.
            let _ = socket.listen(port);
            return;
        }
        self.live |= socket.is_active();
        while !self.closing && socket.can_recv() && self.input.len() < INPUT_BYTES_MAX {
            let room = INPUT_BYTES_MAX - self.input.len();
            let taken = socket.recv(|bytes| {
                let count = bytes.len().min(room);
                self.input.extend_from_slice(&bytes[..count]);
                (count, ())
            });
            if taken.is_err() {
                break;
            }
        }
    }

    /// The next request to carry out, as its arguments; `None` if there is none, or if it must wait.
    pub fn next_request(&mut self) -> Option<Vec<Vec<u8>>> {
        if self.closing || self.output.len() >= OUTPUT_BYTES_MAX {
            return None;
        }
        let sets = match self.activity {
            Activity::None => 0,
            Activity::Sets(count) => count,
            Activity::Job(_) | Activity::Other => return None,
        };
        loop {
            let (arguments, taken) = match resp::parse(&self.input) {
                Ok(Some(request)) => request,
                Ok(None) => return None,
                // The error comes after the replies that are still due.
                Err(_) if sets > 0 => return None,
                Err(resp::ProtocolError(what)) => {
                    resp::error(&mut self.output, what);
                    self.close();
                    return None;
                }
            };
            let is_set = arguments
                .first()
                .is_some_and(|name| name.eq_ignore_ascii_case(b"SET"));
            if sets > 0 && (sets >= SETS_MAX || !is_set || arguments.len() != 3) {
                return None;
            }
            let arguments: Vec<Vec<u8>> = arguments.iter().map(|argument| argument.to_vec()).collect();
            self.input.drain(..taken);
            if !arguments.is_empty() {
                return Some(arguments);
            }
        }
    }

    /// Closes the connection when the replies are sent.
    pub fn close(&mut self) {
        self.closing = true;
        self.input.clear();
    }

    /// Gives replies to the socket; closes it when the client has closed its side and everything is answered.
    pub fn send(&mut self, socket: &mut tcp::Socket<'_>) {
        if !self.output.is_empty() && socket.can_send() {
            let sent = socket.send_slice(&self.output).unwrap_or(0);
            self.output.drain(..sent);
        }
        let idle = matches!(self.activity, Activity::None) && self.output.is_empty();
        if self.live && idle && (self.closing || !socket.may_recv()) && socket.may_send() {
            socket.close();
        }
    }

    /// Every reply has reached the client.
    pub fn is_flushed(&self, socket: &tcp::Socket<'_>) -> bool {
        self.output.is_empty() && (!self.live || socket.send_queue() == 0)
    }
}
