//! Sessions with a primary: who is accepted, heartbeats, loss.

use crate::faults::{Fault, fault};
use crate::readiness::Readiness;
use crate::record::{Incarnation, TERM_MAX};
use crate::replica::DiskOffer;
use crate::trouble::Trouble;
use crate::wire::{Goodbye, Heartbeat, Hello, Message, PROTOCOL_VERSION, Welcome, reason_text};

use super::{Actions, Held, Secondary, SecondaryAction};
use crate::primary::SessionId;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// `Welcome` is sent.
    Greeted,
    /// The way was proved, too.
    Proved,
    /// The driver builds the standby VM.
    Preparing,
    /// The driver marks the images of the replicated disks.
    Marking,
    /// The first copy is under way; its first sync may begin.
    Copying,
    /// There is a commit of this pair.
    Live,
}

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) primary: Incarnation,
    /// Term of the primary's record, as it said.
    pub(super) term: u64,
    pub(super) stage: Stage,
    pub(super) heard_ms: u64,
    beat_ms: u64,
    beats: u64,
}

/// What a `Hello` means to a secondary that holds a commit.
enum Claim {
    /// The same pair again.
    Resume,
    /// The commit is void: the speaker owns a record that leaves this side out.
    Supersedes,
    /// Somebody who has no business with it.
    Stranger,
}

fn claim(held: &Held, me: &Incarnation, hello: &Hello) -> Claim {
    let same = held.primary == hello.incarnation;
    let is_peer = hello.peer == Some(me.nonce) || fault(Fault::AckFromAnybody);
    if same && hello.term == held.last.term && is_peer {
        return Claim::Resume;
    }
    // A primary that is alone in the term before knows that the pair was never recorded; one in the same term
    // has recorded it with another.
    let never_recorded = same && !is_peer && hello.term <= held.last.term && hello.term + 1 >= held.last.term;
    match never_recorded || hello.term > held.last.term {
        true => Claim::Supersedes,
        false => Claim::Stranger,
    }
}

impl Secondary {
    pub(super) fn session_deadline(&self, session: &Session) -> u64 {
        let silence_ms = match self.held {
            Some(_) => u64::MAX,
            None => session.heard_ms + self.config.timing.suspicion_ms,
        };
        session.beat_ms.min(silence_ms)
    }

    pub(super) fn on_message(&mut self, id: SessionId, message: Message, actions: &mut Actions) {
        let now_ms = self.now_ms;
        let Some(session) = self.session.as_mut().filter(|session| session.id == id) else {
            return match message {
                Message::Hello(hello) => self.on_hello(id, hello, actions),
                _ => close_unknown(id, "it did not begin with a greeting", actions),
            };
        };
        session.heard_ms = now_ms;
        match (session.stage, message) {
            (_, Message::Heartbeat(_)) => {}
            // Once: what is sent back waits here, if it is not taken there.
            (Stage::Greeted, proof @ Message::Proof { .. }) => {
                session.stage = Stage::Proved;
                self.send(proof, actions);
            }
            (Stage::Greeted | Stage::Proved, Message::Prepare) => {
                session.stage = Stage::Preparing;
                actions.push(SecondaryAction::Prepare { session: id });
            }
            (Stage::Copying, Message::CopyDisks(plans)) => {
                session.stage = Stage::Marking;
                actions.push(SecondaryAction::MarkTargets { session: id, plans });
            }
            (Stage::Live, Message::Settled(mark)) => actions.push(SecondaryAction::Settled(mark)),
            (Stage::Copying | Stage::Live, Message::Begin(begin)) => self.on_begin(begin, actions),
            (Stage::Copying | Stage::Live, Message::Commit(commit)) => self.on_commit(commit, actions),
            (_, Message::Goodbye(goodbye)) => self.on_goodbye(goodbye, actions),
            (_, message) => self.unfit(&format!("{:?} came unexpectedly", message.kind()), actions),
        }
    }

