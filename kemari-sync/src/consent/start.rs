//! The cold boot: a term is won before a VM runs, so that it never runs twice.

use crate::faults::{Fault, fault};
use crate::record::{ArbiterAnswer, ArbiterRequest, Incarnation, Phase, Record, Term};
use crate::replica::{DiskOffer, may_start};

use super::ask::{AskId, Asker, Verdict};

/// How often the arbiter is asked before a start is given up.
const TRIES_MAX: u32 = 10;

/// What a cold boot knows beforehand.
#[derive(Clone, Debug, Hash)]
pub struct StartConfig {
    /// This process.
    pub me: Incarnation,
    /// The VM's name.
    pub vm: String,
    /// Store id to write if there is no record yet: drawn at random.
    pub store: u128,
    /// The operator's word that whoever holds this term is dead and stays so. It must be the record's term.
    pub assert_dead: Option<Term>,
    /// Proof, by a lock that lives as long as its process, that no older process of this host runs the VM.
    pub alone_on_host: bool,
    /// Pause between two questions, in milliseconds.
    pub ask_retry_ms: u64,
    /// The images of the replicated disks here: the VM is started only from those that were written last.
    pub images: Vec<DiskOffer>,
    /// The operator's word that these images are the right ones, whatever their records say.
    pub adopt_images: bool,
}

/// What the recorded peer's host says it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerWord {
    /// It was reached, and holds no state of this VM.
    HoldsNothing,
    /// It was reached, and holds a commit; the text says of which term and epoch.
    Holds(String),
    /// It was not reached.
    Silent(String),
}

/// What happened to a [`Start`].
#[derive(Clone, Debug)]
pub enum StartEvent {
    /// Time passed.
    Tick,
    /// The arbiter's answer.
    Arbiter {
        /// Which request.
        ask: AskId,
        /// Its answer.
        answer: ArbiterAnswer,
    },
    /// The answer to [`StartAction::AskPeer`].
    Peer(PeerWord),
}

/// What a [`Start`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartAction {
    /// Ask the arbiter.
    Ask {
        /// Names the request.
        ask: AskId,
        /// What to ask.
        request: ArbiterRequest,
    },
    /// Ask the secondary on this host whether it holds anything of the VM; answer with [`StartEvent::Peer`].
    AskPeer(Incarnation),
    /// The term is won: the VM may run, with the right to act alone under this record.
    Run(Record),
    /// The VM may not be started here: a sentence that says why, and what to do.
    Refuse(String),
    /// For humans: what is waited for.
    Report(String),
}

/// Decides whether a VM may be booted here. Ends with [`StartAction::Run`] or [`StartAction::Refuse`].
#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub struct Start {
    config: StartConfig,
    asker: Asker,
    next_ask: AskId,
    tries: u32,
    /// The record whose peer is being asked for its word.
    awaiting_word: Option<Record>,
    /// The record under which a fence may strike this host, and until when, in milliseconds.
    strikes: Option<(Record, u64)>,
    over: bool,
}

impl Start {
    /// Begins by reading the record, at the first event.
    pub fn new(config: StartConfig) -> Self {
        Self {
            config,
            asker: Asker::read(0),
            next_ask: 1,
            tries: 0,
            awaiting_word: None,
            strikes: None,
            over: false,
        }
    }

    /// For the exploration: questions are numbered from here on.
    #[cfg(feature = "sim")]
    pub(crate) fn renumber(&mut self, next_ask: AskId) {
        self.next_ask = next_ask;
    }

