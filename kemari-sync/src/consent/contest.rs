//! The contest: after a pair broke, each member that lives asks to rule alone;
//! the record lets one of them win.
//!
//! Read, then compare-and-set from the record of one's own last commit to `Won`; when everything is ready to
//! act, from `Won` to `Acting`. The loser keeps its state until it sees the other act, and replaces a winner
//! that stalls.
//!
//! A winner that fences says so in what it writes, with the longest time in which that may strike, which it
//! counts from before it asked; a loser counts it from when it first saw that, which is later. So whoever
//! replaces the winner acts when its fence is over. No later fence begins without a new record, which the
//! loser's would have made impossible.

use crate::faults::{Fault, fault};
use crate::record::{ArbiterAnswer, ArbiterRequest, Incarnation, Phase, Record, Term, Work};
use crate::timing::Timing;

use super::ask::{AskId, Asker, Verdict};

/// What a contest is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Goal {
    /// To run the VM alone.
    Rule,
    /// To write that the VM is stopped, without another step between.
    Stop,
}

/// How a contest stands after an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// It goes on.
    Open,
    /// The term is won; [`Contest::declare`] ends it.
    Won,
    /// The record is what was declared: the contest is over.
    Settled(Record),
    /// Another rules, or the VM is stopped: one's own state is void.
    Lost(Record),
    /// The other won and does not act yet: one's own state is kept, paused.
    Rival,
    /// The store contradicts what is known of it: nothing may be asked any more.
    Alarm(String),
}

#[derive(Clone, Debug, Hash)]
enum Step {
    Reading,
    Asking,
    Won(Record),
    Declaring(Record),
    Over,
    Alarmed(String),
}

/// Another's win.
#[derive(Clone, Debug, Hash)]
struct Rival {
    record: Record,
    /// When this record was seen first.
    seen_ms: u64,
    /// When its beat was.
    beat_ms: u64,
}

impl Rival {
    /// What is known of a winner, now that this is its record.
    fn seen(before: Option<&Self>, record: Record, now_ms: u64) -> Self {
        let of = |record: &Record| (record.term, record.owner.clone(), record.work.beat);
        let same_beat = before.filter(|rival| of(&rival.record) == of(&record));
        let same = before.filter(|rival| rival.record == record);
        Self {
            seen_ms: same.map_or(now_ms, |rival| rival.seen_ms),
            beat_ms: same_beat.map_or(now_ms, |rival| rival.beat_ms),
            record,
        }
    }

    /// When it may be replaced: it does not get on, and has no fence under way.
    fn stalls_ms(&self, timing: &Timing) -> u64 {
        let strikes_ms = match fault(Fault::ReplaceFencing) {
            true => 0,
            false => self.seen_ms.saturating_add(self.record.strikes_for_ms()),
        };
        strikes_ms.max(self.beat_ms + timing.won_stall_ms)
    }
}

/// One member's side of the contest.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Contest {
    me: Incarnation,
    other: Option<Incarnation>,
    /// Term of one's own last commit: the expected value of every ask.
    term: Term,
    store: u128,
    goal: Goal,
    step: Step,
    asker: Asker,
    rival: Option<Rival>,
    /// Until then, in milliseconds, the other is let win: the record is only read.
    yields_until_ms: u64,
    /// What a win is to say of the fence that follows it, in milliseconds.
    fence_ms_max: u64,
    /// The last win that was asked for, and when it was, in milliseconds: nobody can have seen it earlier.
    asked: Option<(Record, u64)>,
}

impl Contest {
    pub(crate) fn new(
        me: Incarnation,
        other: Option<Incarnation>,
        term: Term,
        store: u128,
        goal: Goal,
        now_ms: u64,
    ) -> Self {
        let (step, asker) = (Step::Reading, Asker::read(now_ms));
        Self {
            me,
            other,
            term,
            store,
            goal,
            step,
            asker,
            rival: None,
            yields_until_ms: 0,
            fence_ms_max: 0,
            asked: None,
        }
    }

    /// A win is followed by a fence, which may strike for so long, in milliseconds from the ask on. 0:
    /// by none.
    pub(crate) fn set_fence(&mut self, fence_ms_max: u64) {
        self.fence_ms_max = fence_ms_max;
    }

    /// Lets the other win until `until_ms`: a planned change.
    pub(crate) fn yielding(self, until_ms: u64) -> Self {
        Self {
            yields_until_ms: until_ms,
            ..self
        }
    }

    /// The other will not come: asks as soon as it may.
    pub(crate) fn wait_no_longer(&mut self) {
        self.yields_until_ms = 0;
    }

    /// Whether it may be dropped as if it had never begun: nothing was asked, and nobody has won.
    pub(crate) fn can_cancel(&self) -> bool {
        matches!(self.step, Step::Reading) && self.rival.is_none()
    }

    /// Whether what was asked was won, or may have been.
    pub(crate) fn may_have_won(&self) -> bool {
        matches!(self.step, Step::Asking | Step::Won(_) | Step::Declaring(_))
    }

