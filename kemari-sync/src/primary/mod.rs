//! The primary: it executes the VM, and lets output leave only with consent.
//!
//! The way of a sync is in `sync`, the way from alone to a pair in `session` (handshake, first copy) and
//! `pairing` (first sync, record), the way back to alone, or to the end, in `parting`, the planned change of
//! roles in `switchover`, a host that lives and is in trouble in `health`, how it gives the VM away in
//! `hand_over`, a record that was lost under a living VM in `adoption`.

mod adoption;
mod assume;
mod backoff;
mod disks;
mod hand_over;
mod health;
mod invariants;
mod pairing;
mod parting;
mod session;
mod show;
mod switchover;
mod sync;
mod types;

pub use types::{
    CAPTURE_FAILURES_MAX, CopyLimits, Mode, OnSecondaryLoss, Opening, Pace, PrimaryAction, PrimaryConfig,
    PrimaryEvent, Reign, SessionId,
};

use crate::consent::AskId;
use crate::invariants::are_asserted;
use crate::record::{Epoch, Record};
use crate::replica::Source;
use crate::status::{Protection, Role, Status};
#[cfg(feature = "sim")]
use crate::timing::Timing;
use crate::trouble::Trouble;

use adoption::Adoption;
use backoff::Backoff;
use hand_over::HandOver;
use pairing::Pairing;
use parting::{Parting, Stop};
use session::{PeerWord, Session, Stage};
use switchover::Switchover;
use sync::Sync;

type Actions = Vec<PrimaryAction>;

/// Where the right to release comes from.
// There is one: a box would save nothing.
#[expect(clippy::large_enum_variant)]
#[cfg_attr(feature = "sim", derive(Clone, Hash))]
enum Standing {
    /// The record names nobody else: the gate is open.
    Alone,
    /// The first sync of a pair to be: the right to act alone is suspended, acks do not count yet.
    Pairing(Pairing),
    /// The record names the peer: its acks are consent.
    Paired,
    /// Halted or exited.
    Over(String),
}

/// The primary's state machine. Made with the record that won it the VM; driven by [`Self::handle`].
#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub struct Primary {
    config: PrimaryConfig,
    now_ms: u64,
    /// The last record that is certainly this side's own.
    record: Record,
    standing: Standing,
    session: Option<Session>,
    sessions_begun: u64,
    peer_word: PeerWord,
    /// Since when the pair has no session.
    lost_since_ms: Option<u64>,
    /// The way out of the pair, or to the record's end.
    parting: Option<Parting>,
    /// The record is being given back to the arbiter.
    adoption: Option<Adoption>,
    /// The one sync that is under way.
    sync: Option<Sync>,
    /// The sync to come or under way, if pages of it were sent in this session before it was captured.
    ahead: Option<Epoch>,
    /// The last sync that the peer of this pair has committed.
    acked: Option<Epoch>,
    next_epoch: Epoch,
    /// What the secondary of this pair, or of the pair to be, can stage. It outlives a session.
    staging_pages_max: u64,
    output_pending: bool,
    /// More pages are dirty than a sync should carry.
    dirty_limit: bool,
    /// See [`PrimaryEvent::GuestWaits`].
    guest_waits: bool,
    last_capture_ms: u64,
    /// Until then the last ack allows to say that the VM is here.
    shows_until_ms: u64,
    capture_failures: u32,
    paused: bool,
    protection_wanted: bool,
    backoff: Backoff,
    stop: Option<Stop>,
    switchover: Option<Switchover>,
    /// The guest has ended here, and the secondary is about to hear of it.
    hand_over: Option<HandOver>,
    /// What keeps this host from running the VM well.
    trouble: Option<Trouble>,
    /// For this trouble a switchover was begun: if it fails it is not begun again and again.
    stepped_down: bool,
    next_ask: AskId,
    /// The images that are copied to a secondary.
    sources: Vec<Source>,
    shown: (Protection, u64),
}

