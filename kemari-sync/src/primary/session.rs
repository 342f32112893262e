//! Sessions with the secondary: handshake, heartbeats, first copy, loss.

use crate::consent::ask::Asker;
use crate::faults::{Fault, fault};
use crate::readiness::Readiness;
use crate::record::{Epoch, Incarnation, Record};
use crate::trouble::Trouble;
use crate::wire::{
    CommitId, Goodbye, Heartbeat, Hello, Message, PROOF_BYTES, PROTOCOL_VERSION, Welcome, reason_text,
};

use super::disks::DiskStep;
use super::pairing::{PASSED, Sight};
use super::{Actions, Primary, PrimaryAction, SessionId, Standing};

/// A confirmation older than this, in milliseconds, calls for another round of the copy before the first
/// sync.
const CONFIRMATION_FRESH_MS: u64 = 100;

/// How far a session has come.
#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) enum Stage {
    /// `Hello` is sent.
    Greeting,
    /// Protection is refused while the arbiter does not answer: it is read before the first page is sent.
    Verifying(Asker),
    /// `Proof` is sent: what holds the guest's output must be able to carry it.
    Proving { since_ms: u64 },
    /// `Prepare` is sent.
    Preparing,
    /// The replicated disks are being copied.
    Disks(DiskStep),
    /// The first copy of memory is under way.
    Copying { round: u32 },
    /// The copy has converged; the arbiter is read once more before output is held.
    Confirming { asker: Asker, round: u32, since_ms: u64 },
    /// Syncs may be sent.
    Live,
}

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) stage: Stage,
    pub(super) peer: Option<Incarnation>,
    pub(super) heard_ms: u64,
    beat_ms: u64,
    beats: u64,
}

/// What the peer has said of itself. That of a pair outlives a session: it is no other peer in the next one,
/// and how old it is, is known.
#[cfg_attr(feature = "sim", derive(Clone, Hash))]
#[derive(Default)]
pub(super) struct PeerWord {
    /// What keeps its host from running the VM well.
    trouble: Option<Trouble>,
    /// How ready it is, and when that came.
    readiness: Option<(Readiness, u64)>,
}

impl PeerWord {
    fn note(&mut self, heartbeat: Heartbeat, now_ms: u64) {
        self.trouble = heartbeat.trouble;
        if let Some(Readiness { reasons, age_ms }) = heartbeat.readiness {
            // What comes from outside is bounded here, too.
            self.readiness = Some((Readiness::found(reasons).aged(age_ms), now_ms));
        }
    }
}

impl Primary {
    /// Whether the secondary of a recorded pair could take over at `now_ms`, as far as it has said; `None`:
    /// there is no such pair.
    pub(super) fn peer_readiness(&self, now_ms: u64) -> Option<Readiness> {
        let PeerWord { trouble, readiness } = &self.peer_word;
        self.is_joined()
            .then(|| Readiness::judged(readiness.as_ref(), trouble.as_ref(), now_ms))
    }

    /// What keeps the secondary of a recorded pair from taking over at `now_ms`, as a sentence. That it has
    /// not said so, or not lately, is such a thing. `None`: nothing does, or there is no such pair.
    pub fn peer_lacks(&self, now_ms: u64) -> Option<String> {
        self.peer_readiness(now_ms)?.reasons.into_iter().next()
    }

