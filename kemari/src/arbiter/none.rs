//! No arbiter: the operator asserts that a silent peer is dead.

use kemari_sync::{Arbiter, ArbiterAnswer, ArbiterRequest, Record};
use tracing::warn;

/// Remembers the record in this process only, and lets every change pass.
///
/// Two hosts that lose sight of each other then *both* go on. Only an operator who watches them, or a network that
/// cannot be cut, makes this right.
#[derive(Default)]
pub struct NoArbiter {
    record: Option<Record>,
}

impl NoArbiter {
    /// An arbiter without a record, and a warning in the log.
    pub fn new() -> Self {
        warn!(
            "there is no arbiter: if the two hosts lose sight of each other, both will run the VM and its disks will \
             be destroyed. Configure `[arbiter] kind = \"etcd\"` or `\"file\"` unless somebody makes sure that a \
             silent host is dead"
        );
        Self::default()
    }

    /// Takes over the record that the peer told in a handshake.
    pub fn assume(&mut self, record: &Record) {
        self.record = Some(record.clone());
    }
}

impl Arbiter for NoArbiter {
    fn execute(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        match request {
            ArbiterRequest::Read => ArbiterAnswer::Record(self.record.clone()),
            ArbiterRequest::Swap { new, .. } => {
                warn!(
                    term = new.term,
                    "term {} is taken without an arbiter, on the operator's word", new.term
                );
                self.record = Some(new.clone());
                ArbiterAnswer::Swapped
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kemari_sync::{Incarnation, Phase};

    #[test]
    fn every_swap_passes_and_the_peers_record_is_assumed() {
        let owner = Incarnation {
            host: "a".into(),
            nonce: 1,
        };
        let record = |term| Record {
            vm: "demo".into(),
            store: 1,
            term,
            base: term,
            owner: owner.clone(),
            peer: None,
            phase: Phase::Acting,
            work: Default::default(),
        };
        let mut arbiter = NoArbiter::new();
        assert_eq!(
            arbiter.execute(&ArbiterRequest::Read),
            ArbiterAnswer::Record(None)
        );
        arbiter.assume(&record(4));
        assert_eq!(
            arbiter.execute(&ArbiterRequest::Read),
            ArbiterAnswer::Record(Some(record(4)))
        );
        let swap = ArbiterRequest::Swap {
            expected: Some(record(4)),
            new: record(5),
        };
        assert_eq!(arbiter.execute(&swap), ArbiterAnswer::Swapped);
        assert_eq!(
            arbiter.execute(&ArbiterRequest::Read),
            ArbiterAnswer::Record(Some(record(5)))
        );
    }
}
