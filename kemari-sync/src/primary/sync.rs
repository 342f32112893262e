//! A sync: capture, transmission, ack, release. One is under way at a time; what becomes pending meanwhile
//! joins the next.

use crate::faults::{Fault, fault};
use crate::record::Epoch;
use crate::wire::{Begin, CommitId};

use super::parting::Cause;
use super::types::{AHEAD_SHARE, CAPTURE_FAILURES_MAX};
use super::{Actions, Mode, Opening, Pace, Primary, PrimaryAction, SessionId, Standing};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Capturing,
    /// Captured, while there is no session to send it in.
    Captured,
    Sent(SessionId),
    /// The first of a pair: committed by the secondary, not yet recorded.
    Committed,
}

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Sync {
    pub(super) epoch: Epoch,
    pub(super) since_ms: u64,
    pub(super) stage: Stage,
    pub(super) stop: bool,
    /// The last one before a switchover: the guest stays where it ends.
    pub(super) last_here: bool,
}

impl Sync {
    pub(super) fn was_sent(&self) -> bool {
        matches!(self.stage, Stage::Sent(_) | Stage::Committed)
    }

    pub(super) fn waiting(&self, now_ms: u64) -> String {
        let age_ms = now_ms.saturating_sub(self.since_ms);
        let what = match self.stage {
            Stage::Capturing => "is being captured",
            Stage::Captured => "waits for a session",
            Stage::Sent(_) => "waits for the secondary's ack",
            Stage::Committed => "waits for the arbiter to record the pair",
        };
        format!("sync {} {what}, for {age_ms} ms", self.epoch)
    }
}

impl Primary {
    /// Whether nothing but a reason is missing for the next sync.
    pub(super) fn may_sync(&self) -> bool {
        let stop_is_past = self.stop.as_ref().is_some_and(|stop| stop.is_committed());
        matches!(self.standing, Standing::Paired)
            && self.is_live()
            && self.parting.is_none()
            && self.sync.is_none()
            && !stop_is_past
            && !self.is_past_last_sync()
    }

    pub(super) fn start_sync(&mut self, actions: &mut Actions) {
        let interval_is_over = self.now_ms >= self.last_capture_ms + self.interval_ms();
        let is_wanted =
            self.stop.is_some() || self.switchover.is_some() || self.dirty_limit || self.wants_agreement();
        let output_starts = self.output_pending && self.config.mode != Mode::Interval;
        if self.may_sync() && (output_starts || is_wanted || interval_is_over) {
            self.capture(actions);
        }
    }

    /// Time from one capture to the next, at most.
    pub(super) fn interval_ms(&self) -> u64 {
        let timing = &self.config.timing;
        match self.config.mode {
            Mode::Interval => timing.interval_ms.min(timing.max_interval_ms),
            Mode::Lockstep | Mode::Pipelined => timing.max_interval_ms,
        }
    }

    pub(super) fn set_pace(&mut self, pace: Pace) {
        self.config.mode = pace.mode;
        self.config.timing.interval_ms = pace.interval_ms;
        self.config.timing.max_interval_ms = pace.max_interval_ms;
    }

    /// Whether the guest stands still from the capture to the ack. For the first sync of a pair that is long.
    fn guest_waits_for_ack(&self) -> bool {
        match self.config.mode {
            Mode::Lockstep => true,
            Mode::Pipelined => self.guest_waits && matches!(self.standing, Standing::Paired),
            Mode::Interval => false,
        }
    }

    pub(super) fn on_guest_waits(&mut self, waits: bool, actions: &mut Actions) {
        self.guest_waits = waits;
        let is_captured = self
            .sync
            .as_ref()
            .is_some_and(|sync| sync.stage != Stage::Capturing && !sync.stop);
        // Whoever is paused for something else waits for that.
        if is_captured && !self.guest_waits_for_ack() && self.parting.is_none() && !self.dirty_limit {
            self.resume(actions);
        }
    }

    pub(super) fn capture(&mut self, actions: &mut Actions) {
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        self.last_capture_ms = self.now_ms;
        self.paused = true;
        self.sync = Some(Sync {
            epoch,
            since_ms: self.now_ms,
            stage: Stage::Capturing,
            stop: false,
            last_here: self.switchover.is_some() && self.stop.is_none(),
        });
        let term = self.pair_term();
        let hold = matches!(self.standing, Standing::Paired) || !fault(Fault::KeepRightToActAlone);
        let at_once = self.at_once(epoch);
        actions.push(PrimaryAction::Capture {
            epoch,
            term,
            hold,
            at_once,
        });
    }

