//! The arbiter may take long to answer, so it is asked on a thread of its own.

use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::Context;
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest};

/// Names a request to the arbiter.
pub type AskId = u64;

/// The way to the arbiter. Requests are carried out one after the other.
pub struct ArbiterThread {
    requests: Sender<(AskId, ArbiterRequest)>,
}

impl ArbiterThread {
    /// Starts the thread; `answer` is called on it with each answer.
    pub fn start(
        mut arbiter: Box<dyn Arbiter>,
        answer: impl Fn(AskId, ArbiterAnswer) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (requests, receiver) = channel::<(AskId, ArbiterRequest)>();
        thread::Builder::new()
            .name("arbiter".into())
            .spawn(move || {
                for (ask, request) in receiver {
                    let reply = arbiter.execute(&request);
                    tracing::debug!(ask, ?request, ?reply, "arbiter");
                    answer(ask, reply);
                }
            })
            .context("cannot start the arbiter's thread")?;
        Ok(Self { requests })
    }

    /// Asks.
    pub fn ask(&self, ask: AskId, request: ArbiterRequest) {
        // The thread lives as long as this sender.
        let _ = self.requests.send((ask, request));
    }
}

/// An answer as a sentence for people.
pub fn describe(answer: &ArbiterAnswer) -> String {
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
