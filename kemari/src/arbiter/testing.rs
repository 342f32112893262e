//! Records for tests.

use kemari_sync::{Incarnation, Phase, Record, Term, Work};

/// The record of a VM that the host `a` has, without a peer.
pub(crate) fn record(term: Term, phase: Phase) -> Record {
    Record {
        vm: "demo".into(),
        store: 1,
        term,
        base: term,
        owner: Incarnation {
            host: "a".into(),
            nonce: 1,
        },
        peer: None,
        phase,
        work: Work::default(),
    }
}
