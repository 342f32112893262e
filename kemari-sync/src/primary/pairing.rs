//! From alone to a pair: the first sync, and the record that makes its ack count.
//!
//! The right to act alone ends at the first capture. It comes back only if the pair was certainly never
//! recorded.

use crate::consent::AskId;
use crate::consent::ask::{Asker, Verdict};
use crate::faults::{Fault, fault};
use crate::record::{ArbiterAnswer, Record};
use crate::wire::{Goodbye, Message, reason_text};

use super::session::Stage;
use super::{Actions, Primary, PrimaryAction, Standing};

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Pairing {
    /// The record to be.
    pub(super) new: Record,
    /// Once the secondary has committed the first sync: the swap.
    pub(super) asker: Option<Asker>,
    /// What was said last of a store that does not know the record.
    doubt: Option<String>,
}

/// Why a VM halts that is somebody else's.
pub(super) const PASSED: &str = "the arbiter's record has passed to another";

/// What the arbiter's record says to a side that is alone.
pub(super) enum Sight {
    /// It is this side's own.
    Mine,
    /// Another has the VM.
    Passed,
    /// Nothing about the VM: the store contradicts what is known of it, in these words.
    Doubt(String),
}

impl Primary {
    pub(super) fn sight(&self, found: Option<&Record>) -> Sight {
        let mine = &self.record;
        match found {
            Some(record) if record == mine => Sight::Mine,
            None => Sight::Doubt("the arbiter has lost the VM's record".to_owned()),
            Some(record) if record.store != mine.store => Sight::Doubt(
                "the arbiter's record is of another store than the one this VM was started with".to_owned(),
            ),
            Some(record) if record.term < mine.term => Sight::Doubt(format!(
                "the arbiter's record went back to term {}, after term {}",
                record.term, mine.term
            )),
            Some(_) => Sight::Passed,
        }
    }

    pub(super) fn begin_pairing(&mut self, actions: &mut Actions) {
        let peer = self.session.as_ref().and_then(|session| session.peer.clone());
        let term = self.record.term + 1;
        let new = Record {
            term,
            base: term,
            peer,
            ..self.record.clone()
        };
        self.standing = Standing::Pairing(Pairing {
            new,
            asker: None,
            doubt: None,
        });
        self.acked = None;
        self.capture(actions);
    }

    pub(super) fn pairing_deadline(&self) -> Option<u64> {
        match &self.standing {
            Standing::Pairing(Pairing {
                asker: Some(asker), ..
            }) => asker.deadline(),
            Standing::Pairing(_) => self
                .sync
                .as_ref()
                .map(|sync| sync.since_ms + self.config.timing.progress_ms),
            _ => None,
        }
    }

    /// The secondary has committed the first sync: now the pair is recorded.
    pub(super) fn record_pair(&mut self) {
        let Standing::Pairing(pairing) = &mut self.standing else {
            return;
        };
        if fault(Fault::PairUnrecorded) {
            self.record = pairing.new.clone();
            self.standing = Standing::Paired;
        } else {
            pairing.asker = Some(Asker::swap(Some(self.record.clone()), pairing.new.clone()));
        }
    }

    /// The pair to be is about to be given up without its first ack. The secondary may have committed all the
    /// same, and where nobody keeps a record for both it would go on by that.
    pub(super) fn tell_unpaired(&self, reason: &str, actions: &mut Actions) {
        if matches!(&self.standing, Standing::Pairing(pairing) if pairing.asker.is_none()) {
            self.send(Message::Goodbye(Goodbye::Alone(reason_text(reason))), actions);
        }
    }

    /// Gives up a pair that was certainly never recorded.
    pub(super) fn abandon_pairing(&mut self, reason: &str, actions: &mut Actions) {
        self.tell_unpaired(reason, actions);
        self.standing = Standing::Alone;
        self.note_futile(reason);
        self.dirty_limit = false;
        actions.push(PrimaryAction::Report(format!(
            "the VM runs on unprotected: {reason}"
        )));
        self.give_back_sync(actions);
        self.close(reason, actions);
        actions.push(PrimaryAction::OpenGate);
        self.resume(actions);
    }

    pub(super) fn on_answer(&mut self, ask: AskId, answer: &ArbiterAnswer, actions: &mut Actions) {
        let (now_ms, retry_ms) = (self.now_ms, self.config.timing.ask_retry_ms);
        self.on_parting_answer(ask, answer, actions);
        self.on_adoption_answer(ask, answer, actions);
        if let Standing::Pairing(Pairing {
            asker: Some(asker), ..
        }) = &mut self.standing
        {
            let was_uncertain = asker.is_uncertain();
            if let Some(verdict) = asker.answer(now_ms, retry_ms, ask, answer) {
                self.on_pair_verdict(verdict, was_uncertain, actions);
            }
        }
        let stage = self.session.as_mut().map(|session| &mut session.stage);
        if let Some(Stage::Verifying(asker) | Stage::Confirming { asker, .. }) = stage
            && let Some(Verdict::Read(found)) = asker.answer(now_ms, retry_ms, ask, answer)
        {
            self.on_record_read(found.as_ref(), actions);
        }
    }

    fn on_pair_verdict(&mut self, verdict: Verdict, was_uncertain: bool, actions: &mut Actions) {
        match verdict {
            Verdict::Done(record) => {
                self.record = record;
                self.standing = Standing::Paired;
                self.note_paired();
                self.note_disks_paired();
                if self.session.is_none() {
                    self.lost_since_ms = Some(self.now_ms);
                }
                actions.push(PrimaryAction::Report(format!(
                    "the VM is protected, in term {}",
                    self.record.term
                )));
                self.release_sync(actions);
            }
            Verdict::NotDone(reason) => {
                self.abandon_pairing(&format!("the arbiter did not record the pair: {reason}"), actions);
            }
            Verdict::Lost(found) | Verdict::Read(found) => match self.sight(found.as_ref()) {
                Sight::Passed => self.halt(PASSED, actions),
                Sight::Doubt(doubt) if was_uncertain => self.doubt_pair(doubt, actions),
                // It was refused, so that the pair is recorded nowhere.
                Sight::Doubt(doubt) => self.abandon_pairing(&doubt, actions),
                Sight::Mine => self.abandon_pairing("the arbiter did not record the pair", actions),
            },
        }
    }

    /// What became of the record of the pair is unknown, and this store does not know: another may, to which
    /// the secondary has a way. Nothing leaves before the record is seen again.
    fn doubt_pair(&mut self, doubt: String, actions: &mut Actions) {
        let Standing::Pairing(pairing) = &mut self.standing else {
            return;
        };
        let due_ms = self.now_ms + self.config.timing.ask_retry_ms;
        let asker = Asker::resolve(self.record.clone(), pairing.new.clone(), due_ms, doubt.clone());
        pairing.asker = Some(asker);
        if pairing.doubt.as_ref() != Some(&doubt) {
            actions.push(PrimaryAction::Report(format!(
                "whether the pair was recorded is unknown, and output waits until the store has the record \
                 again: {doubt}"
            )));
            pairing.doubt = Some(doubt);
        }
    }
}