    /// If the guest stands still until the ack in any case: the sooner the secondary has something to do, the
    /// better. The first sync of a pair has other things to send before.
    fn at_once(&mut self, epoch: Epoch) -> Option<Opening> {
        if !self.guest_waits_for_ack() || !matches!(self.standing, Standing::Paired) {
            return None;
        }
        let (session, begin) = self.opening(epoch)?;
        self.ahead = Some(epoch);
        Some(Opening {
            session,
            begin,
            pages_max: self.staging_pages_max,
        })
    }

    fn pair_term(&self) -> u64 {
        match &self.standing {
            Standing::Pairing(pairing) => pairing.new.term,
            _ => self.record.term,
        }
    }

    pub(super) fn on_dirty_limit(&mut self, actions: &mut Actions) {
        // The first sync of a pair has a next one, too.
        let is_followed = self.sync.is_some() && !matches!(self.standing, Standing::Alone);
        if !matches!(self.standing, Standing::Paired) && !is_followed {
            return;
        }
        // As output does, it starts a sync; until that can be,
        // the guest may not make the next one larger still.
        self.dirty_limit = true;
        if !self.may_sync() && !self.paused {
            self.paused = true;
            actions.push(PrimaryAction::Pause);
        }
    }

    /// The secondary stages what goes ahead with the rest of the sync: pages,
    /// until its message to commit comes.
    pub(super) fn on_dirty_ahead(&mut self, actions: &mut Actions) {
        if !self.may_sync() {
            return;
        }
        let epoch = self.next_epoch;
        if let Some((session, begin)) = self.opening(epoch) {
            self.ahead = Some(epoch);
            actions.push(PrimaryAction::SendAhead(Opening {
                session,
                begin,
                pages_max: self.staging_pages_max / AHEAD_SHARE,
            }));
        }
    }

    pub(super) fn on_captured(&mut self, epoch: Epoch, pages: u64, stop: bool, actions: &mut Actions) {
        let is_paired = matches!(self.standing, Standing::Paired);
        let Some(sync) = self
            .sync
            .as_mut()
            .filter(|s| s.epoch == epoch && s.stage == Stage::Capturing)
        else {
            return;
        };
        sync.stage = Stage::Captured;
        if stop {
            self.want_stop("the guest powered itself off", actions);
        }
        let stop_wanted = self.stop.is_some();
        let Some(sync) = &mut self.sync else { return };
        // The first sync of a pair cannot be its last: the stop follows in one of its own.
        sync.stop = stop_wanted && is_paired;
        sync.last_here &= !stop_wanted;
        let stop_sync = sync.stop;
        self.output_pending = false;
        self.dirty_limit = false;
        self.capture_failures = 0;
        let room = self.staging_pages_max;
        if pages > room {
            let text = format!("a sync of {pages} pages exceeds the secondary's staging of {room}");
            return self.sync_failed(&text, actions);
        }
        if !self.guest_waits_for_ack() && !stop_sync {
            self.resume(actions);
        }
        if self.is_live() {
            self.transmit(actions);
        }
    }

    fn sync_failed(&mut self, reason: &str, actions: &mut Actions) {
        match self.standing {
            Standing::Paired => self.secondary_is_unfit(reason, actions),
            _ => self.abandon_pairing(reason, actions),
        }
    }

    /// The message that opens a sync, and where to.
    fn opening(&self, epoch: Epoch) -> Option<(SessionId, Begin)> {
        let session = self.session.as_ref()?;
        let begin = Begin {
            epoch,
            base: self.acked,
            term: self.pair_term(),
            store: self.store_of_syncs(),
            primary: self.config.me.nonce,
            secondary: session.peer.as_ref()?.nonce,
        };
        Some((session.id, begin))
    }

    fn transmit(&mut self, actions: &mut Actions) {
        let Some((session, begin)) = self.sync.as_ref().and_then(|sync| self.opening(sync.epoch)) else {
            return;
        };
        let Some(sync) = &mut self.sync else { return };
        sync.stage = Stage::Sent(session);
        self.ahead = None;
        actions.push(PrimaryAction::Transmit {
            session,
            begin,
            stop: sync.stop,
        });
        if fault(Fault::ReleaseBeforeAck) && matches!(self.standing, Standing::Paired) {
            self.sync_committed(actions);
        }
    }

