//! An arbiter that does what it is asked.

use kemari_sync::{ArbiterAnswer, ArbiterRequest, Incarnation, Phase, Record, Work};

/// The one record that it has.
pub(crate) struct Store(pub Record);

/// An incarnation on the host of this name.
pub(crate) fn host(name: &str, nonce: u128) -> Incarnation {
    Incarnation {
        host: name.into(),
        nonce,
    }
}

/// The record of a reign of `a`.
pub(crate) fn record(term: u64, peer: Option<Incarnation>) -> Record {
    Record {
        vm: "vm".into(),
        store: 9,
        term,
        base: term,
        owner: host("a", 1),
        peer,
        phase: Phase::Acting,
        work: Work::default(),
    }
}

impl Store {
    pub(crate) fn ask(&mut self, request: ArbiterRequest) -> ArbiterAnswer {
        match request {
            ArbiterRequest::Read => ArbiterAnswer::Record(Some(self.0.clone())),
            ArbiterRequest::Swap { expected, new } if expected.as_ref() == Some(&self.0) => {
                self.0 = new;
                ArbiterAnswer::Swapped
            }
            ArbiterRequest::Swap { .. } => ArbiterAnswer::Conflict(Some(self.0.clone())),
        }
    }
}