    /// Whether what it asks for would follow this term of this store.
    pub(crate) fn asks_from(&self, term: Term, store: u128) -> bool {
        (self.term, self.store) == (term, store)
    }

    /// What is so of it between any two calls.
    pub(crate) fn assert_invariants(&self) {
        match &self.step {
            Step::Reading | Step::Asking | Step::Declaring(_) => {
                assert!(!self.asker.is_idle(), "who asks nothing waits for ever");
            }
            Step::Over | Step::Alarmed(_) => assert!(self.asker.is_idle(), "nothing is left to be asked"),
            Step::Won(_) => {}
        }
        if let Step::Won(won) | Step::Declaring(won) = &self.step {
            assert_eq!(
                (won.phase, &won.owner),
                (Phase::Won, &self.me),
                "the win is this side's"
            );
            assert_eq!(
                (won.base, won.store),
                (self.term, self.store),
                "it follows the last commit"
            );
            assert!(won.term > self.term, "a win begins a term");
        }
        if let Some(Rival { record, .. }) = &self.rival {
            assert_eq!(
                (record.phase, Some(&record.owner)),
                (Phase::Won, self.other.as_ref())
            );
            assert_eq!(record.base, self.term, "a rival has won against the same pair");
        }
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        self.asker.deadline()
    }

    pub(crate) fn poll(&mut self, now_ms: u64, next_id: &mut AskId) -> Option<(AskId, ArbiterRequest)> {
        let (id, request) = self.asker.poll(now_ms, next_id)?;
        // Asked again, it may have been carried out the first time.
        if let ArbiterRequest::Swap { new, .. } = &request
            && self.asked.as_ref().is_none_or(|(asked, _)| asked != new)
        {
            self.asked = Some((new.clone(), now_ms));
        }
        Some((id, request))
    }

    /// Whether nothing is being asked.
    pub(crate) fn is_idle(&self) -> bool {
        self.asker.is_idle()
    }

    /// Until when a fence may strike under the won record, in milliseconds of this side's clock; `None`:
    /// there must not be any.
    pub(crate) fn strikes_until_ms(&self) -> Option<u64> {
        let Step::Won(won) = &self.step else { return None };
        let (_, asked_ms) = self.asked.as_ref().filter(|(asked, _)| asked == won)?;
        (won.work.fence_ms_max > 0).then_some(asked_ms + won.work.fence_ms_max)
    }

    /// Says over the won record what this side does now; the ruling is [`Ruling::Won`] again if the win still
    /// stood.
    pub(crate) fn renew(&mut self, gets_on: bool, fence_ms_max: u64) {
        let Step::Won(won) = &self.step else { return };
        let work = Work {
            number: won.work.number + 1,
            beat: won.work.beat + u64::from(gets_on),
            fence_ms_max,
        };
        let new = Record { work, ..won.clone() };
        self.asker = Asker::swap(Some(won.clone()), new);
    }

    /// The term that is won, as long as that stands.
    pub(crate) fn won_term(&self) -> Option<Term> {
        match &self.step {
            Step::Won(record) | Step::Declaring(record) => Some(record.term),
            _ => None,
        }
    }

    /// What it waits for, in words.
    pub(crate) fn waiting(&self) -> String {
        let trouble = self
            .asker
            .trouble()
            .map(|text| format!(" (the arbiter: {text})"))
            .unwrap_or_default();
        match (&self.step, self.rival.as_ref().map(|rival| &rival.record)) {
            (Step::Alarmed(reason), _) => format!("the arbiter cannot be trusted: {reason}"),
            (Step::Reading, Some(won)) if won.work.fence_ms_max > 0 => {
                format!(
                    "{} has won the VM, and may fence this host for {} ms yet{trouble}",
                    won.owner, won.work.fence_ms_max
                )
            }
            (Step::Reading, Some(won)) => {
                format!("{} has won the VM and does not act yet{trouble}", won.owner)
            }
            (Step::Reading, None) if self.yields_until_ms > 0 => {
                format!("waiting for the other to go on{trouble}")
            }
            (Step::Reading, None) => format!("reading the arbiter's record{trouble}"),
            (Step::Asking, _) => format!("asking the arbiter for the VM{trouble}"),
            (Step::Won(record), _) => format!("term {} is won, getting ready to act", record.term),
            (Step::Declaring(_), _) => format!("telling the arbiter{trouble}"),
            (Step::Over, _) => "nothing".to_owned(),
        }
    }

    /// Writes `Acting`, or `Stopped` over the won term.
    pub(crate) fn declare(&mut self, phase: Phase) {
        let Step::Won(won) = &self.step else { return };
        let new = Record {
            base: won.term,
            peer: None,
            phase,
            work: Work::default(),
            ..won.clone()
        };
        self.asker = Asker::swap(Some(won.clone()), new);
        self.step = Step::Declaring(won.clone());
    }

    /// Asks under another store's record, as long as nothing was asked.
    pub(crate) fn follow(&mut self, store: u128) {
        if matches!(self.step, Step::Reading) {
            self.store = store;
        }
    }

