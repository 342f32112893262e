//! The arbiter may take long to answer, so it is asked on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::step::step;
use anyhow::Context;
use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest};

/// Names a request to the arbiter.
pub type AskId = u64;

/// What is called with each answer, on the arbiter's thread.
type Answer = Arc<dyn Fn(AskId, ArbiterAnswer) + Send + Sync>;

/// The way to the arbiter. Requests are carried out one after the other, by one client for the life of the process: a
/// side that has just won goes on with the client that won, and needs nothing anew.
pub struct ArbiterThread {
    requests: Sender<(AskId, ArbiterRequest, Answer)>,
}

impl ArbiterThread {
    /// Starts the thread.
    pub fn start(mut arbiter: Box<dyn Arbiter>) -> anyhow::Result<Self> {
        let (requests, receiver) = channel::<(AskId, ArbiterRequest, Answer)>();
        thread::Builder::new()
            .name("arbiter".into())
            .spawn(move || {
                for (ask, request, answer) in receiver {
                    let reply = execute(&mut *arbiter, &request);
                    tracing::debug!(ask, ?request, ?reply, "arbiter");
                    answer(ask, reply);
                }
            })
            .context("cannot start the arbiter's thread")?;
        Ok(Self { requests })
    }

    /// For one role of this process: `answer` is called with the answers to what that role asks, and with no other.
    pub fn asker(&self, answer: impl Fn(AskId, ArbiterAnswer) + Send + Sync + 'static) -> Asker {
        Asker {
            requests: self.requests.clone(),
            answer: Arc::new(answer),
        }
    }
}

/// Asks the arbiter for one role.
pub struct Asker {
    requests: Sender<(AskId, ArbiterRequest, Answer)>,
    answer: Answer,
}

impl Asker {
    /// Asks.
    pub fn ask(&self, ask: AskId, request: ArbiterRequest) {
        // The thread lives as long as this sender.
        let _ = self.requests.send((ask, request, self.answer.clone()));
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
