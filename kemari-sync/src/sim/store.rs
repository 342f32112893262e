//! The arbiter: a linearizable record whose answers may be late or lost.

use rand::Rng;

use crate::record::{ArbiterAnswer, ArbiterRequest, Record};

use super::events::{Event, ToProcess};
use super::world::World;

#[derive(Default)]
pub(super) struct Store {
    pub(super) record: Option<Record>,
    /// Every record that ever stood there.
    pub(super) history: Vec<Record>,
    /// When the last of them was written, in microseconds.
    pub(super) changed_us: u64,
    /// No host reaches it.
    pub(super) is_down: bool,
    /// Answers get lost, and requests are carried out late.
    pub(super) is_lossy: bool,
}

impl Store {
    pub(super) fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        match request {
            ArbiterRequest::Read => ArbiterAnswer::Record(self.record.clone()),
            ArbiterRequest::Swap { expected, new } if *expected == self.record => {
                self.record = Some(new.clone());
                self.history.push(new.clone());
                ArbiterAnswer::Swapped
            }
            ArbiterRequest::Swap { .. } => ArbiterAnswer::Conflict(self.record.clone()),
        }
    }
}

impl World {
    /// Hands a request to the arbiter's store, if it gets there.
    pub(super) fn send_ask(&mut self, host: usize, ask: u64, request: ArbiterRequest) {
        let life = self.hosts[host].life;
        let (delay_us, lossy) = (self.rng.random_range(100..2_000), self.store.is_lossy);
        if self.store.is_down || self.flags.store_cut[host] {
            let answer = match self.rng.random_bool(0.5) {
                true => ArbiterAnswer::Unavailable("cannot connect".to_owned()),
                false => ArbiterAnswer::Unknown("no answer in time".to_owned()),
            };
            return self.tell_after(delay_us, host, ToProcess::Answer(ask, answer));
        }
        let answered = !(lossy && self.rng.random_bool(0.4));
        // Without an answer the request may be lost, carried out, or carried out late.
        let late_us = if answered {
            0
        } else {
            [0, 0, 30_000, 120_000][self.rng.random_range(0..4)]
        };
        if !answered {
            let answer = ArbiterAnswer::Unknown("no answer in time".to_owned());
            self.tell_after(20_000, host, ToProcess::Answer(ask, answer));
            if self.rng.random_bool(0.4) {
                return;
            }
        }
        self.after(
            delay_us + late_us,
            Event::Ask {
                host,
                life,
                ask,
                request,
                answered,
            },
        );
    }

    /// It is carried out.
    pub(super) fn ask(&mut self, host: usize, life: u64, ask: u64, request: &ArbiterRequest, answered: bool) {
        let before = self.store.history.len();
        let before_it = self.store.record.clone();
        let answer = self.store.execute(request);
        if self.store.history.len() > before {
            self.store.changed_us = self.now_us;
            let record = self.store.record.clone();
            if let (Some(won), Some(record)) = (before_it, &record) {
                self.judge_declared(&won, record);
            }
            self.note(|| {
                format!(
                    "store: {}",
                    record.map(|record| describe(&record)).unwrap_or_default()
                )
            });
        }
        if answered {
            let delay_us = self.rng.random_range(100..2_000);
            let what = ToProcess::Answer(ask, answer);
            self.after(delay_us, Event::Process { host, life, what });
        }
    }
}

/// A record in few words.
pub(super) fn describe(record: &Record) -> String {
    let peer = record
        .peer
        .as_ref()
        .map(|peer| peer.host.clone())
        .unwrap_or_else(|| "nobody".to_owned());
    format!(
        "term {} (base {}) of {} with {peer}: {:?}",
        record.term, record.base, record.owner.host, record.phase
    )
}
