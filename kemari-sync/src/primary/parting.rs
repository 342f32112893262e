//! The ways out: from a pair to alone, to a halt, or to a clean stop.

use std::fmt;

use crate::consent::AskId;
use crate::consent::contest::{Contest, Goal, Ruling};
use crate::faults::{Fault, fault};
use crate::record::{ArbiterAnswer, Phase, Record};
use crate::wire::{Goodbye, Message, reason_text};

use super::{Actions, OnSecondaryLoss, Primary, PrimaryAction, Standing};

/// Why the pair parts.
#[derive(Clone, Debug, Hash)]
pub(super) enum Cause {
    /// As long as this lasts, and nothing was asked yet, it may pass.
    Passing(String),
    /// This does not pass.
    Final(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passing(text) | Self::Final(text) => f.write_str(text),
        }
    }
}

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Parting {
    pub(super) contest: Contest,
    pub(super) cause: Cause,
    /// The peer could not follow, or was silent: the next pair may fare no better.
    pub(super) is_futile: bool,
}

impl Parting {
    pub(super) fn can_cancel(&self) -> bool {
        self.contest.can_cancel() && matches!(self.cause, Cause::Passing(_))
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.contest.deadline()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum StopStep {
    /// As soon as the VM is alone, or its secondary has let go.
    Wanted,
    /// Released requests are being finished: a VM that is recorded as stopped may be started elsewhere at
    /// once.
    Draining,
    /// They are finished; an ask that was under way already must be resolved first.
    Drained,
    /// The record is being written.
    Recording,
}

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Stop {
    reason: String,
    step: StopStep,
}

impl Stop {
    /// Whether the guest will never run again here.
    pub(super) fn is_committed(&self) -> bool {
        self.step != StopStep::Wanted
    }
}

impl Primary {
    pub(super) fn stop_is_committed(&self) -> bool {
        self.stop.as_ref().is_some_and(Stop::is_committed)
    }

    /// When each sign of the secondary's loss would be there.
    pub(super) fn loss_deadlines(&self) -> [Option<u64>; 3] {
        self.losses().map(|loss| loss.map(|(due_ms, _)| due_ms))
    }

    fn losses(&self) -> [Option<(u64, Cause)>; 3] {
        if !matches!(self.standing, Standing::Paired) || self.stop_is_committed() {
            return [None, None, None];
        }
        let timing = &self.config.timing;
        let passing = |due_ms: u64, text: &str| (due_ms, Cause::Passing(text.to_owned()));
        let broken = self
            .lost_since_ms
            .map(|since_ms| passing(since_ms + timing.reconnect_ms, "the link to the secondary broke"));
        let silent = self
            .session
            .as_ref()
            .map(|session| passing(session.heard_ms + timing.suspicion_ms, "the secondary is silent"));
        [broken, silent, self.progress_deadline()]
    }

    /// Whether the VM would go on elsewhere if this host let go of it now: its secondary lacks nothing,
    /// and may have it.
    pub fn goes_on_there(&self) -> bool {
        self.may_hand_over() && self.peer_lacks(self.now_ms).is_none()
    }

    /// Whether the VM is nobody else's to give: its secondary is heard, and nothing is won here.
    pub fn may_hand_over(&self) -> bool {
        let is_heard = self
            .session
            .as_ref()
            .is_some_and(|session| self.now_ms < session.heard_ms + self.config.timing.suspicion_ms);
        let has_won = |parting: &Parting| parting.contest.won_term().is_some();
        is_heard && self.is_joined() && !self.parting.as_ref().is_some_and(has_won)
    }

    /// Begins to part from a lost secondary; stops it if the secondary is back before anything was asked.
    pub(super) fn check_parting(&mut self, actions: &mut Actions) {
        if !matches!(self.standing, Standing::Paired) || self.stop_is_committed() {
            return;
        }
        let now_ms = self.now_ms;
        let loss = self
            .losses()
            .into_iter()
            .flatten()
            .find(|(due_ms, _)| now_ms >= *due_ms);
        match (&self.parting, loss) {
            // No secondary is to blame for what this host cannot capture.
            (None, Some(_)) if self.is_capturing() && self.goes_on_there() => {
                self.hand_over("a sync could not be captured in time", actions);
            }
            (None, Some((_, cause))) => self.part(cause, actions),
            (None, None) if !self.protection_wanted => {
                self.part(Cause::Final("unprotected by the operator".to_owned()), actions);
            }
            (Some(parting), None) if parting.can_cancel() => {
                self.parting = None;
                if self.sync.is_none() {
                    self.resume(actions);
                }
            }
            _ => {}
        }
    }

    fn part(&mut self, cause: Cause, actions: &mut Actions) {
        actions.push(PrimaryAction::Report(format!("asking to go on alone: {cause}")));
        if fault(Fault::ActAloneWithoutTerm) {
            let record = Record {
                term: self.record.term + 1,
                peer: None,
                ..self.record.clone()
            };
            return self.act_alone(record, &cause.to_string(), actions);
        }
        let contest = self.contest(Goal::Rule);
        // A link that breaks says so, and who was started anew is back at once. Of one that carries nothing
        // any more, or whose peer gets on with nothing, the next pair may fare no better.
        let [_, silent, stuck] = self.loss_deadlines();
        let is_over = |due_ms: Option<u64>| due_ms.is_some_and(|due_ms| self.now_ms >= due_ms);
        let is_futile = is_over(silent) || is_over(stuck);
        self.parting = Some(Parting {
            contest,
            cause,
            is_futile,
        });
    }

    pub(super) fn contest(&self, goal: Goal) -> Contest {
        let (me, other) = (self.config.me.clone(), self.record.peer.clone());
        Contest::new(me, other, self.record.term, self.record.store, goal, self.now_ms)
    }

    /// The peer of the pair can no longer follow.
    pub(super) fn secondary_is_unfit(&mut self, reason: &str, actions: &mut Actions) {
        self.secondary_is_gone(reason, actions);
        if let Some(parting) = &mut self.parting {
            parting.is_futile = true;
        }
    }

    /// The peer of the pair has lost its state, or is of no more use.
    pub(super) fn secondary_is_gone(&mut self, reason: &str, actions: &mut Actions) {
        self.close(reason, actions);
        if self.is_over() || self.stop_is_committed() {
            return;
        }
        let cause = Cause::Final(reason.to_owned());
        match &mut self.parting {
            Some(parting) => {
                if parting.cause.to_string() != reason {
                    actions.push(PrimaryAction::Report(format!("asking to go on alone: {reason}")));
                }
                parting.cause = cause;
                // Nobody is left to be waited for.
                parting.contest.wait_no_longer();
            }
            None => self.part(cause, actions),
        }
    }

    pub(super) fn on_unprotect(&mut self, actions: &mut Actions) {
        self.protection_wanted = false;
        if matches!(self.standing, Standing::Alone) {
            self.close("unprotected by the operator", actions);
        }
    }

    pub(super) fn on_parting_answer(&mut self, ask: AskId, answer: &ArbiterAnswer, actions: &mut Actions) {
        let Some(parting) = &mut self.parting else { return };
        match parting
            .contest
            .answer(self.now_ms, &self.config.timing, ask, answer)
        {
            Ruling::Open => {}
            Ruling::Won => parting.contest.declare(Phase::Acting),
            Ruling::Settled(record) if record.phase == Phase::Stopped => self.exit(actions),
            Ruling::Settled(record) => {
                let cause = parting.cause.to_string();
                self.act_alone(record, &cause, actions);
            }
            Ruling::Lost(record) if record.phase == Phase::Stopped && self.stop_is_committed() => {
                self.exit(actions);
            }
            Ruling::Lost(record) => {
                let text = format!("{} has the VM now (term {})", record.owner, record.term);
                self.halt(&text, actions);
            }
            Ruling::Rival if self.paused => {}
            Ruling::Rival => {
                self.paused = true;
                actions.push(PrimaryAction::Pause);
            }
            Ruling::Alarm(reason) => {
                let text = format!("nothing more is asked of the arbiter, and output waits: {reason}");
                actions.push(PrimaryAction::Report(text));
            }
        }
    }

    fn act_alone(&mut self, record: Record, cause: &str, actions: &mut Actions) {
        self.record = record;
        self.standing = Standing::Alone;
        // A host in trouble steps down again once it has a pair again, later each time. It may have been told
        // of other trouble since it began to.
        let is_switching = self.switchover.is_some() && self.trouble.is_some();
        let has_stepped_down = std::mem::take(&mut self.stepped_down) || is_switching;
        let is_futile = self.parting.as_ref().is_some_and(|parting| parting.is_futile);
        if is_futile || has_stepped_down {
            self.note_futile(cause);
        }
        (self.parting, self.lost_since_ms, self.acked) = (None, None, None);
        self.give_back_sync(actions);
        self.output_pending = false;
        self.dirty_limit = false;
        self.switchover_failed(cause, actions);
        self.send(Message::Goodbye(Goodbye::Alone(reason_text(cause))), actions);
        self.close(cause, actions);
        let text = format!(
            "the VM runs on unprotected, in term {}: {cause}",
            self.record.term
        );
        actions.push(PrimaryAction::Report(text));
        actions.push(PrimaryAction::OpenGate);
        if self.protection_wanted && self.config.on_secondary_loss == OnSecondaryLoss::Stop {
            self.want_stop("its secondary was lost, and the policy is to stop", actions);
        }
        self.resume(actions);
    }

    pub(super) fn want_stop(&mut self, reason: &str, actions: &mut Actions) {
        if self.stop.is_none() {
            actions.push(PrimaryAction::Report(format!("the VM ends: {reason}")));
            self.stop = Some(Stop {
                reason: reason.to_owned(),
                step: StopStep::Wanted,
            });
        }
    }

    /// A VM that is alone has nobody to synchronise its end with.
    pub(super) fn check_stop(&mut self, actions: &mut Actions) {
        let is_wanted = self.stop.as_ref().is_some_and(|stop| !stop.is_committed());
        if is_wanted && matches!(self.standing, Standing::Alone) {
            self.close("the VM ends", actions);
            self.begin_drain(actions);
        }
        self.record_stop();
    }

    pub(super) fn begin_drain(&mut self, actions: &mut Actions) {
        if let Some(stop) = &mut self.stop {
            stop.step = StopStep::Draining;
            // What was asked already may have been won: it is resolved before the stop is recorded.
            self.parting.take_if(|parting| parting.contest.can_cancel());
            self.paused = true;
            actions.push(PrimaryAction::Drain);
            if fault(Fault::StopBeforeDrained) {
                self.on_drained();
            }
        }
    }

    pub(super) fn on_drained(&mut self) {
        self.note_drained();
        if let Some(stop) = self.stop.as_mut().filter(|stop| stop.step == StopStep::Draining) {
            stop.step = StopStep::Drained;
        }
        self.record_stop();
    }

    fn record_stop(&mut self) {
        let is_asking = self.parting.is_some();
        if let Some(stop) = self
            .stop
            .as_mut()
            .filter(|stop| stop.step == StopStep::Drained && !is_asking)
        {
            stop.step = StopStep::Recording;
            let cause = Cause::Final(stop.reason.clone());
            let contest = self.contest(Goal::Stop);
            self.parting = Some(Parting {
                contest,
                cause,
                is_futile: false,
            });
        }
    }

    pub(super) fn halt(&mut self, reason: &str, actions: &mut Actions) {
        self.end(reason);
        // The guest stops before anything else may fail.
        actions.push(PrimaryAction::Halt {
            reason: reason.to_owned(),
        });
        self.close(reason, actions);
    }

    fn exit(&mut self, actions: &mut Actions) {
        let reason = self
            .stop
            .as_ref()
            .map(|stop| stop.reason.clone())
            .unwrap_or_default();
        self.end(&reason);
        self.send(Message::Goodbye(Goodbye::Stopped), actions);
        self.close(&reason, actions);
        actions.push(PrimaryAction::Exit { reason });
    }

    pub(super) fn end(&mut self, reason: &str) {
        self.standing = Standing::Over(reason.to_owned());
        (self.parting, self.sync, self.adoption) = (None, None, None);
    }
}