    fn on_hello(&mut self, id: SessionId, hello: Hello, actions: &mut Actions) {
        if let Err(reason) = self.admit(&hello) {
            let message = Message::Refuse(reason_text(&*reason));
            actions.push(SecondaryAction::Send { session: id, message });
            actions.push(SecondaryAction::CloseSession { session: id, reason });
            return;
        }
        // A new session begins only after the old one is closed for good, with all that was unchecked in it.
        self.close("the primary has connected anew", actions);
        let resumes = match &self.held {
            None => false,
            Some(held) => matches!(claim(held, &self.config.me, &hello), Claim::Resume),
        };
        if self.held.is_some() && !resumes {
            self.forget("the primary's record leaves this side out", actions);
        }
        (self.takeover, self.lost_since_ms) = (None, None);
        self.greeted = Some((hello.incarnation.nonce, hello.session));
        self.session = Some(Session {
            id,
            primary: hello.incarnation,
            term: hello.term,
            stage: if resumes { Stage::Live } else { Stage::Greeted },
            heard_ms: self.now_ms,
            beat_ms: self.now_ms + self.config.timing.heartbeat_ms,
            beats: 0,
        });
        let welcome = Welcome {
            incarnation: self.config.me.clone(),
            last: self.holds(),
        };
        self.send(Message::Welcome(welcome), actions);
        if resumes {
            self.tell_flushed(actions);
            // It may not have heard that this side was unfit.
            self.assume_pair(actions);
        }
    }