impl Primary {
    /// Begins alone, gate open, under a record that was won before.
    pub fn new(config: PrimaryConfig, reign: Reign, now_ms: u64) -> Self {
        Self {
            now_ms,
            record: reign.record,
            standing: Standing::Alone,
            session: None,
            sessions_begun: 0,
            peer_word: PeerWord::default(),
            lost_since_ms: None,
            parting: None,
            adoption: None,
            sync: None,
            ahead: None,
            acked: None,
            next_epoch: reign.last_epoch + 1,
            staging_pages_max: 0,
            output_pending: false,
            dirty_limit: false,
            guest_waits: false,
            last_capture_ms: now_ms,
            shows_until_ms: now_ms,
            capture_failures: 0,
            paused: false,
            protection_wanted: config.protect,
            backoff: Backoff::default(),
            stop: None,
            switchover: None,
            hand_over: None,
            trouble: None,
            stepped_down: false,
            next_ask: 1,
            sources: config.sources.clone(),
            shown: (Protection::Unprotected, now_ms),
            config,
        }
    }

    /// For the exploration: its clock stands still, and what changes is the length of the time-outs.
    /// Questions are numbered from `next_ask` on.
    #[cfg(feature = "sim")]
    pub(crate) fn set_time_outs(&mut self, timing: &Timing, next_ask: AskId) {
        self.config.timing = timing.clone();
        self.next_ask = next_ask;
    }

    /// For the exploration: so many sessions were begun, as far as anybody may yet learn.
    #[cfg(feature = "sim")]
    pub(crate) fn set_sessions_begun(&mut self, sessions: u64) {
        self.sessions_begun = sessions;
    }

    /// Takes one event at a time of a monotonic clock in milliseconds; appends what is to be done.
    pub fn handle(&mut self, now_ms: u64, event: PrimaryEvent, actions: &mut Actions) {
        let before = self.risen();
        self.take(now_ms, event, actions);
        if are_asserted() {
            self.assert_invariants(&before);
        }
    }

    fn take(&mut self, now_ms: u64, event: PrimaryEvent, actions: &mut Actions) {
        self.advance_clock(now_ms);
        if self.is_over() {
            return self.go_on_handing_over(event, actions);
        }
        self.dispatch(event, actions);
        // Each step below may end the machine, and asks that first.
        self.check_session(actions);
        self.check_parting(actions);
        self.check_stop(actions);
        self.check_health(actions);
        self.check_switchover(actions);
        self.check_adoption(actions);
        self.start_sync(actions);
        self.poll_arbiter(actions);
        self.note_protection();
    }

    fn dispatch(&mut self, event: PrimaryEvent, actions: &mut Actions) {
        match event {
            PrimaryEvent::Tick | PrimaryEvent::Transmitted { .. } => {}
            PrimaryEvent::PeerConnected { session } => self.on_connected(session, actions),
            PrimaryEvent::PeerClosed { session, reason } => self.on_closed(session, &reason, actions),
            PrimaryEvent::Message { session, message } => self.on_message(session, message, actions),
            PrimaryEvent::OutputPending => self.output_pending = true,
            PrimaryEvent::DirtyLimit => self.on_dirty_limit(actions),
            PrimaryEvent::DirtyAhead => self.on_dirty_ahead(actions),
            PrimaryEvent::CopyRoundSent { session, dirty_pages } => {
                self.on_copy_round(session, dirty_pages, actions);
            }
            PrimaryEvent::Captured {
                epoch, pages, stop, ..
            } => self.on_captured(epoch, pages, stop, actions),
            PrimaryEvent::CaptureFailed { epoch, reason } => self.on_capture_failed(epoch, &reason, actions),
            PrimaryEvent::Arbiter { ask, answer } => self.on_answer(ask, &answer, actions),
            PrimaryEvent::PoweredOff => self.want_stop("the guest powered itself off", actions),
            PrimaryEvent::GuestFailed { reason } => self.want_stop(&reason, actions),
            PrimaryEvent::OperatorStop => self.want_stop("stopped by the operator", actions),
            PrimaryEvent::SourcesMarked { session, result } => {
                self.on_sources_marked(session, result, actions);
            }
            PrimaryEvent::DisksCopied { session, result } => self.on_disks_copied(session, result, actions),
            PrimaryEvent::SourceGrown { disk, bytes } => self.on_source_grown(disk, bytes),
            PrimaryEvent::OperatorUnprotect => self.on_unprotect(actions),
            PrimaryEvent::OperatorProtect => {
                self.protection_wanted = true;
                self.forget_futile();
            }
            PrimaryEvent::OperatorSwitchover => self.on_switchover(actions),
            PrimaryEvent::OperatorAdopt { store } => self.on_adopt(store, actions),
            PrimaryEvent::OperatorPace(pace) => self.set_pace(pace),
            PrimaryEvent::GuestWaits(waits) => self.on_guest_waits(waits, actions),
            PrimaryEvent::Drained => self.on_drained(),
            // Only somebody who hands over closes them.
            PrimaryEvent::DisksClosed { .. } => {}
            PrimaryEvent::Health { trouble } => self.on_health(trouble, actions),
            PrimaryEvent::HostFailing { reason } => self.hand_over(&reason, actions),
            PrimaryEvent::ProtectionFailing { reason } => self.on_protection_failing(&reason, actions),
        }
    }

