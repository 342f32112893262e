//! The operator gives the living VM its record back, after the arbiter's store has lost it or went back in
//! time.
//!
//! The record gets another store id. A pair's secondary must have committed a sync under that id before a
//! record of it stands anywhere: from then on it asks for the VM under that record only. So wherever the old
//! record may still be, or come back from (another store behind other endpoints, a mount that was missing),
//! nobody wins with it while this side rules with the new one. The term stays: nobody joins and nobody
//! leaves.
//!
//! That no third host runs the VM is the operator's word.

use crate::consent::AskId;
use crate::consent::ask::{Asker, Verdict};
use crate::record::{ArbiterAnswer, ArbiterRequest, Epoch, Record};

use super::{Actions, Primary, PrimaryAction, Standing};

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
enum Step {
    /// What stands in the store is looked at.
    Reading(Asker),
    /// The secondary is to commit this sync, or a later one.
    Agreeing { first: Epoch, expected: Option<Record> },
    /// The record is being written. What became of it must be certain before anything else is asked.
    Writing(Asker),
}

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Adoption {
    /// The id that the store is to have.
    store: u128,
    step: Step,
}

impl Adoption {
    pub(super) fn is_writing(&self) -> bool {
        matches!(self.step, Step::Writing(_))
    }

    fn asker(&mut self) -> Option<&mut Asker> {
        match &mut self.step {
            Step::Reading(asker) | Step::Writing(asker) => Some(asker),
            Step::Agreeing { .. } => None,
        }
    }

    pub(super) fn poll(&mut self, now_ms: u64, next_ask: &mut AskId) -> Option<(AskId, ArbiterRequest)> {
        self.asker()?.poll(now_ms, next_ask)
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        match &self.step {
            Step::Reading(asker) | Step::Writing(asker) => asker.deadline(),
            Step::Agreeing { .. } => None,
        }
    }
}

