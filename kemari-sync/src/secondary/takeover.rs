//! The takeover: ask, win, roll back, fence, restore, tell the arbiter, run. Or lose, and forget.

use crate::consent::AskId;
use crate::consent::contest::{Contest, Goal, Ruling};
use crate::faults::{Fault, fault};
use crate::primary::Reign;
use crate::record::{ArbiterAnswer, Phase, Record};
use crate::wire::{Goodbye, Message};

use super::{Actions, Secondary, SecondaryAction};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// The arbiter is being asked.
    Contesting,
    /// Won; nothing is under way: the next step may begin.
    Ready,
    /// The driver fences or restores.
    Working,
    /// It failed, and is tried again at this time, in milliseconds.
    Retry(u64),
    /// Before a fence begins the arbiter is told for how long it may strike.
    Renewing,
    /// The arbiter is being told.
    Declaring,
}

/// How often a winner that restores says that it gets on. One that needs longer may be replaced.
const BEATS_MAX: u64 = 60;

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Takeover {
    pub(super) contest: Contest,
    cause: String,
    /// The primary may come back before anything was asked.
    may_pass: bool,
    step: Step,
    fenced: bool,
    restored: bool,
    trouble: Option<String>,
    /// When the loser hears of this side's work next, and how often it has.
    beat_ms: u64,
    beats: u64,
}

impl Takeover {
    pub(super) fn deadline(&self) -> Option<u64> {
        let step = match self.step {
            Step::Retry(due_ms) => Some(due_ms),
            _ => self.may_beat().then_some(self.beat_ms),
        };
        step.into_iter().chain(self.contest.deadline()).min()
    }

    /// Whether it brings the VM up, which may take long, and can say so.
    fn may_beat(&self) -> bool {
        let restores = self.fenced && matches!(self.step, Step::Ready | Step::Working);
        restores && self.beats < BEATS_MAX && self.contest.is_idle()
    }

    /// A fence may strike until then, in milliseconds, if it may begin now.
    fn fence_until_ms(&self, now_ms: u64, fence_ms_max: u64) -> Option<u64> {
        let until_ms = now_ms + fence_ms_max;
        let said_ms = self.contest.strikes_until_ms();
        (fault(Fault::FenceLate) || said_ms.is_some_and(|said_ms| until_ms <= said_ms)).then_some(until_ms)
    }

    /// Whether the VM was won, as far as this side knows.
    pub(super) fn has_won(&self) -> bool {
        self.step != Step::Contesting
    }

    /// Whether what follows a win has begun.
    pub(super) fn has_begun(&self) -> bool {
        matches!(self.step, Step::Working | Step::Retry(_) | Step::Renewing) || self.declares()
    }

    pub(super) fn declares(&self) -> bool {
        self.step == Step::Declaring
    }

    /// Whether everything is done before the guest runs, or, after a `stop`, is said to be stopped.
    pub(super) fn may_run(&self, stop: bool) -> bool {
        self.fenced && (self.restored || stop)
    }

    pub(super) fn assert_invariants(&self) {
        self.contest.assert_invariants();
        assert!(
            self.beats <= BEATS_MAX,
            "who gets on with nothing may be replaced"
        );
        let has_won = self.contest.won_term().is_some();
        assert!(has_won || !self.has_begun(), "who has not won does nothing");
    }

    pub(super) fn waiting(&self) -> String {
        let what = match (self.step, &self.trouble) {
            (Step::Retry(_), Some(trouble)) => trouble.clone(),
            (Step::Working | Step::Renewing, _) if !self.fenced => "fencing the old host".to_owned(),
            (Step::Working | Step::Ready, _) => "restoring the last commit".to_owned(),
            _ => self.contest.waiting(),
        };
        format!("{}: {what}", self.cause)
    }
}

impl Secondary {
    /// When and why the primary counts as lost, if nothing is heard until then.
    pub(super) fn loss(&self) -> Option<(u64, &'static str)> {
        self.held.as_ref()?;
        let timing = &self.config.timing;
        let broken = self
            .lost_since_ms
            .map(|since_ms| (since_ms + timing.reconnect_ms, "the link to the primary broke"));
        let silent = self
            .session
            .as_ref()
            .map(|session| (session.heard_ms + timing.suspicion_ms, "the primary is silent"));
        [broken, silent].into_iter().flatten().min()
    }

    /// Begins to take over from a lost primary; stops it if the primary is back before anything was asked.
    pub(super) fn check_takeover(&mut self, actions: &mut Actions) {
        let now_ms = self.now_ms;
        let loss = self.loss().filter(|(due_ms, _)| now_ms >= *due_ms);
        match (&mut self.takeover, loss) {
            (None, Some((_, cause))) => self.begin_takeover(cause, true, actions),
            (Some(takeover), None) if takeover.may_pass && takeover.contest.can_cancel() => {
                self.takeover = None;
            }
            (Some(takeover), _) => {
                if let Step::Retry(due_ms) = takeover.step
                    && now_ms >= due_ms
                {
                    // The loser may have replaced this side meanwhile; who fences it then would kill the VM.
                    takeover.step = Step::Ready;
                    if takeover.contest.is_idle() {
                        takeover.contest.confirm(now_ms);
                    }
                } else if takeover.may_beat() && now_ms >= takeover.beat_ms {
                    takeover.contest.renew(true, 0);
                    takeover.beats += 1;
                    takeover.beat_ms = now_ms + self.config.timing.beat_ms();
                }
            }
            (None, None) => {}
        }
    }

