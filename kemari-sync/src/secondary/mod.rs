//! The secondary: it holds the last committed state of a VM that another host executes, and goes on from it.
//!
//! Handshake and first copy are in `session`, the staging, check and commit of a sync in `sync`, the way to
//! run the VM, or to lose it, in `takeover`.

mod assume;
mod disks;
mod invariants;
mod restoration;
mod session;
mod sync;
mod takeover;
mod types;

pub use restoration::{Restoration, RestorePart};
pub use types::{SecondaryAction, SecondaryConfig, SecondaryEvent};

use crate::consent::AskId;
use crate::invariants::are_asserted;
use crate::readiness::Readiness;
use crate::record::{Epoch, Incarnation, Term};
use crate::status::{Protection, Role, Status};
#[cfg(feature = "sim")]
use crate::timing::Timing;
use crate::trouble::Trouble;
use crate::wire::{CommitId, DiskMark};

use session::{Session, Stage};
use sync::Staging;
use takeover::Takeover;

type Actions = Vec<SecondaryAction>;

/// The committed state, and with it, in memory only, the right to ask for the VM.
#[cfg_attr(feature = "sim", derive(Clone, Hash))]
struct Held {
    primary: Incarnation,
    store: u128,
    last: CommitId,
    /// The last commit is a stop: the guest will not run from it.
    stop: bool,
    /// The commit that the driver still works on.
    applying: Option<Epoch>,
}

/// The secondary's state machine. Waits for a primary, then follows it; driven by [`Self::handle`].
#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub struct Secondary {
    config: SecondaryConfig,
    now_ms: u64,
    session: Option<Session>,
    /// Nonce of the last primary that had a session, and which of its sessions that was.
    greeted: Option<(u128, u64)>,
    held: Option<Held>,
    /// The sync that is being received or checked.
    staging: Option<Staging>,
    /// Since when there is a commit, but no session.
    lost_since_ms: Option<u64>,
    takeover: Option<Takeover>,
    /// Of each replicated disk, the last output that is durable here.
    flushed: Vec<DiskMark>,
    /// Why an image here cannot be written, until what is held is given up for it.
    replica_failure: Option<String>,
    next_ask: AskId,
    /// What keeps this host from running the VM well.
    trouble: Option<Trouble>,
    /// What it has found out about its readiness, and when.
    readiness: Option<(Readiness, u64)>,
    over: Option<String>,
    shown: (Protection, u64),
}

impl Secondary {
    /// Holds nothing, and waits for a primary.
    pub fn new(config: SecondaryConfig, now_ms: u64) -> Self {
        Self {
            config,
            now_ms,
            session: None,
            greeted: None,
            held: None,
            staging: None,
            lost_since_ms: None,
            takeover: None,
            flushed: Vec::new(),
            replica_failure: None,
            next_ask: 1,
            trouble: None,
            readiness: None,
            over: None,
            shown: (Protection::Unprotected, now_ms),
        }
    }

    /// For the exploration: its clock stands still, and what changes is the length of the time-outs.
    /// Questions are numbered from `next_ask` on.
    #[cfg(feature = "sim")]
    pub(crate) fn set_time_outs(&mut self, timing: &Timing, next_ask: AskId) {
        self.config.timing = timing.clone();
        self.next_ask = next_ask;
    }

    /// Takes one event at a time of a monotonic clock in milliseconds; appends what is to be done.
    pub fn handle(&mut self, now_ms: u64, event: SecondaryEvent, actions: &mut Actions) {
        let before = self.holds();
        self.take(now_ms, event, actions);
        if are_asserted() {
            self.assert_invariants(before);
        }
    }

    fn take(&mut self, now_ms: u64, event: SecondaryEvent, actions: &mut Actions) {
        self.advance_clock(now_ms);
        if self.is_over() {
            return;
        }
        self.dispatch(event, actions);
        self.check_replica(actions);
        self.check_session(actions);
        self.check_takeover(actions);
        self.poll_arbiter(actions);
        self.note_protection();
    }

    fn dispatch(&mut self, event: SecondaryEvent, actions: &mut Actions) {
        match event {
            SecondaryEvent::Tick => {}
            SecondaryEvent::PeerClosed { session, reason } => self.on_closed(session, &reason, actions),
            SecondaryEvent::Message { session, message } => self.on_message(session, message, actions),
            SecondaryEvent::Prepared { session, result } => self.on_prepared(session, result, actions),
            SecondaryEvent::TargetsMarked { session, result } => {
                self.on_targets_marked(session, result, actions);
            }
            SecondaryEvent::ReplicaFailed { reason } => self.on_replica_failed(reason),
            // As with an image that is no good.
            SecondaryEvent::StateRefused { reason } => self.on_replica_failed(reason),
            SecondaryEvent::DiskFlushed(mark) => self.on_disk_flushed(mark, actions),
            SecondaryEvent::StagingFailed { epoch, reason } => {
                self.on_staging_failed(epoch, &reason, actions)
            }
            SecondaryEvent::Checked { epoch, result } => self.on_checked(epoch, result, actions),
            SecondaryEvent::Applied { epoch } => self.on_applied(epoch, actions),
            SecondaryEvent::Arbiter { ask, answer } => self.on_answer(ask, &answer, actions),
            SecondaryEvent::Fenced { result } => self.on_fenced(result, actions),
            SecondaryEvent::Restored { result } => self.on_restored(result, actions),
            SecondaryEvent::Health { trouble } => self.on_health(trouble),
            SecondaryEvent::Readiness { reasons } => self.on_readiness(reasons),
            SecondaryEvent::OperatorTakeover => self.on_operator_takeover(actions),
            SecondaryEvent::OperatorLeave => self.on_operator_leave(actions),
        }
    }