impl Primary {
    /// Why the record cannot be given back now; `None` if it can.
    fn refuses_adoption(&self) -> Option<&'static str> {
        match &self.standing {
            _ if self.stop.is_some() => Some("the VM is being stopped"),
            _ if self.switchover.is_some() => Some("a switchover is under way"),
            Standing::Over(_) => Some("the VM does not run here"),
            Standing::Pairing(_) => Some("the VM is just about to be protected: say it again in a moment"),
            Standing::Paired if self.parting.is_some() || !self.is_live() => Some(
                "the secondary is not connected, so it cannot agree, and it may be about to go on by itself: \
                 first mend the link, or stop the secondary for good and this VM as well",
            ),
            Standing::Paired | Standing::Alone => None,
        }
    }

    pub(super) fn on_adopt(&mut self, store: u128, actions: &mut Actions) {
        if self.adoption.is_some() {
            let text = "the record is being given back already".to_owned();
            return actions.push(PrimaryAction::Adopted(Err(text)));
        }
        match self.refuses_adoption() {
            Some(reason) => actions.push(PrimaryAction::Adopted(Err(reason.to_owned()))),
            None => {
                actions.push(PrimaryAction::TrustArbiter);
                let step = Step::Reading(Asker::read(self.now_ms));
                self.adoption = Some(Adoption { store, step });
            }
        }
    }

    /// Ends what has become impossible. What may have been written already is followed to its end.
    pub(super) fn check_adoption(&mut self, actions: &mut Actions) {
        let is_open = self
            .adoption
            .as_ref()
            .is_some_and(|adoption| !adoption.is_writing());
        if let Some(reason) = self.refuses_adoption().filter(|_| is_open) {
            self.end_adoption(Err(reason.to_owned()), actions);
        }
    }

    fn end_adoption(&mut self, outcome: Result<String, String>, actions: &mut Actions) {
        self.adoption = None;
        actions.push(PrimaryAction::Adopted(outcome));
    }

    /// Whether the record is being written, so that nothing else may be asked.
    pub(super) fn is_writing_record(&self) -> bool {
        self.adoption.as_ref().is_some_and(Adoption::is_writing)
    }

    /// Whether a sync is wanted so that the secondary agrees.
    pub(super) fn wants_agreement(&self) -> bool {
        matches!(
            self.adoption,
            Some(Adoption {
                step: Step::Agreeing { .. },
                ..
            })
        )
    }

    /// The store under which syncs are sent.
    pub(super) fn store_of_syncs(&self) -> u128 {
        match &self.adoption {
            Some(Adoption {
                store,
                step: Step::Agreeing { .. } | Step::Writing(_),
            }) => *store,
            _ => self.record.store,
        }
    }

    pub(super) fn on_adoption_answer(&mut self, ask: AskId, answer: &ArbiterAnswer, actions: &mut Actions) {
        let (now_ms, retry_ms) = (self.now_ms, self.config.timing.ask_retry_ms);
        let asker = self.adoption.as_mut().and_then(Adoption::asker);
        let Some(verdict) = asker.and_then(|asker| asker.answer(now_ms, retry_ms, ask, answer)) else {
            return;
        };
        match verdict {
            Verdict::Read(found) => self.on_store_read(found, actions),
            Verdict::Done(record) => {
                self.record = record;
                // What was to be asked meanwhile is asked of the new record.
                if let Some(parting) = &mut self.parting {
                    parting.contest.follow(self.record.store);
                }
                let text = format!(
                    "the arbiter has the VM's record again, in term {}",
                    self.record.term
                );
                // Its own end of a session was no attempt, and what failed for the lost record may succeed
                // now.
                self.forget_futile();
                self.end_adoption(Ok(text), actions);
            }
            Verdict::NotDone(reason) => {
                let text = format!("the arbiter did not take the record, so say it again: {reason}");
                self.end_adoption(Err(text), actions);
            }
            Verdict::Lost(found) => {
                let text = format!(
                    "somebody else wrote to the arbiter meanwhile: {}",
                    describe(found.as_ref())
                );
                self.end_adoption(Err(text), actions);
            }
        }
    }

    fn on_store_read(&mut self, found: Option<Record>, actions: &mut Actions) {
        if let Some(reason) = self.forbids_adoption(found.as_ref()) {
            return self.end_adoption(Err(reason), actions);
        }
        if matches!(self.standing, Standing::Alone) {
            // Whoever was about to become the secondary was told of the old record.
            self.close("the VM's record is being given back to the arbiter", actions);
            return self.write_record(found);
        }
        // The message that opens a sync may have gone ahead of it.
        let ahead = self.ahead.map_or(0, |epoch| epoch + 1);
        if let Some(adoption) = &mut self.adoption {
            adoption.step = Step::Agreeing {
                first: self.next_epoch.max(ahead),
                expected: found,
            };
        }
    }

    /// Only over nothing, or over an older record of this very VM's store.
    fn forbids_adoption(&self, found: Option<&Record>) -> Option<String> {
        let found = found?;
        if *found == self.record {
            return Some("the arbiter has this VM's record: there is nothing to give back".to_owned());
        }
        let is_older =
            found.vm == self.record.vm && found.store == self.record.store && found.term < self.record.term;
        (!is_older).then(|| {
            format!(
                "the arbiter has a record that is no older one of this VM's: {}. Somebody may run the VM \
                 under it: find out who, and keep the right one",
                describe(Some(found))
            )
        })
    }

    /// The secondary has committed this sync.
    pub(super) fn note_agreement(&mut self, epoch: Epoch) {
        let agreed = match &self.adoption {
            Some(Adoption {
                step: Step::Agreeing { first, expected },
                ..
            }) if epoch >= *first => expected.clone(),
            _ => return,
        };
        self.write_record(agreed);
    }

    fn write_record(&mut self, expected: Option<Record>) {
        let Some(adoption) = &mut self.adoption else {
            return;
        };
        let new = Record {
            store: adoption.store,
            ..self.record.clone()
        };
        adoption.step = Step::Writing(Asker::swap(expected, new));
    }
}

fn describe(record: Option<&Record>) -> String {
    match record {
        None => "nothing stands there".to_owned(),
        Some(record) => format!("term {} of {} ({:?})", record.term, record.owner, record.phase),
    }
}