    pub(super) fn primary_is_gone(&mut self, cause: &str, actions: &mut Actions) {
        if self.held.is_none() {
            return;
        }
        match &mut self.takeover {
            Some(takeover) => takeover.may_pass = false,
            None => self.begin_takeover(cause, false, actions),
        }
    }

    /// The primary has finished all its I/O, and begins none unless it wins:
    /// then this side learns it from the record.
    pub(super) fn need_no_fence(&mut self) {
        if let Some(takeover) = &mut self.takeover {
            takeover.fenced = true;
            takeover.contest.set_fence(0);
        }
    }

    /// What a win says of the fence that follows: it also has to begin.
    fn strikes_ms_max(&self) -> u64 {
        let fence_ms_max = self.config.fence_ms_max;
        fence_ms_max.map_or(0, |fence_ms_max| fence_ms_max + self.config.timing.won_stall_ms)
    }

    pub(super) fn on_operator_takeover(&mut self, actions: &mut Actions) {
        match self.held {
            Some(_) => self.primary_is_gone("the operator wants it", actions),
            None => actions.push(SecondaryAction::Report(
                "there is nothing to take over with".to_owned(),
            )),
        }
    }

    /// Whoever holds the VM while its primary is lost does not go: nobody else could go on with it.
    pub(super) fn on_operator_leave(&mut self, actions: &mut Actions) {
        if self.takeover.is_some() || (self.held.is_some() && self.session.is_none()) {
            actions.push(SecondaryAction::Report(
                "this side does not end now: the VM may depend on it".to_owned(),
            ));
            return;
        }
        let reason = "the secondary was told to end";
        self.unfit(reason, actions);
        if self.held.is_some() {
            self.forget(reason, actions);
        }
        self.over = Some(reason.to_owned());
        actions.push(SecondaryAction::Leave);
    }

    fn begin_takeover(&mut self, cause: &str, may_pass: bool, actions: &mut Actions) {
        let Some(held) = &self.held else { return };
        actions.push(SecondaryAction::Report(format!("asking for the VM: {cause}")));
        let (me, other) = (self.config.me.clone(), Some(held.primary.clone()));
        let mut contest = Contest::new(me, other, held.last.term, held.store, Goal::Rule, self.now_ms);
        contest.set_fence(self.strikes_ms_max());
        self.takeover = Some(Takeover {
            contest,
            cause: cause.to_owned(),
            may_pass,
            step: Step::Contesting,
            fenced: self.config.fence_ms_max.is_none() || fault(Fault::RunBeforeFence),
            restored: false,
            trouble: None,
            beat_ms: 0,
            beats: 0,
        });
        if fault(Fault::TakeoverWithoutTerm) {
            self.on_won(actions);
        }
    }

    pub(super) fn on_answer(&mut self, ask: AskId, answer: &ArbiterAnswer, actions: &mut Actions) {
        let strikes_ms_max = self.strikes_ms_max();
        let Some(takeover) = &mut self.takeover else {
            return;
        };
        let ruling = takeover
            .contest
            .answer(self.now_ms, &self.config.timing, ask, answer);
        match ruling {
            // What was checked while the ask was open may be decided now.
            Ruling::Open => self.try_commit(actions),
            // What is under way goes on.
            Ruling::Won if matches!(takeover.step, Step::Working | Step::Retry(_)) => {}
            Ruling::Won => self.on_won(actions),
            Ruling::Settled(record) => self.conclude(record, actions),
            Ruling::Lost(record) => self.on_lost(&record, actions),
            Ruling::Rival => {
                // It may yet be won again: by then the old host must be fenced anew,
                // and the disks must know of the term.
                takeover.step = Step::Contesting;
                takeover.fenced = self.config.fence_ms_max.is_none();
                takeover.contest.set_fence(strikes_ms_max);
                takeover.restored &= fault(Fault::KeepRestored);
            }
            Ruling::Alarm(reason) => {
                // Whatever was under way or was to be tried again leads to nothing.
                takeover.step = Step::Contesting;
                let text = format!("nothing more is asked of the arbiter, and the VM waits: {reason}");
                actions.push(SecondaryAction::Report(text));
            }
        }
    }

    fn on_won(&mut self, actions: &mut Actions) {
        if fault(Fault::KeepUnchecked) {
            self.keep_unchecked(actions);
        }
        let why = "this side has won the VM";
        if self.held.as_ref().is_some_and(|held| !held.stop) {
            self.send(Message::Goodbye(Goodbye::Alone(why.to_owned())), actions);
        }
        self.close(why, actions);
        if let Some(takeover) = &mut self.takeover {
            if takeover.step == Step::Contesting {
                (takeover.beats, takeover.beat_ms) = (0, self.now_ms + self.config.timing.beat_ms());
            }
            takeover.step = Step::Ready;
        }
        self.continue_takeover(actions);
    }

