//! One question to the arbiter, followed until its outcome is certain.
//!
//! A compare-and-set without an answer may have been carried out, or may still be. It is resolved by reading
//! back: if the new record stands there, it was done; if the expected one does, the same compare-and-set is
//! asked again. That is safe, because no record ever comes back: terms only grow, phases within a term only
//! advance, and so does what a winner says of its work.

use crate::faults::{Fault, fault};
use crate::record::{ArbiterAnswer, ArbiterRequest, Record};

/// Names one request to the arbiter, to match its answer. Never used twice by one state machine.
pub type AskId = u64;

/// What an ask came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This is the record.
    Read(Option<Record>),
    /// The swap was carried out: this is the record now.
    Done(Record),
    /// The swap will never be carried out: this stands there instead.
    Lost(Option<Record>),
    /// The swap was certainly not carried out, and the arbiter did not say what stands there.
    NotDone(String),
}

// There is one a side: a box would save nothing.
#[expect(clippy::large_enum_variant)]
#[derive(Clone, Debug, Hash)]
enum Job {
    Idle,
    Read,
    Swap {
        expected: Option<Record>,
        new: Record,
        uncertain: bool,
        read_back: bool,
    },
}

/// Asks one thing at a time.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Asker {
    job: Job,
    outstanding: Option<AskId>,
    due_ms: u64,
    trouble: Option<String>,
}

impl Asker {
    pub(crate) fn idle() -> Self {
        Self {
            job: Job::Idle,
            outstanding: None,
            due_ms: 0,
            trouble: None,
        }
    }

    /// Asks for the record at `due_ms`; repeated until there is an answer.
    pub(crate) fn read(due_ms: u64) -> Self {
        Self {
            job: Job::Read,
            due_ms,
            ..Self::idle()
        }
    }

    pub(crate) fn swap(expected: Option<Record>, new: Record) -> Self {
        Self {
            job: Job::Swap {
                expected,
                new,
                uncertain: false,
                read_back: false,
            },
            ..Self::idle()
        }
    }

    /// Goes on with a swap from `expected` that may have been carried out:
    /// reads at `due_ms` what became of it.
    pub(crate) fn resolve(expected: Record, new: Record, due_ms: u64, trouble: String) -> Self {
        Self {
            job: Job::Swap {
                expected: Some(expected),
                new,
                uncertain: true,
                read_back: true,
            },
            due_ms,
            trouble: Some(trouble),
            ..Self::idle()
        }
    }

    /// Whether a swap that was asked for may have been carried out, or may yet be.
    pub(crate) fn is_uncertain(&self) -> bool {
        matches!(self.job, Job::Swap { uncertain: true, .. })
    }

    /// Why there is no answer yet, as the arbiter's adapter said it.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.job, Job::Idle)
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        (!self.is_idle() && self.outstanding.is_none()).then_some(self.due_ms)
    }

    /// The request to hand out now, if any.
    pub(crate) fn poll(&mut self, now_ms: u64, next_id: &mut AskId) -> Option<(AskId, ArbiterRequest)> {
        if self.deadline().is_none_or(|due_ms| now_ms < due_ms) {
            return None;
        }
        let request = match &self.job {
            Job::Idle => return None,
            Job::Read | Job::Swap { read_back: true, .. } => ArbiterRequest::Read,
            Job::Swap { expected, new, .. } => ArbiterRequest::Swap {
                expected: expected.clone(),
                new: new.clone(),
            },
        };
        let id = *next_id;
        *next_id += 1;
        self.outstanding = Some(id);
        Some((id, request))
    }

    /// Takes an answer; answers to anything but the outstanding request are ignored.
    pub(crate) fn answer(
        &mut self,
        now_ms: u64,
        retry_ms: u64,
        id: AskId,
        answer: &ArbiterAnswer,
    ) -> Option<Verdict> {
        if self.outstanding != Some(id) {
            return None;
        }
        self.outstanding = None;
        self.due_ms = now_ms;
        let verdict = match (&mut self.job, answer) {
            (Job::Idle, _) => None,
            (Job::Read, ArbiterAnswer::Record(record)) => Some(Verdict::Read(record.clone())),
            (Job::Swap { new, .. }, ArbiterAnswer::Swapped) => Some(Verdict::Done(new.clone())),
            (Job::Swap { new, .. }, ArbiterAnswer::Conflict(found)) => Some(settled(new, found)),
            (
                Job::Swap {
                    expected,
                    new,
                    read_back,
                    ..
                },
                ArbiterAnswer::Record(found),
            ) => {
                *read_back = false;
                // Still as before: the unanswered swap may yet be carried out.
                // Only another answer settles it.
                if found == expected {
                    None
                } else {
                    Some(settled(new, found))
                }
            }
            (Job::Swap { uncertain: false, .. }, ArbiterAnswer::Unavailable(reason)) => {
                Some(Verdict::NotDone(reason.clone()))
            }
            (Job::Swap { .. }, ArbiterAnswer::Unknown(reason)) if fault(Fault::IgnoreUnresolvedAsk) => {
                Some(Verdict::NotDone(reason.clone()))
            }
            (
                Job::Swap {
                    uncertain, read_back, ..
                },
                ArbiterAnswer::Unknown(reason),
            ) => {
                (*uncertain, *read_back) = (true, true);
                self.retry_later(now_ms, retry_ms, reason);
                None
            }
            (_, ArbiterAnswer::Unknown(reason) | ArbiterAnswer::Unavailable(reason)) => {
                self.retry_later(now_ms, retry_ms, reason);
                None
            }
            (Job::Read, ArbiterAnswer::Swapped | ArbiterAnswer::Conflict(_)) => {
                self.retry_later(now_ms, retry_ms, "it answered a question that was not asked");
                None
            }
        };
        if verdict.is_some() {
            *self = Self::idle();
        }
        verdict
    }

    fn retry_later(&mut self, now_ms: u64, retry_ms: u64, reason: &str) {
        self.due_ms = now_ms + retry_ms;
        self.trouble = Some(reason.to_owned());
    }
}

fn settled(new: &Record, found: &Option<Record>) -> Verdict {
    match found {
        Some(record) if record == new => Verdict::Done(record.clone()),
        other => Verdict::Lost(other.clone()),
    }
}

#[cfg(test)]
#[path = "ask_test.rs"]
mod tests;
