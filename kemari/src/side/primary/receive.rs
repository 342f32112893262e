//! What the secondary sends, and that it sends no more.

use kemari_sync::wire::Channel;
use kemari_sync::{PrimaryEvent, SessionId};

use super::PrimarySide;
use super::peer::Session;
use crate::link::LinkError;

impl PrimarySide {
    /// Reads what the secondary has sent.
    pub(super) fn receive(&mut self) {
        self.receive_from(Channel::Main);
        self.receive_from(Channel::Heartbeat);
    }

    pub(super) fn receive_main(&mut self) {
        self.receive_from(Channel::Main);
    }

    fn receive_from(&mut self, channel: Channel) {
        let (disks, events) = (&mut self.disks, &mut self.events);
        let result = self.peer.receive(
            channel,
            self.clock,
            |header, body| disks.take_frame(header, body),
            |session, message| events.push_back(PrimaryEvent::Message { session, message }),
        );
        if let Err(error) = result {
            self.lose_session(error);
        }
    }

    pub(super) fn lose_session(&mut self, error: LinkError) {
        let Some(session) = self.peer.id().and_then(|id| self.end_session(id)) else {
            return;
        };
        let reason = format!("{:#}", anyhow::Error::from(error));
        match self.core.is_switching() {
            true => tracing::info!("the secondary on {} ends the session and goes on", session.host),
            false => tracing::warn!("the link to {} is gone: {reason}", session.host),
        }
        self.events.push_back(PrimaryEvent::PeerClosed {
            session: session.id,
            reason,
        });
    }

    pub(super) fn close_session(&mut self, id: SessionId, reason: &str) {
        // The peer may have closed the connection as soon as it had said why.
        self.disks.trouble = Some(format!("the last session ended: {reason}"));
        if let Some(session) = self.end_session(id) {
            tracing::info!("the session with {} ends: {reason}", session.host);
        }
    }

    /// The session is over, if it was not before, and all that was for it: what went ahead is owed again.
    fn end_session(&mut self, id: SessionId) -> Option<Session> {
        let session = self.peer.end(id)?;
        self.disks.end_session();
        self.owed.end_session(id);
        let is_pair = self.machine.holds_output();
        self.peer.connector.note_session_end(is_pair, self.clock.now_ms());
        Some(session)
    }
}
