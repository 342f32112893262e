//! The secondary of a primary: the search for one, the session with it, and when it was heard.

use kemari_sync::SessionId;
use kemari_sync::wire::{Channel, FrameHeader, Message};

use super::super::clock::Clock;
use super::super::wait::Waiter;
use super::connect::{Connected, Connector};
use crate::link::{Connection, LinkError, decode};

/// The two connections of a session.
pub struct Session {
    pub id: SessionId,
    pub host: String,
    pub main: Connection,
    pub heartbeat: Connection,
}

/// See the module. There is one session at a time, no two have one number, and the loop wakes for it.
pub struct Peer {
    pub connector: Connector,
    waiter: Waiter,
    session: Option<Session>,
    /// How many sessions there were: the number of the last one.
    sessions: SessionId,
    heard_ms: Option<u64>,
}

impl Peer {
    /// Nobody yet. `waiter` is what the loop will wait at.
    pub fn new(connector: Connector, waiter: Waiter) -> Self {
        Self {
            connector,
            waiter,
            session: None,
            sessions: 0,
            heard_ms: None,
        }
    }

    /// What the loop waits at.
    pub fn waiter(&self) -> &Waiter {
        &self.waiter
    }

    /// The session.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// The same, to send something.
    pub fn session_mut(&mut self) -> Option<&mut Session> {
        self.session.as_mut()
    }

    /// Its number.
    pub fn id(&self) -> Option<SessionId> {
        self.session.as_ref().map(|session| session.id)
    }

    /// A session begins, over these connections.
    ///
    /// # Errors
    /// Nobody could wait for them.
    pub fn begin(&mut self, connected: Connected) -> anyhow::Result<SessionId> {
        let Connected {
            host,
            main,
            heartbeat,
        } = connected;
        self.sessions += 1;
        self.waiter.add(main.fd())?;
        self.waiter.add(heartbeat.fd())?;
        self.connector.note_session();
        self.session = Some(Session {
            id: self.sessions,
            host,
            main,
            heartbeat,
        });
        Ok(self.sessions)
    }

    /// The session of this number is over, if it was not before.
    pub fn end(&mut self, id: SessionId) -> Option<Session> {
        self.session.take_if(|session| session.id == id)
    }

    /// Does something with the link, if it is still that of this session.
    pub fn on_link(&mut self, id: SessionId, send: impl FnOnce(&mut Session)) {
        if let Some(session) = self.session.as_mut().filter(|session| session.id == id) {
            send(session);
        }
    }

    /// Reads all that has come on a connection: blocks of disks, which `take_blocks` knows, and messages.
    ///
    /// # Errors
    /// The session has to end.
    pub fn receive(
        &mut self,
        channel: Channel,
        clock: Clock,
        mut take_blocks: impl FnMut(&FrameHeader, &[u8]) -> Result<bool, LinkError>,
        mut tell: impl FnMut(SessionId, Message),
    ) -> Result<(), LinkError> {
        let Some(Session {
            id,
            host,
            main,
            heartbeat,
        }) = &mut self.session
        else {
            return Ok(());
        };
        let connection = match channel {
            Channel::Main => main,
            Channel::Heartbeat => heartbeat,
        };
        connection.flush();
        // Nothing ends this early: all that is there is read.
        let result = connection.receive(|header, body| {
            header.check(body)?;
            if !take_blocks(header, body)? {
                let message = decode(header.kind, body)?;
                check_welcome(host, &message)?;
                self.heard_ms = Some(clock.now_ms());
                tell(*id, message);
            }
            Ok(None::<()>)
        });
        result.map(|_| ())
    }

    /// For how long nothing was heard.
    pub fn silent_ms(&self, now_ms: u64) -> Option<u64> {
        self.heard_ms.map(|heard_ms| now_ms.saturating_sub(heard_ms))
    }

    /// Whether the loop's thread wakes when something comes from the secondary.
    pub fn watch(&self, watch: bool) {
        if let Some(Session { main, heartbeat, .. }) = &self.session {
            self.waiter.set(main.fd(), watch, main.wants_to_write());
            self.waiter.set(heartbeat.fd(), true, heartbeat.wants_to_write());
        }
    }
}

/// A secondary says the name of the host that it was looked for at.
pub fn check_welcome(host: &str, message: &Message) -> Result<(), LinkError> {
    match message {
        Message::Welcome(welcome) if welcome.incarnation.host != host => Err(LinkError::Claim(format!(
            "the secondary on {host} says that it is on {}: look at `listen` of both hosts",
            welcome.incarnation.host
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "peer_test.rs"]
mod tests;