    pub(super) fn is_live(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| matches!(session.stage, Stage::Live))
    }

    /// Whether the peer of the recorded pair is at the other end.
    pub(super) fn is_joined(&self) -> bool {
        matches!(self.standing, Standing::Paired) && self.is_live()
    }

    pub(super) fn session_deadline(&self, session: &Session) -> u64 {
        // Within a pair, silence is a reason to part: see `losses`.
        let silence_ms = match self.is_joined() {
            true => u64::MAX,
            false => session.heard_ms + self.config.timing.suspicion_ms,
        };
        let asks = match &session.stage {
            Stage::Verifying(asker) | Stage::Confirming { asker, .. } => asker.deadline(),
            _ => None,
        };
        let proof_ms = self.proof_deadline(session).unwrap_or(u64::MAX);
        session
            .beat_ms
            .min(silence_ms)
            .min(asks.unwrap_or(u64::MAX))
            .min(proof_ms)
    }

    /// When the proof counts as failed.
    fn proof_deadline(&self, session: &Session) -> Option<u64> {
        match session.stage {
            Stage::Proving { since_ms } => Some(since_ms + self.config.timing.progress_ms),
            _ => None,
        }
    }

    pub(super) fn on_connected(&mut self, id: SessionId, actions: &mut Actions) {
        if !self.wants_peer() {
            let reason = "no session is wanted now".to_owned();
            actions.push(PrimaryAction::CloseSession { session: id, reason });
            return;
        }
        self.sessions_begun += 1;
        if !matches!(self.standing, Standing::Paired) {
            self.peer_word = PeerWord::default();
        }
        self.session = Some(Session {
            id,
            stage: Stage::Greeting,
            peer: None,
            heard_ms: self.now_ms,
            beat_ms: self.now_ms + self.config.timing.heartbeat_ms,
            beats: 0,
        });
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            vm: self.record.vm.clone(),
            config_digest: self.config.config_digest,
            incarnation: self.config.me.clone(),
            session: self.sessions_begun,
            term: self.record.term,
            peer: self.record.peer.as_ref().map(|peer| peer.nonce),
            last: self.acked,
        };
        self.send(Message::Hello(hello), actions);
    }

    pub(super) fn on_closed(&mut self, id: SessionId, reason: &str, actions: &mut Actions) {
        if let Some(session) = self.session.take_if(|session| session.id == id) {
            self.session_ended(&session, reason, actions);
        }
    }

    pub(super) fn on_message(&mut self, id: SessionId, message: Message, actions: &mut Actions) {
        let now_ms = self.now_ms;
        let Some(session) = self.session.as_mut().filter(|session| session.id == id) else {
            return;
        };
        session.heard_ms = now_ms;
        match (&session.stage, message) {
            (_, Message::Heartbeat(heartbeat)) => self.peer_word.note(heartbeat, now_ms),
            (Stage::Greeting, Message::Welcome(welcome)) => self.on_welcome(welcome, actions),
            (Stage::Greeting, Message::Refuse(reason)) => {
                self.close(&format!("the secondary refused: {reason}"), actions);
            }
            (Stage::Proving { .. }, Message::Proof { bytes: PROOF_BYTES }) => self.prepare(actions),
            (
                Stage::Preparing,
                Message::Ready {
                    staging_pages_max,
                    disks,
                },
            ) => {
                self.staging_pages_max = staging_pages_max;
                self.plan_disks(&disks, actions);
            }
            (Stage::Disks(_), Message::DisksReady) => self.on_disks_ready(actions),
            (Stage::Live, Message::Flushed(mark)) => actions.push(PrimaryAction::PeerFlushed(mark)),
            (Stage::Live, Message::Ack(commit)) => self.on_ack(commit, false, actions),
            (Stage::Live, Message::LetGo(commit)) => self.on_ack(commit, true, actions),
            (_, Message::Goodbye(goodbye)) => self.on_goodbye(goodbye, actions),
            (_, message) => self.close(&format!("{:?} came unexpectedly", message.kind()), actions),
        }
    }

    fn on_welcome(&mut self, welcome: Welcome, actions: &mut Actions) {
        let Some(session) = &mut self.session else { return };
        session.peer = Some(welcome.incarnation.clone());
        if matches!(self.standing, Standing::Paired) {
            self.on_rejoin(welcome, actions);
        } else {
            session.stage = Stage::Verifying(Asker::read(self.now_ms));
        }
    }

    /// The pair has a session again: what the peer holds decides how the sync under way goes on.
    fn on_rejoin(&mut self, welcome: Welcome, actions: &mut Actions) {
        if fault(Fault::AckFromAnybody) && welcome.last.is_some() {
            return self.rejoin(self.sync.as_ref().map_or(0, |sync| sync.epoch), actions);
        }
        let is_third = self
            .record
            .peer
            .as_ref()
            .is_some_and(|peer| peer.host != welcome.incarnation.host);
        if fault(Fault::AckFromThird) && is_third {
            return self.rejoin(self.sync.as_ref().map_or(0, |sync| sync.epoch), actions);
        }
        let same = self.record.peer.as_ref() == Some(&welcome.incarnation);
        let Some(CommitId { term, epoch }) = welcome.last.filter(|_| same) else {
            return self.secondary_is_gone("the secondary was restarted and holds nothing", actions);
        };
        let under_way = self
            .sync
            .as_ref()
            .filter(|sync| sync.was_sent())
            .map(|sync| sync.epoch);
        if term != self.record.term || (Some(epoch) != self.acked && Some(epoch) != under_way) {
            return self.secondary_is_gone("the secondary holds another state", actions);
        }
        self.rejoin(epoch, actions);
    }

    fn rejoin(&mut self, epoch: Epoch, actions: &mut Actions) {
        if let Some(session) = &mut self.session {
            session.stage = Stage::Live;
        }
        self.lost_since_ms = None;
        self.continue_sync(epoch, actions);
    }

    pub(super) fn on_copy_round(&mut self, id: SessionId, dirty_pages: u64, actions: &mut Actions) {
        let (copy, now_ms) = (self.config.copy, self.now_ms);
        let Some(session) = self.session.as_mut().filter(|session| session.id == id) else {
            return;
        };
        let Stage::Copying { round } = session.stage else {
            return;
        };
        actions.push(PrimaryAction::Progress { round, dirty_pages });
        let last_round = round >= copy.rounds_max;
        if dirty_pages <= copy.converged_pages || (last_round && dirty_pages <= self.staging_pages_max) {
            session.stage = Stage::Confirming {
                asker: Asker::read(now_ms),
                round,
                since_ms: now_ms,
            };
        } else if last_round {
            self.protection_wanted = false;
            let text = format!(
                "the first copy does not converge: {dirty_pages} pages are dirty after {round} rounds; \
                 protection is given up until it is asked for again"
            );
            self.close(&text, actions);
        } else {
            session.stage = Stage::Copying { round: round + 1 };
            actions.push(PrimaryAction::CopyRound {
                session: id,
                first: false,
            });
        }
    }

    /// The arbiter was read on behalf of the session.
    pub(super) fn on_record_read(&mut self, found: Option<&Record>, actions: &mut Actions) {
        match self.sight(found) {
            Sight::Mine => {}
            Sight::Passed => return self.halt(PASSED, actions),
            // The VM goes on: it is alone, and needs nobody's word for that.
            Sight::Doubt(doubt) => {
                let text = format!(
                    "{doubt}; the VM is not protected; if nobody else runs it, `kemari adopt-record`, said \
                     here, gives it its record back"
                );
                return self.close(&text, actions);
            }
        }
        let now_ms = self.now_ms;
        let Some(session) = &mut self.session else { return };
        match session.stage {
            Stage::Verifying(_) if fault(Fault::HoldUnproved) => self.prepare(actions),
            Stage::Verifying(_) => {
                session.stage = Stage::Proving { since_ms: now_ms };
                self.send(Message::Proof { bytes: PROOF_BYTES }, actions);
            }
            Stage::Confirming { round, since_ms, .. } if now_ms > since_ms + CONFIRMATION_FRESH_MS => {
                session.stage = Stage::Copying { round };
                actions.push(PrimaryAction::CopyRound {
                    session: session.id,
                    first: false,
                });
            }
            Stage::Confirming { .. } => {
                session.stage = Stage::Live;
                self.begin_pairing(actions);
            }
            _ => {}
        }
    }

    fn prepare(&mut self, actions: &mut Actions) {
        if let Some(session) = &mut self.session {
            session.stage = Stage::Preparing;
        }
        self.send(Message::Prepare, actions);
    }

    fn on_goodbye(&mut self, goodbye: Goodbye, actions: &mut Actions) {
        let is_unfit = matches!(goodbye, Goodbye::Unfit(_));
        if matches!(goodbye, Goodbye::Alone(_)) {
            self.assume_successor(actions);
        }
        let reason = match goodbye {
            Goodbye::Unfit(reason) => format!("the secondary is unfit: {reason}"),
            other => format!("the secondary said {other:?}"),
        };
        match self.standing {
            Standing::Paired if is_unfit => self.secondary_is_unfit(&reason, actions),
            Standing::Paired => self.secondary_is_gone(&reason, actions),
            _ => self.close(&reason, actions),
        }
    }

    /// Says that this side lives, when that is due.
    pub(super) fn beat(&mut self, actions: &mut Actions) {
        let (now_ms, epoch) = (self.now_ms, self.acked.unwrap_or(0));
        let trouble = self.trouble.as_ref();
        let Some(session) = &mut self.session else { return };
        if now_ms >= session.beat_ms {
            session.beat_ms = now_ms + self.config.timing.heartbeat_ms;
            if !matches!(session.stage, Stage::Greeting) {
                session.beats += 1;
                let message = Message::Heartbeat(Heartbeat {
                    sequence: session.beats,
                    epoch,
                    trouble: trouble.map(Trouble::shortened),
                    readiness: None,
                    wall_clock_ms: 0,
                    mtus: Vec::new(),
                });
                actions.push(PrimaryAction::Send {
                    session: session.id,
                    message,
                });
            }
        }
    }

    /// When that is.
    pub(super) fn beat_deadline(&self) -> u64 {
        self.session.as_ref().map_or(u64::MAX, |session| session.beat_ms)
    }

    /// Heartbeats, and silence where no pair is at stake.
    pub(super) fn check_session(&mut self, actions: &mut Actions) {
        self.beat(actions);
        let (now_ms, timing, is_joined) = (self.now_ms, &self.config.timing, self.is_joined());
        let Some(session) = &self.session else { return };
        let is_silent = now_ms >= session.heard_ms + timing.suspicion_ms;
        let is_stuck = match &self.standing {
            Standing::Pairing(pairing) if pairing.asker.is_none() => {
                self.pairing_deadline().is_some_and(|due_ms| now_ms >= due_ms)
            }
            _ => false,
        };
        let proof_ms = self
            .session
            .as_ref()
            .and_then(|session| self.proof_deadline(session));
        let is_unproved = proof_ms.is_some_and(|due_ms| now_ms >= due_ms);
        if is_silent && !is_joined {
            self.close("the secondary is silent", actions);
        } else if is_unproved {
            let text = format!(
                "{PROOF_BYTES} bytes did not go there and back within {} ms, while small messages arrive: \
                 something on the way drops large packets; give the interfaces of both hosts and all \
                 switches between them one MTU",
                self.config.timing.progress_ms
            );
            self.close(&text, actions);
        } else if is_stuck {
            self.close("the secondary did not commit the first sync in time", actions);
        }
    }

    /// Closes the session from this side.
    pub(super) fn close(&mut self, reason: &str, actions: &mut Actions) {
        self.tell_unpaired(reason, actions);
        let Some(session) = self.session.take() else {
            return;
        };
        actions.push(PrimaryAction::CloseSession {
            session: session.id,
            reason: reason_text(reason),
        });
        self.session_ended(&session, reason, actions);
    }

    fn session_ended(&mut self, session: &Session, reason: &str, actions: &mut Actions) {
        self.ahead = None;
        actions.push(PrimaryAction::Report(format!(
            "the session with the secondary ended: {reason}"
        )));
        match &self.standing {
            Standing::Paired => self.lost_since_ms = self.lost_since_ms.or(Some(self.now_ms)),
            Standing::Pairing(pairing) if pairing.asker.is_none() => self.abandon_pairing(reason, actions),
            // Whoever refuses may take it any moment; whoever began, and came no further, will not soon.
            Standing::Alone if !matches!(session.stage, Stage::Greeting | Stage::Live) => {
                self.note_futile(reason);
            }
            _ => {}
        }
    }

    /// Begins the first copy of memory.
    pub(super) fn begin_copy(&mut self, actions: &mut Actions) {
        if let Some(session) = &mut self.session {
            session.stage = Stage::Copying { round: 1 };
            actions.push(PrimaryAction::CopyRound {
                session: session.id,
                first: true,
            });
        }
    }

    pub(super) fn send(&self, message: Message, actions: &mut Actions) {
        if let Some(session) = &self.session {
            actions.push(PrimaryAction::Send {
                session: session.id,
                message,
            });
        }
    }
}
