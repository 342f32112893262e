//! Frames from the primary: control messages to the core, pages of the first copy into memory, syncs into staging.

use kemari_sync::wire::{
    Channel, FrameHeader, FrameKind, Goodbye, Hello, Message, PageBatch, Staging, encode, reason_text,
};
use kemari_sync::{Epoch, Incarnation, SecondaryEvent, SessionId};

use super::super::clock::wall_clock_ms;
use super::super::readiness::Source;
use super::super::wait::Poll;
use super::{POLL_US_MAX, SecondarySide, Standby};
use crate::config::Latency;
use crate::link::{LinkError, Receiver};

/// Most bytes of a copy that are taken in one go. Then heartbeats get their turn: a stream that is as fast as it is
/// taken would hide them for as long as it lasts, and the primary would seem silent.
const COPY_BYTES_MAX: usize = 4 << 20;

impl SecondarySide {
    /// Reads what has come, in order: a control message takes effect before the frames behind it are looked at.
    pub(super) fn receive(&mut self) {
        self.more_is_there = false;
        let mut index = 0;
        while let Some(session) = self.sessions.get(index) {
            let id = session.id;
            for heartbeat in [false, true] {
                while let Some(place) = self.sessions.iter().position(|session| session.id == id) {
                    match self.receive_from(place, heartbeat) {
                        Ok(Some(message)) => {
                            self.note_message(id, message);
                        }
                        Ok(None) => break,
                        Err(error) => self.lose_session(place, error),
                    }
                }
            }
            if self.sessions.get(index).is_some_and(|session| session.id == id) {
                index += 1;
            }
        }
    }

    /// Polls the main connections as long as a train of syncs lasts.
    pub(super) fn poll_main(&mut self) {
        let mut poll = Poll::begin();
        while self.end.is_none() && self.clock.now_us() < self.poll_until_us {
            for place in 0..self.sessions.len() {
                match self.receive_from(place, false) {
                    Ok(Some(message)) => {
                        self.note_message(self.sessions[place].id, message);
                        // The sessions may be others now.
                        break;
                    }
                    Ok(None) => {}
                    Err(error) => {
                        self.lose_session(place, error);
                        return self.poll_until_us = 0;
                    }
                }
            }
            poll.pause();
        }
    }

    /// The frame that could not be taken is gone: nothing behind it may be looked at.
    fn lose_session(&mut self, place: usize, error: LinkError) {
        let session = self.sessions.remove(place).id;
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
        if let Some(session) = self.sessions.iter_mut().find(|other| other.id == session) {
            session.has_spoken = true;
        }
        // What somebody else says is nothing to go by.
        if self.core.follows(session) {
            self.heard_us = Some(self.clock.now_us());
            if message.channel() == Channel::Main && self.config.protection.latency == Latency::Low {
                self.poll_until_us = self.clock.now_us() + POLL_US_MAX;
            }
            self.note_step(&message);
            self.note_host(&message);
        }
        self.events
            .push_back(SecondaryEvent::Message { session, message });
        self.settle();
    }

    /// Whether a primary may be on the host that it says it is on: that host may run the VM, and the certificates of
    /// both connections are for it.
    fn check_claim(&self, id: SessionId, message: &Message) -> Result<(), LinkError> {
        let Some(session) = self.sessions.iter().find(|session| session.id == id) else {
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
        let Some(place) = self.sessions.iter().position(|session| session.id == id) else {
            return;
        };
        let mut session = self.sessions.remove(place);
        let mut bytes = Vec::new();
        encode(&Message::Refuse(reason_text(reason)), &mut bytes);
        session.main.send(bytes);
        self.events.push_back(SecondaryEvent::PeerClosed {
            session: id,
            reason: reason.to_owned(),
        });
    }

    /// Takes frames up to the next control message of one connection.
    fn receive_from(&mut self, place: usize, heartbeat: bool) -> Result<Option<Message>, LinkError> {
        if !heartbeat && self.disks_are_full() {
            self.sessions[place].main.flush();
            return Ok(None);
        }
        // Taken out, so that the frames can be put where they belong while they lie in the connection's buffer.
        let mut session = self.sessions.remove(place);
        let mut intake = Intake {
            session: session.id,
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
        self.sessions.insert(place, session);
        result.map(Option::flatten)
    }

    /// Where the primary is in a sync, as far as its messages tell.
    pub(super) fn note_step(&mut self, message: &Message) {
        match message {
            Message::Prepare => (self.step, self.paused_ms) = ("copying", None),
            Message::Begin(begin) => (self.step, self.begun_term) = ("sending", begin.term),
            Message::Commit(_) => self.step = "awaiting ack",
            Message::Goodbye(Goodbye::SwitchOver { paused_ms }) => self.paused_ms = Some(*paused_ms),
            // Heartbeats say nothing about it.
            _ => {}
        }
    }

    /// What the primary's wall clock shows, and what the guest's TAPs there take.
    fn note_host(&mut self, message: &Message) {
        let Message::Heartbeat(heartbeat) = message else {
            return;
        };
        self.board.mtus().note_theirs(&heartbeat.mtus);
        if let Some(trouble) = self.clocks.note(wall_clock_ms(), heartbeat.wall_clock_ms) {
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
        self.counters.pages += batch.len() as u64;
        self.counters.wire_bytes += body.len() as u64;
        batch.iter().for_each(|page| standby.write_page(page));
        Ok(())
    }

    /// The sync whose frames this session sends, if they are wanted, and the standby that they are for.
    pub(super) fn staging_for(&mut self, session: SessionId) -> Option<(Epoch, &mut Staging, &Standby)> {
        let (_, epoch) = self.staged.filter(|(staged, _)| *staged == session)?;
        Some((epoch, &mut self.staging, self.berth.standby()?))
    }

    /// A frame of a sync: `body`, or what lies in its room in staging. What is wrong with it makes the sync fail, not the
    /// link.
    fn stage(&mut self, session: SessionId, header: &FrameHeader, body: Option<&[u8]>) {
        let Some((epoch, staging, standby)) = self.staging_for(session) else {
            return;
        };
        let has_page = |gfn| standby.has_page(gfn);
        let checksum = |gfn| standby.page_checksum(gfn);
        let result = match body {
            Some(body) => staging.accept(header, body, has_page, checksum),
            None => staging.accept_received(header, has_page, checksum),
        };
        self.counters.wire_bytes += header.length as u64;
        if let Err(error) = result {
            self.staged = None;
            self.events.push_back(SecondaryEvent::StagingFailed {
                epoch,
                reason: error.to_string(),
            });
        }
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
    /// Pages of a sync are received straight into staging. What else has arrived meanwhile came over this connection, so
    /// it lies before them: their place stays the same, or nobody wants them any more.
    fn room(&mut self, header: &FrameHeader, _: usize) -> Option<&mut [u8]> {
        if header.kind != FrameKind::Pages || self.heartbeat {
            return None;
        }
        let (_, staging, _) = self.side.staging_for(self.session)?;
        // What does not fit is refused once it is there, as all else that is wrong with it.
        staging.room(header).ok()
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
                side.stage(session, header, body);
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
        side.more_is_there |= self.copied_bytes >= COPY_BYTES_MAX;
        // What follows waits in the connection for the next turn, or as long as a queue is full.
        let enough = self.copied_bytes >= COPY_BYTES_MAX || side.disks_are_full();
        Ok(enough.then_some(None))
    }
}