    /// Whether this primary may have a session now; if not, why. Changes nothing.
    fn admit(&self, hello: &Hello) -> Result<(), String> {
        if hello.protocol != PROTOCOL_VERSION {
            return Err(format!(
                "protocol version {} is not {PROTOCOL_VERSION}; run the same version of Kemari on both hosts",
                hello.protocol
            ));
        }
        if hello.vm != self.config.vm {
            return Err(format!(
                "this secondary is for VM {}, not {}",
                self.config.vm, hello.vm
            ));
        }
        if hello.config_digest != self.config.config_digest {
            return Err("the configurations differ; copy the primary's file to this host".to_owned());
        }
        if hello.term >= TERM_MAX {
            return Err(format!("no VM has come to term {}", hello.term));
        }
        if hello.incarnation == self.config.me {
            return Err("a secondary cannot follow itself".to_owned());
        }
        // Its connection was given up before it was heard; what it says of the pair may be long past.
        let newest = self
            .greeted
            .filter(|(nonce, _)| *nonce == hello.incarnation.nonce);
        if newest.is_some_and(|(_, session)| hello.session < session) && !fault(Fault::HearOvertaken) {
            return Err("a newer session has overtaken this one".to_owned());
        }
        if let Some(takeover) = self
            .takeover
            .as_ref()
            .filter(|takeover| !takeover.contest.can_cancel())
        {
            return Err(format!("this secondary is taking over: {}", takeover.waiting()));
        }
        if let Some(session) = self
            .session
            .as_ref()
            .filter(|session| session.primary != hello.incarnation)
        {
            return Err(format!("this secondary follows {}", session.primary));
        }
        match &self.held {
            Some(held) if matches!(claim(held, &self.config.me, hello), Claim::Stranger) => Err(format!(
                "this secondary holds term {} of {}, which term {} does not replace",
                held.last.term, held.primary, hello.term
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn on_prepared(
        &mut self,
        id: SessionId,
        result: Result<Vec<DiskOffer>, String>,
        actions: &mut Actions,
    ) {
        let Some(session) = self.session.as_mut().filter(|session| session.id == id) else {
            return;
        };
        if session.stage != Stage::Preparing {
            return;
        }
        match result {
            Ok(disks) => {
                session.stage = Stage::Copying;
                let staging_pages_max = self.config.staging_pages_max;
                self.send(
                    Message::Ready {
                        staging_pages_max,
                        disks,
                    },
                    actions,
                );
            }
            Err(reason) => self.unfit(&reason, actions),
        }
    }

    fn on_goodbye(&mut self, goodbye: Goodbye, actions: &mut Actions) {
        self.assume_end(&goodbye, actions);
        let spares_fence = goodbye.spares_fence();
        let reason = match goodbye {
            Goodbye::Stopped => "the primary has stopped the VM".to_owned(),
            Goodbye::Alone(reason) => format!("the primary goes on alone: {reason}"),
            Goodbye::HandOver(reason) | Goodbye::Closed(reason) => {
                format!("the primary's host fails: {reason}")
            }
            Goodbye::Unfit(reason) => format!("the primary cannot go on: {reason}"),
            Goodbye::SwitchOver { .. } => "the operator switches over".to_owned(),
        };
        self.close(&reason, actions);
        // Whatever it said, the record says what is so.
        self.primary_is_gone(&reason, actions);
        if spares_fence {
            self.need_no_fence();
        }
    }

    /// Heartbeats, and silence where nothing is held.
    pub(super) fn check_session(&mut self, actions: &mut Actions) {
        let (now_ms, timing) = (self.now_ms, &self.config.timing);
        let epoch = self.held.as_ref().map_or(0, |held| held.last.epoch);
        let (trouble, noted) = (self.trouble.as_ref(), self.readiness.as_ref());
        let Some(session) = &mut self.session else { return };
        if now_ms >= session.beat_ms {
            session.beat_ms = now_ms + timing.heartbeat_ms;
            session.beats += 1;
            let message = Message::Heartbeat(Heartbeat {
                sequence: session.beats,
                epoch,
                trouble: trouble.map(Trouble::shortened),
                readiness: noted.map(|(found, at_ms)| found.aged(now_ms.saturating_sub(*at_ms))),
                wall_clock_ms: 0,
                mtus: Vec::new(),
            });
            actions.push(SecondaryAction::Send {
                session: session.id,
                message,
            });
        }
        if self.held.is_none() && now_ms >= session.heard_ms + timing.suspicion_ms {
            self.close("the primary is silent", actions);
        }
    }

    /// The primary learns it at once: it may be in trouble itself.
    pub(super) fn on_health(&mut self, trouble: Option<Trouble>) {
        self.trouble = trouble;
        if let Some(session) = &mut self.session {
            session.beat_ms = self.now_ms;
        }
    }

    /// A change is told at once, as one of [`Self::on_health`].
    pub(super) fn on_readiness(&mut self, reasons: Vec<String>) {
        let found = Readiness::found(reasons);
        let before = self.readiness.as_ref().map(|(before, _)| &before.reasons);
        if before != Some(&found.reasons)
            && let Some(session) = &mut self.session
        {
            session.beat_ms = self.now_ms;
        }
        self.readiness = Some((found, self.now_ms));
    }

    pub(super) fn on_closed(&mut self, id: SessionId, reason: &str, actions: &mut Actions) {
        if let Some(session) = self.session.take_if(|session| session.id == id) {
            self.session_ended(&session, reason, actions);
        }
    }

    /// Closes the session from this side.
    pub(super) fn close(&mut self, reason: &str, actions: &mut Actions) {
        let Some(session) = self.session.take() else {
            return;
        };
        actions.push(SecondaryAction::CloseSession {
            session: session.id,
            reason: reason_text(reason),
        });
        self.session_ended(&session, reason, actions);
    }

    /// What the primary sends cannot be taken: it must go on without this side. The last commit stays.
    pub(super) fn unfit(&mut self, reason: &str, actions: &mut Actions) {
        self.send(Message::Goodbye(Goodbye::Unfit(reason_text(reason))), actions);
        if self.session.is_some() {
            self.assume_unfit(actions);
        }
        self.close(reason, actions);
    }

    fn session_ended(&mut self, session: &Session, reason: &str, actions: &mut Actions) {
        actions.push(SecondaryAction::Report(format!(
            "the session with {} ended: {reason}",
            session.primary
        )));
        self.discard_staging(actions);
        if self.held.is_some() {
            self.lost_since_ms = self.lost_since_ms.or(Some(self.now_ms));
        } else if !matches!(session.stage, Stage::Greeted | Stage::Proved) {
            self.forget("the first copy was not finished", actions);
        }
    }

    pub(super) fn send(&self, message: Message, actions: &mut Actions) {
        if let Some(session) = &self.session {
            actions.push(SecondaryAction::Send {
                session: session.id,
                message,
            });
        }
    }
}

fn close_unknown(session: SessionId, reason: &str, actions: &mut Actions) {
    actions.push(SecondaryAction::CloseSession {
        session,
        reason: reason.to_owned(),
    });
}