    /// Looks whether the won term still stands; the ruling is [`Ruling::Won`] again if it does.
    pub(crate) fn confirm(&mut self, now_ms: u64) {
        if !matches!(self.step, Step::Alarmed(_)) {
            self.asker = Asker::read(now_ms);
        }
    }

    pub(crate) fn answer(
        &mut self,
        now_ms: u64,
        timing: &Timing,
        id: AskId,
        answer: &ArbiterAnswer,
    ) -> Ruling {
        let Some(verdict) = self.asker.answer(now_ms, timing.ask_retry_ms, id, answer) else {
            return Ruling::Open;
        };
        match verdict {
            Verdict::Read(found) | Verdict::Lost(found) => self.judge(now_ms, timing, found),
            Verdict::Done(record) => self.done(record),
            Verdict::NotDone(_) => {
                match &self.step {
                    Step::Declaring(won) => self.step = Step::Won(won.clone()),
                    Step::Won(_) => {}
                    _ => self.step = Step::Reading,
                }
                self.asker = Asker::read(now_ms + timing.ask_retry_ms);
                Ruling::Open
            }
        }
    }

    fn done(&mut self, record: Record) -> Ruling {
        if record.phase == Phase::Won {
            self.step = Step::Won(record);
            self.rival = None;
            return Ruling::Won;
        }
        self.step = Step::Over;
        Ruling::Settled(record)
    }

    /// What a member of the pair of `self.term` may do about the record that stands there.
    fn judge(&mut self, now_ms: u64, timing: &Timing, found: Option<Record>) -> Ruling {
        let Some(record) = found else {
            return self.alarm("it has lost the record".to_owned());
        };
        if record.store != self.store {
            return self.alarm("it is another store than the one this VM was started with".to_owned());
        }
        if let Step::Won(won) = &self.step
            && *won == record
        {
            return Ruling::Won;
        }
        self.step = Step::Reading;
        if fault(Fault::AskWithReadTerm) && record.phase == Phase::Acting {
            return self.ask_from(record);
        }
        if record.term == self.term && record.phase == Phase::Acting && self.are_members(&record) {
            if now_ms < self.yields_until_ms {
                self.asker = Asker::read(now_ms + timing.ask_retry_ms);
                return Ruling::Open;
            }
            return self.ask_from(record);
        }
        if record.term > self.term
            && record.phase == Phase::Won
            && (record.owner == self.me || !fault(Fault::ForgetAtWon))
            && record.base == self.term
            && self.are_members(&record)
        {
            return self.judge_win(now_ms, timing, record);
        }
        if record.term >= self.term {
            self.step = Step::Over;
            return Ruling::Lost(record);
        }
        // The first sync of a pair is committed under the term that the pair is to have:
        // it may not be written yet.
        if record.term + 1 == self.term && record.peer.is_none() && Some(&record.owner) == self.other.as_ref()
        {
            self.asker = Asker::read(now_ms + timing.ask_retry_ms);
            return Ruling::Open;
        }
        self.alarm(format!(
            "it went back to term {}, after term {}",
            record.term, self.term
        ))
    }

    fn judge_win(&mut self, now_ms: u64, timing: &Timing, record: Record) -> Ruling {
        if record.owner == self.me {
            return self.done(record);
        }
        let rival = Rival::seen(self.rival.as_ref(), record.clone(), now_ms);
        let stalls_ms = rival.stalls_ms(timing);
        self.rival = Some(rival);
        if now_ms >= stalls_ms {
            return self.ask_from(record);
        }
        self.asker = Asker::read(now_ms + timing.ask_retry_ms);
        Ruling::Rival
    }

    fn ask_from(&mut self, expected: Record) -> Ruling {
        let term = expected.term + 1;
        let new = match self.goal {
            Goal::Rule => Record {
                term,
                base: self.term,
                owner: self.me.clone(),
                peer: self.other.clone(),
                phase: Phase::Won,
                work: Work {
                    fence_ms_max: self.fence_ms_max,
                    ..Work::default()
                },
                ..expected.clone()
            },
            Goal::Stop => Record {
                term,
                base: term,
                owner: self.me.clone(),
                peer: None,
                phase: Phase::Stopped,
                work: Work::default(),
                ..expected.clone()
            },
        };
        self.asker = Asker::swap(Some(expected), new);
        self.step = Step::Asking;
        Ruling::Open
    }

    fn alarm(&mut self, reason: String) -> Ruling {
        self.asker = Asker::idle();
        self.step = Step::Alarmed(reason.clone());
        Ruling::Alarm(reason)
    }

    /// Whether exactly the two sides of this contest stand in the record, in whatever order.
    fn are_members(&self, record: &Record) -> bool {
        let (owner, peer) = (Some(&record.owner), record.peer.as_ref());
        let (me, other) = (Some(&self.me), self.other.as_ref());
        (owner == me && peer == other)
            || (owner == other && peer == me)
            || (fault(Fault::AskUnrecorded) && record.peer.is_some())
    }
}

#[cfg(test)]
#[path = "contest_test.rs"]
mod tests;
