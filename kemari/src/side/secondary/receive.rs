//! Frames from the primary: control messages to the core, pages of the first copy into memory, syncs into
//! staging.

use kemari_sync::wire::{Channel, FrameHeader, FrameKind, Hello, Message, PageBatch, encode, reason_text};
use kemari_sync::{Incarnation, SecondaryEvent, SessionId};

use super::super::clock::wall_clock_ms;
use super::super::readiness::Source;
use super::super::wait::Poll;
use super::{POLL_US_MAX, SecondarySide};
use crate::config::Latency;
use crate::link::{LinkError, Receiver};

/// Most bytes of a copy that are taken in one go. Then heartbeats get their turn: a stream that is as fast as
/// it is taken would hide them for as long as it lasts, and the primary would seem silent.
const COPY_BYTES_MAX: usize = 4 << 20;

impl SecondarySide {
    /// Reads what has come, in order: a control message takes effect before the frames behind it are looked
    /// at.
    pub(super) fn receive(&mut self) {
        self.sessions.more_is_there = false;
        let mut index = 0;
        while let Some(id) = self.sessions.at(index).map(|session| session.id) {
            for heartbeat in [false, true] {
                while let Some(place) = self.sessions.place(id) {
                    match self.receive_from(place, heartbeat) {
                        Ok(Some((session, message))) => self.note_message(session, message),
                        Ok(None) => break,
                        Err(error) => self.lose_session(place, error),
                    }
                }
            }
            if self.sessions.place(id) == Some(index) {
                index += 1;
            }
        }
    }

    /// Polls the main connections as long as a train of syncs lasts.
    pub(super) fn poll_main(&mut self) {
        let mut poll = Poll::begin();
        while self.end.is_none() && self.clock.now_us() < self.sessions.poll_until_us {
            for place in 0..self.sessions.len() {
                match self.receive_from(place, false) {
                    Ok(Some((session, message))) => {
                        self.note_message(session, message);
                        // The sessions may be others now.
                        break;
                    }
                    Ok(None) => {}
                    Err(error) => {
                        self.lose_session(place, error);
                        return self.sessions.poll_until_us = 0;
                    }
                }
            }
            poll.pause();
        }
    }

    /// The frame that could not be taken is gone: nothing behind it may be looked at.
    fn lose_session(&mut self, place: usize, error: LinkError) {
        let session = self.sessions.take(place).id;
        let reason = format!("{:#}", anyhow::Error::from(error));
        match self.core.follows(session) {
            true => tracing::warn!("the link to the primary is gone: {reason}"),
            false => tracing::info!("a session that was never greeted is gone: {reason}"),
        }
        self.events
            .push_back(SecondaryEvent::PeerClosed { session, reason });
        self.settle();
    }

    fn note_message(&mut self, session: SessionId, message: Message) {
        if let Err(error) = self.check_claim(session, &message) {
            return self.refuse(session, &error.to_string());
        }
        if let Some(session) = self.sessions.get_mut(session) {
            session.has_spoken = true;
        }
        // What somebody else says is nothing to go by.
        if self.core.follows(session) {
            let now_us = self.clock.now_us();
            self.signs.note(&message, now_us);
            if message.channel() == Channel::Main && self.config.protection.latency == Latency::Low {
                self.sessions.poll_until_us = now_us + POLL_US_MAX;
            }
            self.note_host(&message);
        }
        self.events
            .push_back(SecondaryEvent::Message { session, message });
        self.settle();
    }

    /// Whether a primary may be on the host that it says it is on: that host may run the VM, and the
    /// certificates of both connections are for it.
    fn check_claim(&self, id: SessionId, message: &Message) -> Result<(), LinkError> {
        let Some(session) = self.sessions.get(id) else {
            return Ok(());
        };
        if let Message::Hello(Hello {
            incarnation: Incarnation { host, .. },
            ..
        }) = message
            && session.main.is_authenticated()
            && !self.config.peers(&self.host).any(|(name, _)| name == host)
        {
            return Err(LinkError::Claim(format!(
                "`{host}` is no other host of this VM's configuration"
            )));
        }
        session.main.check_claim(message)?;
        session.heartbeat.check_claim(message)?;
        if let Message::Hello(hello) = message {
            self.board.note_peer(&hello.incarnation.host, &session.main);
        }
        Ok(())
    }

