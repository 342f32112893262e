//! What the secondary sends.

use kemari_sync::PrimaryEvent;
use kemari_sync::wire::Message;

use super::{PrimarySide, Session};
use crate::link::{Connection, LinkError};

impl PrimarySide {
    /// Reads what the secondary has sent.
    pub(super) fn receive(&mut self) {
        self.receive_from(|session| (&mut session.main, &session.host));
        self.receive_from(|session| (&mut session.heartbeat, &session.host));
    }

    pub(super) fn receive_main(&mut self) {
        self.receive_from(|session| (&mut session.main, &session.host));
    }

    fn receive_from(&mut self, connection: impl Fn(&mut Session) -> (&mut Connection, &str)) {
        let Some(session) = &mut self.session else { return };
        let id = session.id;
        let (connection, host) = connection(session);
        connection.flush();
        // Nothing ends this early: all that is there is read.
        let result = connection.receive(|header, body| {
            header.check(body)?;
            if self.disks.take_frame(header, body)? {
                return Ok(None);
            }
            let message = crate::link::decode(header.kind, body)?;
            check_welcome(host, &message)?;
            self.heard_ms = Some(self.clock.now_ms());
            self.events
                .push_back(PrimaryEvent::Message { session: id, message });
            Ok(None::<()>)
        });
        if let Err(error) = result {
            self.lose_session(error);
        }
    }

    pub(super) fn lose_session(&mut self, error: LinkError) {
        self.disks.end_session();
        if let Some(session) = self.session.take() {
            let reason = format!("{:#}", anyhow::Error::from(error));
            match self.core.is_switching() {
                true => tracing::info!("the secondary on {} ends the session and goes on", session.host),
                false => tracing::warn!("the link to {} is gone: {reason}", session.host),
            }
            self.events.push_back(PrimaryEvent::PeerClosed {
                session: session.id,
                reason,
            });
            self.note_session_end(session.id);
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