    /// When the next [`StartEvent::Tick`] is due, in milliseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.over { None } else { self.asker.deadline() }
    }

    /// Takes one event.
    pub fn handle(&mut self, now_ms: u64, event: StartEvent, actions: &mut Vec<StartAction>) {
        match event {
            _ if self.over => return,
            StartEvent::Tick => {}
            StartEvent::Arbiter { ask, answer } => self.on_answer(now_ms, ask, &answer, actions),
            StartEvent::Peer(word) => self.on_word(now_ms, word, actions),
        }
        if !self.over
            && let Some((ask, request)) = self.asker.poll(now_ms, &mut self.next_ask)
        {
            self.tries += 1;
            actions.push(StartAction::Ask { ask, request });
        }
    }

    fn on_answer(&mut self, now_ms: u64, ask: AskId, answer: &ArbiterAnswer, actions: &mut Vec<StartAction>) {
        match self.asker.answer(now_ms, self.config.ask_retry_ms, ask, answer) {
            Some(Verdict::Read(found)) => self.judge(now_ms, found, actions),
            Some(Verdict::Done(record)) => self.end(StartAction::Run(record), actions),
            Some(Verdict::Lost(found)) => {
                let winner = found
                    .map(|record| record.owner.to_string())
                    .unwrap_or_else(|| "nobody".to_owned());
                let text = format!(
                    "the record of VM {} changed while it was being started: it now belongs to {winner}; \
                     if that is dead, start again",
                    self.config.vm
                );
                self.end(StartAction::Refuse(text), actions);
            }
            Some(Verdict::NotDone(_)) => self.asker = Asker::read(now_ms + self.config.ask_retry_ms),
            None => {}
        }
        if !self.over && self.tries >= TRIES_MAX {
            self.give_up(actions);
        }
    }

    fn give_up(&mut self, actions: &mut Vec<StartAction>) {
        let trouble = self.asker.trouble().unwrap_or("no answer").to_owned();
        // A swap without an answer may yet be carried out; whoever starts next finds a record of a dead
        // process.
        let text = format!(
            "the arbiter does not answer ({trouble}), so VM {} cannot be started safely; check the arbiter",
            self.config.vm
        );
        self.end(StartAction::Refuse(text), actions);
    }

    fn judge(&mut self, now_ms: u64, found: Option<Record>, actions: &mut Vec<StartAction>) {
        let is_foreign = found.as_ref().is_some_and(|record| record.vm != self.config.vm);
        let images = may_start(
            &self.config.images,
            &self.config.me.host,
            found.as_ref(),
            self.config.adopt_images,
        );
        if let (Err(reason), false) = (images, is_foreign || fault(Fault::StartFromAnyImage)) {
            return self.end(StartAction::Refuse(reason), actions);
        }
        let Some(record) = found else {
            let new = self.my_record(1, self.config.store);
            self.asker = Asker::swap(None, new);
            return;
        };
        if record.vm != self.config.vm {
            let text = format!(
                "the record is of VM {}, not of {}: check the arbiter",
                record.vm, self.config.vm
            );
            return self.end(StartAction::Refuse(text), actions);
        }
        if record.phase == Phase::Stopped || self.config.assert_dead == Some(record.term) {
            return self.take(now_ms, record, actions);
        }
        if let Some(term) = self.config.assert_dead {
            let text = format!(
                "the record's term is {}, not {term}: look again who holds the VM before asserting that it \
                 is dead",
                record.term
            );
            return self.end(StartAction::Refuse(text), actions);
        }
        if record.owner.host != self.config.me.host || !self.config.alone_on_host {
            let text = format!(
                "VM {} belongs to {} (term {}); if it runs there, say `kemari secondary` here; if that is \
                 dead for good, assert it by --assert-dead {}",
                self.config.vm, record.owner, record.term, record.term
            );
            return self.end(StartAction::Refuse(text), actions);
        }
        match record.peer.clone() {
            Some(peer) if !fault(Fault::ColdBootOverPeer) => {
                self.awaiting_word = Some(record);
                actions.push(StartAction::AskPeer(peer));
            }
            _ => self.take(now_ms, record, actions),
        }
    }

    /// Whether a fence of the record's owner may still strike. The record is then read again when it is over:
    /// a host that is struck now may be the one that goes on next.
    fn waits_for_fence(&mut self, now_ms: u64, record: &Record, actions: &mut Vec<StartAction>) -> bool {
        let for_ms = record.strikes_for_ms();
        if for_ms == 0 || fault(Fault::BootUnderFence) {
            return false;
        }
        let same = self.strikes.as_ref().filter(|(seen, _)| seen == record);
        let until_ms = same.map_or(now_ms.saturating_add(for_ms), |(_, until_ms)| *until_ms);
        if now_ms >= until_ms {
            return false;
        }
        if same.is_none() {
            actions.push(StartAction::Report(format!(
                "{} has won the VM and may have begun to fence: the VM is booted when that is over, in \
                 {for_ms} ms",
                record.owner
            )));
        }
        self.strikes = Some((record.clone(), until_ms));
        self.tries = 0;
        self.asker = Asker::read(until_ms);
        true
    }

    fn on_word(&mut self, now_ms: u64, word: PeerWord, actions: &mut Vec<StartAction>) {
        let Some(record) = self.awaiting_word.take() else {
            return;
        };
        let peer = record
            .peer
            .as_ref()
            .map(|peer| peer.host.clone())
            .unwrap_or_default();
        let term = record.term;
        let what = match word {
            PeerWord::HoldsNothing => return self.take(now_ms, record, actions),
            PeerWord::Holds(what) => format!("{peer} holds {what}: let it take over"),
            PeerWord::Silent(why) => format!("{peer}, which may hold a newer state, is not reached ({why})"),
        };
        let text = format!(
            "VM {} was protected when it ended here, and {what}; \
             if that state is to be given up for good, assert that term {term} is dead",
            self.config.vm
        );
        self.end(StartAction::Refuse(text), actions);
    }

    fn take(&mut self, now_ms: u64, record: Record, actions: &mut Vec<StartAction>) {
        if self.waits_for_fence(now_ms, &record, actions) {
            return;
        }
        let new = self.my_record(record.term + 1, record.store);
        self.tries = 0;
        self.asker = Asker::swap(Some(record), new);
    }

    fn my_record(&self, term: Term, store: u128) -> Record {
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

    fn end(&mut self, action: StartAction, actions: &mut Vec<StartAction>) {
        self.over = true;
        actions.push(action);
    }
}

#[cfg(test)]
#[path = "start_test.rs"]
mod tests;