    /// Whether it ran the VM or exited: no event does anything any more.
    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// For the exploration: the last session that this primary had here.
    #[cfg(feature = "sim")]
    pub(crate) fn last_session_of(&self, nonce: u128) -> Option<u64> {
        self.greeted
            .filter(|(greeted, _)| *greeted == nonce)
            .map(|(_, session)| session)
    }

    /// For the exploration: whether it has begun to ask for the VM.
    #[cfg(feature = "sim")]
    pub(crate) fn is_asking(&self) -> bool {
        self.takeover.is_some()
    }

    /// The term in which a takeover that is under way has won the VM.
    pub fn won_term(&self) -> Option<u64> {
        self.takeover.as_ref()?.contest.won_term()
    }

    /// What it holds: the answer to a primary's cold boot that asks for this side's word.
    pub fn holds(&self) -> Option<CommitId> {
        self.held.as_ref().map(|held| held.last)
    }

    /// The record that it would ask from: its store, and the term of the last commit.
    pub fn lives_under(&self) -> Option<(u128, Term)> {
        self.held.as_ref().map(|held| (held.store, held.last.term))
    }

    /// The primary that it follows, or whose state it holds.
    pub fn primary(&self) -> Option<&Incarnation> {
        let followed = self.session.as_ref().map(|session| &session.primary);
        followed.or(self.held.as_ref().map(|held| &held.primary))
    }

    /// Whether this session is the primary's: it was greeted, and has not ended.
    pub fn follows(&self, id: crate::primary::SessionId) -> bool {
        self.session.as_ref().is_some_and(|session| session.id == id)
    }

    /// When the next [`SecondaryEvent::Tick`] is due.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.is_over() {
            return None;
        }
        let session = self
            .session
            .as_ref()
            .map(|session| self.session_deadline(session));
        let takeover = match &self.takeover {
            Some(takeover) => takeover.deadline(),
            None => self.loss().map(|(due_ms, _)| due_ms),
        };
        [session, takeover].into_iter().flatten().min()
    }

    /// A gap in the calls means that this process stood still: nothing could be heard meanwhile, and no
    /// silence is proved. The peer gets its full time again.
    fn advance_clock(&mut self, now_ms: u64) {
        let now_ms = now_ms.max(self.now_ms);
        if now_ms - self.now_ms > self.config.timing.suspicion_ms {
            if let Some(session) = &mut self.session {
                session.heard_ms = now_ms;
            }
            self.lost_since_ms = self.lost_since_ms.map(|_| now_ms);
        }
        self.now_ms = now_ms;
    }

    fn poll_arbiter(&mut self, actions: &mut Actions) {
        if self.is_over() {
            return;
        }
        if let Some(takeover) = &mut self.takeover
            && let Some((ask, request)) = takeover.contest.poll(self.now_ms, &mut self.next_ask)
        {
            actions.push(SecondaryAction::Ask { ask, request });
        }
    }

    /// All that is held is void: the right to take over with it.
    fn forget(&mut self, reason: &str, actions: &mut Actions) {
        self.discard_staging(actions);
        (self.held, self.lost_since_ms, self.takeover) = (None, None, None);
        self.flushed.clear();
        self.replica_failure = None;
        actions.push(SecondaryAction::Forget {
            reason: reason.to_owned(),
        });
    }

    fn note_protection(&mut self) {
        let protection = self.protection();
        if protection != self.shown.0 {
            self.shown = (protection, self.now_ms);
        }
    }

    fn protection(&self) -> Protection {
        if self.is_over() {
            return Protection::Over;
        }
        if self.held.is_some() {
            let is_followed = self.takeover.is_none() && self.session.is_some();
            return if is_followed {
                Protection::Protected
            } else {
                Protection::Deciding
            };
        }
        match &self.session {
            Some(_) => Protection::Copying,
            None => Protection::Unprotected,
        }
    }

    /// A snapshot for humans.
    pub fn status(&self, now_ms: u64) -> Status {
        Status {
            role: Role::Secondary,
            term: self.holds().map_or(0, |last| last.term),
            epoch: self.holds().map_or(0, |last| last.epoch),
            protection: self.protection(),
            for_ms: now_ms.saturating_sub(self.shown.1),
            readiness: matches!(self.protection(), Protection::Protected)
                .then(|| Readiness::judged(self.readiness.as_ref(), self.trouble.as_ref(), now_ms)),
            waiting: self.waiting(),
        }
    }

    fn waiting(&self) -> Option<String> {
        if let Some(reason) = &self.over {
            return Some(format!("nothing: {reason}"));
        }
        if let Some(takeover) = &self.takeover {
            return Some(takeover.waiting());
        }
        match &self.session {
            None if self.held.is_some() => Some("the link to the primary is broken".to_owned()),
            None => Some("waiting for a primary".to_owned()),
            Some(session) if matches!(session.stage, Stage::Preparing) => {
                Some("making the standby VM ready".to_owned())
            }
            Some(session) if matches!(session.stage, Stage::Marking) => {
                Some("making the disk images ready".to_owned())
            }
            Some(_) => self
                .trouble
                .as_ref()
                .map(|trouble| format!("this host could not run the VM well: {trouble}")),
        }
    }
}