    /// The next step after the win, when the one before is done.
    pub(super) fn continue_takeover(&mut self, actions: &mut Actions) {
        let (Some(takeover), Some(held)) = (&mut self.takeover, &self.held) else {
            return;
        };
        // What is being asked is resolved first: its answer comes back here.
        let is_asking = !takeover.contest.is_idle() && !fault(Fault::TakeoverWithoutTerm);
        if takeover.step != Step::Ready || held.applying.is_some() || is_asking {
            return;
        }
        let is_stop = held.stop && !fault(Fault::ResurrectStop);
        if let Some(fence_ms_max) = self.config.fence_ms_max.filter(|_| !takeover.fenced) {
            let (until_ms, old) = (
                takeover.fence_until_ms(self.now_ms, fence_ms_max),
                held.primary.clone(),
            );
            if let Some(until_ms) = until_ms {
                takeover.step = Step::Working;
                actions.push(SecondaryAction::Fence { old, until_ms });
            } else {
                takeover.step = Step::Renewing;
                let strikes_ms_max = self.strikes_ms_max();
                if let Some(takeover) = &mut self.takeover {
                    takeover.contest.renew(false, strikes_ms_max);
                }
            }
        } else if !takeover.restored && !is_stop {
            takeover.step = Step::Working;
            // One that fails again and again does not get on.
            takeover.beat_ms = self.now_ms + self.config.timing.beat_ms();
            actions.push(SecondaryAction::Restore {
                epoch: held.last.epoch,
            });
        } else {
            takeover.step = Step::Declaring;
            takeover
                .contest
                .declare(if is_stop { Phase::Stopped } else { Phase::Acting });
            if fault(Fault::TakeoverWithoutTerm) || fault(Fault::RunBeforeActing) {
                let record = self.imagined_record();
                self.conclude(record, actions);
            }
        }
    }

    pub(super) fn on_fenced(&mut self, result: Result<(), String>, actions: &mut Actions) {
        let Some(takeover) = self
            .takeover
            .as_mut()
            .filter(|takeover| takeover.step == Step::Working)
        else {
            return;
        };
        match result {
            Ok(()) => {
                takeover.fenced = true;
                takeover.step = Step::Ready;
                self.continue_takeover(actions);
            }
            Err(reason) => {
                // Whoever lives there may go on.
                if takeover.contest.is_idle() && !fault(Fault::FenceLate) {
                    takeover.contest.renew(false, 0);
                }
                self.retry(&format!("the old host could not be fenced: {reason}"), actions);
            }
        }
    }

    pub(super) fn on_restored(&mut self, result: Result<(), String>, actions: &mut Actions) {
        let Some(takeover) = self
            .takeover
            .as_mut()
            .filter(|takeover| takeover.step == Step::Working)
        else {
            return;
        };
        match result {
            Err(reason) if !fault(Fault::ActUnrestored) => self.retry(
                &format!("the last commit could not be restored: {reason}"),
                actions,
            ),
            _ => {
                takeover.restored = true;
                takeover.step = Step::Ready;
                self.continue_takeover(actions);
            }
        }
    }

    fn retry(&mut self, trouble: &str, actions: &mut Actions) {
        let due_ms = self.now_ms + self.config.timing.takeover_retry_ms;
        if let Some(takeover) = &mut self.takeover {
            takeover.step = Step::Retry(due_ms);
            takeover.trouble = Some(trouble.to_owned());
        }
        actions.push(SecondaryAction::Report(format!(
            "{trouble}; the guest does not run before it succeeds"
        )));
    }

    fn on_lost(&mut self, record: &Record, actions: &mut Actions) {
        let reason = format!(
            "{} has the VM (term {}, {:?})",
            record.owner, record.term, record.phase
        );
        self.close(&reason, actions);
        self.forget(&reason, actions);
        if record.phase == Phase::Stopped {
            self.exit("the VM is stopped", actions);
        }
    }

    fn conclude(&mut self, record: Record, actions: &mut Actions) {
        if record.phase == Phase::Stopped {
            self.forget("the VM is stopped", actions);
            return self.exit("the VM is stopped", actions);
        }
        let Some(held) = self.held.take() else { return };
        self.takeover = None;
        self.over = Some(format!("the VM runs here, in term {}", record.term));
        actions.push(SecondaryAction::Run(Reign {
            record,
            last_epoch: held.last.epoch,
        }));
    }

    fn exit(&mut self, reason: &str, actions: &mut Actions) {
        self.over = Some(reason.to_owned());
        actions.push(SecondaryAction::Exit {
            reason: reason.to_owned(),
        });
    }

    /// A rule taken out for tests: the record as it would be, had it been asked for.
    fn imagined_record(&self) -> Record {
        let (term, store) = self
            .held
            .as_ref()
            .map_or((1, 0), |held| (held.last.term + 1, held.store));
        Record {
            vm: self.config.vm.clone(),
            store,
            term,
            base: term,
            owner: self.config.me.clone(),
            peer: None,
            phase: Phase::Acting,
            work: Default::default(),
        }
    }
}
