//! The arbiter may take long to answer, so it is asked on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::step::step;
use crate::arbiter::CALLS;
use crate::config::ArbiterKind;
use anyhow::Context;
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};
use kemari_vmm::confine;

/// Names a request to the arbiter.
pub type AskId = u64;

/// What is called with each answer, on the arbiter's thread.
type Answer = Arc<dyn Fn(AskId, ArbiterAnswer) + Send + Sync>;

// Few at a time: a box would save nothing.
#[expect(clippy::large_enum_variant)]
enum Order {
    Ask(AskId, ArbiterRequest, Answer),
    Assume(Record),
}

/// The way to the arbiter. Requests are carried out one after the other, by one client for the life of the
/// process: a side that has just won goes on with the client that won, and needs nothing anew.
pub struct ArbiterThread {
    requests: Sender<Order>,
}

impl ArbiterThread {
    /// Starts the thread.
    pub fn start(mut arbiter: Box<dyn Arbiter>) -> anyhow::Result<Self> {
        let (requests, receiver) = channel::<Order>();
        thread::Builder::new()
            .name("arbiter".into())
            .spawn(move || {
                confine::thread(&CALLS);
                for order in receiver {
                    match order {
                        Order::Ask(ask, request, answer) => {
                            let reply = execute(&mut *arbiter, &request);
                            tracing::debug!(ask, ?request, ?reply, "arbiter");
                            answer(ask, reply);
                        }
                        Order::Assume(record) => arbiter.assume(&record),
                    }
                }
            })
            .context("cannot start the arbiter's thread")?;
        Ok(Self { requests })
    }

    /// For one role of this process: `answer` is called with the answers to what that role asks,
    /// and with no other.
    pub fn asker(&self, answer: impl Fn(AskId, ArbiterAnswer) + Send + Sync + 'static) -> Asker {
        Asker {
            requests: self.requests.clone(),
            answer: Arc::new(answer),
        }
    }
}

/// Asks the arbiter for one role.
pub struct Asker {
    requests: Sender<Order>,
    answer: Answer,
}

impl Asker {
    /// Asks.
    pub fn ask(&self, ask: AskId, request: ArbiterRequest) {
        // The thread lives as long as this sender.
        let _ = self.requests.send(Order::Ask(ask, request, self.answer.clone()));
    }

    /// What the record must be, for an arbiter that has no store. What is asked later knows it.
    pub fn assume(&self, record: Record) {
        let _ = self.requests.send(Order::Assume(record));
    }
}

fn execute(arbiter: &mut dyn Arbiter, request: &ArbiterRequest) -> ArbiterAnswer {
    let asked = match request {
        ArbiterRequest::Read => "its record".to_owned(),
        ArbiterRequest::Swap { new, .. } => format!("{:?}", new.phase),
    };
    step(format_args!("ask the arbiter for {asked}"), || {
        Ok(arbiter.execute(request))
    })
    .unwrap_or_else(|error| ArbiterAnswer::Unknown(format!("{error:#}")))
}

/// An answer as a sentence for people.
pub fn describe(kind: ArbiterKind, answer: &ArbiterAnswer) -> String {
    let said = said(answer);
    match kind {
        ArbiterKind::None => format!("{NO_ARBITER}; as far as this host knows: {said}"),
        ArbiterKind::Etcd | ArbiterKind::File => said,
    }
}

/// The loud words, for the status.
pub const NO_ARBITER: &str =
    "there is none: a silent host counts as dead, and two that lose sight of each other BOTH run the VM";

fn said(answer: &ArbiterAnswer) -> String {
    match answer {
        ArbiterAnswer::Record(None) => "it has no record of this VM".into(),
        ArbiterAnswer::Record(Some(record)) => {
            format!(
                "term {} belongs to {} ({:?})",
                record.term, record.owner, record.phase
            )
        }
        ArbiterAnswer::Swapped => "it recorded what this side asked for".into(),
        ArbiterAnswer::Conflict(Some(record)) => {
            format!(
                "it refused: term {} belongs to {} ({:?})",
                record.term, record.owner, record.phase
            )
        }
        ArbiterAnswer::Conflict(None) => "it refused: it has no record of this VM".into(),
        ArbiterAnswer::Unknown(reason) => format!("its answer is not known: {reason}"),
        ArbiterAnswer::Unavailable(reason) => format!("it cannot be asked: {reason}"),
    }
}
