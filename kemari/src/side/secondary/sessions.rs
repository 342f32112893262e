//! The connections of primaries: who has come, who is heard, and who gives way.

use std::iter;
use std::os::fd::BorrowedFd;

use kemari_sync::SessionId;
use kemari_sync::wire::{Channel, Message, encode};

use super::super::wait::wait;
use crate::link::{Arrival, Connection, Listener};

/// Most sessions at a time: one that lives, one that replaces it, and one too many to be told so.
const SESSIONS_MAX: usize = 3;

/// Both connections of a primary.
pub struct Session {
    pub id: SessionId,
    pub main: Connection,
    pub heartbeat: Connection,
    /// Whether any message has come. From then on the core keeps it, or ends it.
    pub has_spoken: bool,
}

/// See the module.
pub struct Sessions {
    listener: Listener,
    /// In the order in which they have come.
    list: Vec<Session>,
    next: SessionId,
    /// Whether a connection's buffer may hold frames that were left for the next turn.
    pub more_is_there: bool,
    /// Until when the main connections are polled, in microseconds.
    pub poll_until_us: u64,
}

impl Sessions {
    /// Nobody has come yet.
    pub fn new(listener: Listener) -> Self {
        Self {
            listener,
            list: Vec::new(),
            next: 1,
            more_is_there: false,
            poll_until_us: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The one that came first.
    pub fn first(&self) -> Option<&Session> {
        self.list.first()
    }

    /// The one at this place.
    pub fn at(&mut self, place: usize) -> Option<&mut Session> {
        self.list.get_mut(place)
    }

    /// Where this one is.
    pub fn place(&self, id: SessionId) -> Option<usize> {
        self.list.iter().position(|session| session.id == id)
    }

    pub fn get(&self, id: SessionId) -> Option<&Session> {
        self.list.iter().find(|session| session.id == id)
    }

    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.list.iter_mut().find(|session| session.id == id)
    }

    /// Takes the one at this place out.
    pub fn take(&mut self, place: usize) -> Session {
        self.list.remove(place)
    }

    /// Puts one back that was at this place.
    pub fn put_back(&mut self, place: usize, session: Session) {
        self.list.insert(place, session);
    }

    /// Closes this one, if it is there.
    pub fn close(&mut self, id: SessionId) {
        self.list.retain(|session| session.id != id);
    }

    /// Sends a message on the connection that it belongs to.
    pub fn send(&mut self, id: SessionId, message: &Message) {
        let Some(session) = self.get_mut(id) else { return };
        let mut bytes = Vec::new();
        encode(message, &mut bytes);
        let connection = match message.channel() {
            Channel::Main => &mut session.main,
            Channel::Heartbeat => &mut session.heartbeat,
        };
        connection.send(bytes);
    }

    /// Sends frames that are no messages.
    pub fn send_frames(&mut self, id: SessionId, frames: Vec<u8>) {
        if let Some(session) = self.get_mut(id) {
            session.main.send(frames);
        }
    }

    /// Takes whoever has come. Returns those who only ask something.
    pub fn accept(&mut self, now_ms: u64) -> Vec<Connection> {
        let mut asking = Vec::new();
        for arrival in self.listener.poll(now_ms) {
            match arrival {
                Arrival::Session { main, heartbeat } => self.join(main, heartbeat),
                // A port scan, a health check, `kemari check`: not worth a warning. Nor is a peer that cannot
                // be told from them, but its operator will look here.
                Arrival::Refused { address, reason } => {
                    tracing::info!("{address} was refused: {:#}", anyhow::Error::from(reason));
                }
                Arrival::Query(connection) => asking.push(connection),
            }
        }
        asking
    }

    fn join(&mut self, main: Connection, heartbeat: Connection) {
        if self.list.len() >= SESSIONS_MAX {
            self.end_a_mute_one();
        }
        if self.list.len() >= SESSIONS_MAX {
            return tracing::warn!("{} was sent away: too many sessions", main.peer_address());
        }
        tracing::info!("{} has connected", main.peer_address());
        self.list.push(Session {
            id: self.next,
            main,
            heartbeat,
            has_spoken: false,
        });
        self.next += 1;
    }

    /// Whoever has said nothing yet gives way, the oldest first: it must not keep the right primary out.
    fn end_a_mute_one(&mut self) {
        let mute = self.list.iter().position(|session| !session.has_spoken);
        if let Some(place) = mute {
            let session = self.list.remove(place);
            tracing::info!("{} has said nothing and gives way", session.main.peer_address());
        }
    }

    /// When something is due here although nothing comes, in milliseconds.
    pub fn due_ms(&self, now_ms: u64, may_read: bool) -> Option<u64> {
        // What was read off a connection and left in its buffer makes nothing readable.
        let at_once = (self.more_is_there && may_read).then_some(now_ms);
        self.listener.due_ms(now_ms).into_iter().chain(at_once).min()
    }

    /// Waits until there is something to do for one of them, or `bell` rings, or `timeout_ms` is over, if
    /// there is one. What comes on a main connection waits there until it may be read.
    pub fn wait(&self, bell: BorrowedFd<'_>, now_ms: u64, may_read: bool, timeout_ms: Option<u64>) {
        let readable: Vec<BorrowedFd<'_>> = iter::once(bell).chain(self.listener.fd(now_ms)).collect();
        let sessions = self.list.iter().flat_map(|session| {
            let main = (may_read || session.main.wants_to_write()).then_some(&session.main);
            main.into_iter().chain([&session.heartbeat])
        });
        wait(&readable, sessions.chain(self.listener.connections()), timeout_ms);
    }
}