    /// Ends a session that the core has not heard of.
    fn refuse(&mut self, id: SessionId, reason: &str) {
        tracing::warn!("a primary was refused: {reason}");
        let Some(place) = self.sessions.place(id) else {
            return;
        };
        let mut session = self.sessions.take(place);
        let mut bytes = Vec::new();
        encode(&Message::Refuse(reason_text(reason)), &mut bytes);
        session.main.send(bytes);
        self.events.push_back(SecondaryEvent::PeerClosed {
            session: id,
            reason: reason.to_owned(),
        });
    }

    /// Takes frames up to the next control message of one connection.
    fn receive_from(
        &mut self,
        place: usize,
        heartbeat: bool,
    ) -> Result<Option<(SessionId, Message)>, LinkError> {
        if !heartbeat && self.disks_are_full() {
            if let Some(session) = self.sessions.at(place) {
                session.main.flush();
            }
            return Ok(None);
        }
        // Taken out, so that the frames can be put where they belong while they lie in the connection's
        // buffer.
        let mut session = self.sessions.take(place);
        let id = session.id;
        let mut intake = Intake {
            session: id,
            heartbeat,
            copied_bytes: 0,
            side: self,
        };
        let connection = if heartbeat {
            &mut session.heartbeat
        } else {
            &mut session.main
        };
        connection.flush();
        let result = connection.receive_to(&mut intake);
        self.sessions.put_back(place, session);
        Ok(result?.flatten().map(|message| (id, message)))
    }

    /// What the primary's wall clock shows, and what the guest's TAPs there take.
    fn note_host(&mut self, message: &Message) {
        let Message::Heartbeat(heartbeat) = message else {
            return;
        };
        self.board.mtus().note_theirs(&heartbeat.mtus);
        let trouble = self.signs.note_clock(wall_clock_ms(), heartbeat.wall_clock_ms);
        if let Some(trouble) = trouble {
            self.board.findings().note(Source::Clock, None, trouble);
        }
    }

    /// A batch of the first copy goes straight into memory: nothing has been committed yet.
    pub(super) fn take_copy(
        &mut self,
        session: u64,
        header: &FrameHeader,
        body: &[u8],
    ) -> Result<(), LinkError> {
        let Some(standby) = self.berth.copying_for(session) else {
            return Err(LinkError::Refused("pages came before they were asked for".into()));
        };
        header.check(body)?;
        let batch = PageBatch::parse(header.kind, body, |gfn| standby.has_page(gfn))?;
        self.inflow.note_copied(batch.len(), body.len());
        batch.iter().for_each(|page| standby.write_page(page));
        Ok(())
    }
}

/// Takes the frames of one connection.
struct Intake<'a> {
    session: SessionId,
    heartbeat: bool,
    /// Bytes of a copy that were taken in one go.
    copied_bytes: usize,
    side: &'a mut SecondarySide,
}

impl Receiver<Option<Message>> for Intake<'_> {
    /// Pages of a sync are received straight into staging. What else has arrived meanwhile came over this
    /// connection, so it lies before them: their place stays the same, or nobody wants them any more.
    fn room(&mut self, header: &FrameHeader, _: usize) -> Option<&mut [u8]> {
        if header.kind != FrameKind::Pages || self.heartbeat {
            return None;
        }
        self.side.berth.standby()?;
        self.side.inflow.room(self.session, header)
    }

    fn frame(
        &mut self,
        header: &FrameHeader,
        body: Option<&[u8]>,
    ) -> Result<Option<Option<Message>>, LinkError> {
        let (side, session) = (&mut *self.side, self.session);
        // Dropped one by one they would keep this side from everything else for as long as they come.
        if header.kind != FrameKind::Hello && !side.core.follows(session) {
            return Err(LinkError::Refused("it did not begin with a greeting".into()));
        }
        match header.kind {
            FrameKind::Pages | FrameKind::State if !self.heartbeat => {
                if let Some(standby) = side.berth.standby() {
                    let failed = side.inflow.stage(session, header, body, standby);
                    side.events.extend(failed);
                }
                return Ok(None);
            }
            _ => {}
        }
        let body = body.unwrap_or_default();
        match header.kind {
            FrameKind::CopyPages => side.take_copy(session, header, body)?,
            FrameKind::DiskSums | FrameKind::DiskBlocks => side.take_blocks(session, header, body)?,
            _ => {
                header.check(body)?;
                return Ok(Some(Some(crate::link::decode(header.kind, body)?)));
            }
        }
        self.copied_bytes += body.len();
        side.sessions.more_is_there |= self.copied_bytes >= COPY_BYTES_MAX;
        // What follows waits in the connection for the next turn, or as long as a queue is full.
        let enough = self.copied_bytes >= COPY_BYTES_MAX || side.disks_are_full();
        Ok(enough.then_some(None))
    }
}