    /// Whether the guest never runs here again: it halted or exited, or is about to.
    pub fn is_over(&self) -> bool {
        matches!(self.standing, Standing::Over(_))
    }

    /// Whether the VM is about to go on elsewhere, or may already do so: a switchover is under way, or this
    /// side waits for the arbiter's word.
    pub fn is_leaving(&self) -> bool {
        self.is_over() || self.is_switching() || self.parting.is_some()
    }

    /// Whether a connection to the secondary should be made, if there is none.
    pub fn wants_peer(&self) -> bool {
        let may_join = match self.standing {
            Standing::Alone => {
                let is_busy = self.stop.is_some() || self.is_writing_record();
                self.protection_wanted && !is_busy && self.protects_again_ms().is_none()
            }
            Standing::Paired => self.parting.as_ref().is_none_or(Parting::can_cancel),
            Standing::Pairing(_) | Standing::Over(_) => false,
        };
        may_join && self.session.is_none()
    }

    /// For the exploration: whether a secondary is wanted.
    #[cfg(feature = "sim")]
    pub(crate) fn wants_protection(&self) -> bool {
        self.protection_wanted
    }

    /// The last record that is certainly this side's own.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// When the next [`PrimaryEvent::Tick`] is due.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.is_over() {
            let hand_over = self.hand_over.as_ref()?;
            return Some(hand_over.due_ms.min(self.beat_deadline()));
        }
        let session = self
            .session
            .as_ref()
            .map(|session| self.session_deadline(session));
        let interval = self.may_sync().then(|| self.last_capture_ms + self.interval_ms());
        let asks = [
            self.pairing_deadline(),
            self.protects_again_ms(),
            self.parting
                .as_ref()
                .filter(|_| !self.is_writing_record())
                .and_then(Parting::deadline),
            self.adoption.as_ref().and_then(Adoption::deadline),
        ];
        let losses = if self.parting.is_none() {
            self.loss_deadlines()
        } else {
            [None; 3]
        };
        [session, interval]
            .into_iter()
            .chain(asks)
            .chain(losses)
            .flatten()
            .min()
    }

    /// A gap in the calls means that this process stood still: nothing could be heard meanwhile, and no
    /// silence is proved. The peer gets its full time again.
    fn advance_clock(&mut self, now_ms: u64) {
        let now_ms = now_ms.max(self.now_ms);
        if now_ms - self.now_ms > self.config.timing.suspicion_ms {
            if let Some(session) = &mut self.session {
                session.heard_ms = now_ms;
            }
            if let Some(sync) = &mut self.sync {
                sync.since_ms = now_ms;
            }
            self.lost_since_ms = self.lost_since_ms.map(|_| now_ms);
        }
        self.now_ms = now_ms;
    }

    fn poll_arbiter(&mut self, actions: &mut Actions) {
        if self.is_over() {
            return;
        }
        let is_writing = self.is_writing_record();
        let (now_ms, next_ask) = (self.now_ms, &mut self.next_ask);
        let mut requests = [None, None, None, None];
        if let Some(adoption) = &mut self.adoption {
            requests[3] = adoption.poll(now_ms, next_ask);
        }
        if let Some(parting) = self.parting.as_mut().filter(|_| !is_writing) {
            requests[0] = parting.contest.poll(now_ms, next_ask);
        }
        if let Standing::Pairing(Pairing {
            asker: Some(asker), ..
        }) = &mut self.standing
        {
            requests[1] = asker.poll(now_ms, next_ask);
        }
        if let Some(Stage::Verifying(asker) | Stage::Confirming { asker, .. }) =
            self.session.as_mut().map(|session| &mut session.stage)
        {
            requests[2] = asker.poll(now_ms, next_ask);
        }
        let requests = requests.into_iter().flatten();
        actions.extend(requests.map(|(ask, request)| PrimaryAction::Ask { ask, request }));
    }

    fn resume(&mut self, actions: &mut Actions) {
        if self.paused && self.stop.is_none() && !self.is_held_for_switchover() {
            self.paused = false;
            actions.push(PrimaryAction::Resume);
        }
    }

    fn note_protection(&mut self) {
        let protection = self.protection();
        if protection != self.shown.0 {
            self.shown = (protection, self.now_ms);
        }
    }

    fn protection(&self) -> Protection {
        match (&self.standing, &self.parting) {
            (Standing::Over(_), _) => Protection::Over,
            (Standing::Paired, Some(_)) => Protection::Deciding,
            (Standing::Paired, None) if self.is_live() => Protection::Protected,
            (Standing::Paired, None) => Protection::Deciding,
            (Standing::Pairing(_), _) => Protection::Pairing,
            (Standing::Alone, _) if self.session.is_some() => Protection::Copying,
            (Standing::Alone, _) => Protection::Unprotected,
        }
    }

    /// A snapshot for humans.
    pub fn status(&self, now_ms: u64) -> Status {
        Status {
            role: Role::Primary,
            term: self.record.term,
            epoch: self.acked.unwrap_or(0),
            protection: self.protection(),
            for_ms: now_ms.saturating_sub(self.shown.1),
            readiness: self.peer_readiness(now_ms),
            waiting: self.waiting(now_ms),
        }
    }

    fn waiting(&self, now_ms: u64) -> Option<String> {
        if let Standing::Over(reason) = &self.standing {
            return Some(format!("nothing: {reason}"));
        }
        if let Some(parting) = &self.parting {
            return Some(format!("{}: {}", parting.cause, parting.contest.waiting()));
        }
        if let Standing::Pairing(Pairing {
            asker: Some(asker), ..
        }) = &self.standing
        {
            let trouble = asker.trouble().unwrap_or("no answer yet");
            return Some(format!(
                "output waits until the arbiter has recorded the pair: {trouble}"
            ));
        }
        if matches!(self.standing, Standing::Paired) && !self.is_live() {
            return Some("the link to the secondary is broken; output waits".to_owned());
        }
        if let Some(sync) = &self.sync {
            return Some(sync.waiting(now_ms));
        }
        if let Some(waiting) = self.waiting_in_trouble(now_ms) {
            return Some(waiting);
        }
        if let Some(waiting) = self.waiting_to_protect(now_ms) {
            return Some(waiting);
        }
        match self.session.as_ref().map(|session| &session.stage)? {
            Stage::Proving { .. } => Some("the way to the secondary is being proved".to_owned()),
            Stage::Greeting => Some("the secondary has not answered yet".to_owned()),
            Stage::Preparing => Some("the secondary makes its standby VM ready".to_owned()),
            Stage::Verifying(asker) | Stage::Confirming { asker, .. } => {
                let trouble = asker.trouble().unwrap_or("no answer yet");
                Some(format!("protection waits for the arbiter: {trouble}"))
            }
            Stage::Disks(step) => Some(step.waiting().to_owned()),
            Stage::Copying { .. } | Stage::Live => None,
        }
    }
}
