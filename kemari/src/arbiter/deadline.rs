//! A time limit for an arbiter whose system calls may hang, as those of a network file system do.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest};
use kemari_vmm::confine;

use super::CALLS;
use crate::threads;

/// Runs an arbiter on a thread of its own and waits for it no longer than the limit.
///
/// While a request hangs no other is begun, so a swap is carried out late at most once,
/// and never behind a later one.
pub(crate) struct Deadline {
    requests: Sender<ArbiterRequest>,
    answers: Receiver<ArbiterAnswer>,
    limit: Duration,
    hanging_since: Option<Instant>,
}

impl Deadline {
    /// Wraps `arbiter`; `limit` holds for each request. Fails if there is no thread to be had.
    pub(crate) fn new(mut arbiter: Box<dyn Arbiter>, limit: Duration) -> io::Result<Self> {
        let (requests, incoming) = channel::<ArbiterRequest>();
        let (outgoing, answers) = channel();
        let serve = move || {
            confine::thread(&CALLS);
            for request in incoming {
                if outgoing.send(arbiter.execute(&request)).is_err() {
                    return;
                }
            }
        };
        threads::start("arbiter files", serve)?;
        Ok(Self {
            requests,
            answers,
            limit,
            hanging_since: None,
        })
    }

    /// Whether a request has not come back yet, though its time is over.
    pub(crate) fn hangs(&self) -> bool {
        self.hanging_since.is_some()
    }

    fn ended(&self) -> ArbiterAnswer {
        ArbiterAnswer::Unknown("the arbiter's thread has ended: see the log, and restart Kemari".into())
    }
}

impl Arbiter for Deadline {
    fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        let begun = Instant::now();
        if let Some(since) = self.hanging_since {
            // The late answer is dropped: whoever asked was told that it is unknown, and reads back.
            match self.answers.recv_timeout(self.limit) {
                Ok(_) => self.hanging_since = None,
                Err(RecvTimeoutError::Timeout) => {
                    return ArbiterAnswer::Unavailable(format!(
                        "the arbiter's storage has not answered for {} s: look at its mount",
                        since.elapsed().as_secs()
                    ));
                }
                Err(RecvTimeoutError::Disconnected) => return self.ended(),
            }
        }
        if self.requests.send(request.clone()).is_err() {
            return self.ended();
        }
        match self
            .answers
            .recv_timeout(self.limit.saturating_sub(begun.elapsed()))
        {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                self.hanging_since = Some(begun);
                ArbiterAnswer::Unknown(format!(
                    "the arbiter's storage did not answer within {} ms",
                    self.limit.as_millis()
                ))
            }
            Err(RecvTimeoutError::Disconnected) => self.ended(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Slow(Receiver<()>, u32);

    impl Arbiter for Slow {
        fn execute(&mut self, _: &ArbiterRequest) -> ArbiterAnswer {
            self.0.recv().unwrap();
            self.1 += 1;
            ArbiterAnswer::Unavailable(self.1.to_string())
        }
    }

    #[test]
    fn a_hanging_store_is_not_waited_for_and_its_late_answer_is_dropped() {
        let (let_go, gate) = channel();
        let mut arbiter = Deadline::new(Box::new(Slow(gate, 0)), Duration::from_millis(50)).unwrap();
        let begun = Instant::now();
        assert!(matches!(
            arbiter.execute(&ArbiterRequest::Read),
            ArbiterAnswer::Unknown(_)
        ));
        let answer = arbiter.execute(&ArbiterRequest::Read);
        assert!(matches!(answer, ArbiterAnswer::Unavailable(why) if why.contains("mount")));
        assert!(begun.elapsed() < Duration::from_secs(5) && arbiter.hangs());
        let_go.send(()).unwrap();
        let_go.send(()).unwrap();
        // The first answer was late, the second request was never begun,
        // so this one is the second to be executed.
        assert_eq!(
            arbiter.execute(&ArbiterRequest::Read),
            ArbiterAnswer::Unavailable("2".into())
        );
        assert!(!arbiter.hangs());
    }
}