    pub(super) fn on_capture_failed(&mut self, epoch: Epoch, reason: &str, actions: &mut Actions) {
        if self.sync.as_ref().is_none_or(|sync| sync.epoch != epoch) {
            return;
        }
        // Before there is a pair nobody else could go on, the guest runs well,
        // and there is nobody to part from.
        if matches!(self.standing, Standing::Paired) {
            self.capture_failures += 1;
        }
        let is_failing = self.capture_failures >= CAPTURE_FAILURES_MAX;
        let failing = format!("the machine cannot be captured: {reason}");
        if is_failing && self.goes_on_there() {
            return self.hand_over(&failing, actions);
        }
        actions.push(PrimaryAction::Report(format!(
            "sync {epoch} could not be captured: {reason}"
        )));
        if self.ahead.take() == Some(epoch) {
            // The secondary waits for the rest of it. In a new session it does not.
            self.close("a sync that had begun could not be captured", actions);
        }
        match self.standing {
            Standing::Paired => self.give_back_sync(actions),
            _ => self.abandon_pairing(reason, actions),
        }
        if is_failing {
            self.capture_failures = 0;
            self.secondary_is_unfit(&failing, actions);
            if !self.guest_waits_for_ack() && !self.dirty_limit {
                self.resume(actions);
            }
        }
    }

    pub(super) fn on_ack(&mut self, ack: CommitId, let_go: bool, actions: &mut Actions) {
        let session = self.session.as_ref().map(|session| session.id);
        let expected = self.sync.as_ref().is_some_and(|sync| {
            session.map(Stage::Sent) == Some(sync.stage)
                && ack
                    == (CommitId {
                        term: self.pair_term(),
                        epoch: sync.epoch,
                    })
                && sync.stop == let_go
        });
        if expected {
            self.sync_committed(actions);
        } else if !fault(Fault::ReleaseBeforeAck) {
            self.close(
                &format!("an ack of sync {} came that nobody waits for", ack.epoch),
                actions,
            );
        }
    }

    /// The secondary has it: proved by an ack or by a handshake.
    fn sync_committed(&mut self, actions: &mut Actions) {
        let Some(sync) = &mut self.sync else { return };
        sync.stage = Stage::Committed;
        let epoch = sync.epoch;
        self.acked = Some(epoch);
        self.note_agreement(epoch);
        // The first ack of a pair does not count before the pair is recorded.
        self.record_pair();
        if matches!(self.standing, Standing::Paired) {
            self.release_sync(actions);
        }
    }

    /// The sync under way has consent.
    pub(super) fn release_sync(&mut self, actions: &mut Actions) {
        let Some(sync) = self.sync.take() else { return };
        self.note_consent();
        actions.push(PrimaryAction::Release { epoch: sync.epoch });
        if sync.stop {
            return self.begin_drain(actions);
        }
        if sync.last_here {
            return self.drain_for_switchover(sync.since_ms, actions);
        }
        // While the arbiter decides, a guest in lockstep stays where its last committed epoch ended.
        if self.parting.is_none() {
            self.resume(actions);
        }
    }

    /// A new session of the same pair: the peer has committed `epoch`.
    pub(super) fn continue_sync(&mut self, epoch: Epoch, actions: &mut Actions) {
        let Some(sync) = &self.sync else {
            return self.resume(actions);
        };
        match sync.stage {
            Stage::Capturing => {}
            Stage::Captured => self.transmit(actions),
            Stage::Sent(_) | Stage::Committed if sync.epoch == epoch => self.sync_committed(actions),
            Stage::Sent(_) | Stage::Committed => self.give_back_sync(actions),
        }
    }

    /// The sync under way will not be acked.
    pub(super) fn give_back_sync(&mut self, actions: &mut Actions) {
        let Some(sync) = self.sync.take() else { return };
        self.output_pending = true;
        actions.push(PrimaryAction::GiveBack { epoch: sync.epoch });
    }

    /// Whether a sync is under way of which this host has not all yet.
    pub(super) fn is_capturing(&self) -> bool {
        self.sync
            .as_ref()
            .is_some_and(|sync| sync.stage == Stage::Capturing)
    }

    /// When the oldest sync without an ack will be too old.
    pub(super) fn progress_deadline(&self) -> Option<(u64, Cause)> {
        let sync = self.sync.as_ref()?;
        let text = format!("sync {} was not acked in time", sync.epoch);
        Some((
            sync.since_ms + self.config.timing.progress_ms,
            Cause::Passing(text),
        ))
    }
}
