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
