//! The states that the secondary has for certain, so that only what differs from them is sent.
//!
//! As with pages ([`crate::wire::DeltaCache`]), that is what the last *acked* sync left there: what was
//! sent and not acked may have come or not. A new standby has none.

use crate::faults::{Fault, fault};
use crate::record::Epoch;

/// What the primary knows of the secondary's states; the driver says what a state is.
pub struct KnownStates<S> {
    acked: Vec<S>,
    /// Those of the sync that is captured or waits for its ack.
    captured: Option<(Epoch, Vec<S>)>,
}

impl<S> Default for KnownStates<S> {
    fn default() -> Self {
        Self {
            acked: Vec::new(),
            captured: None,
        }
    }
}

impl<S> KnownStates<S> {
    /// Those of the last acked sync.
    pub fn acked_states(&self) -> &[S] {
        &self.acked
    }

    /// All states of a sync, sent or not.
    pub fn captured(&mut self, epoch: Epoch, states: Vec<S>) {
        self.captured = Some((epoch, states));
    }

    /// The secondary has the sync.
    pub fn acked(&mut self, epoch: Epoch) {
        if let Some((_, states)) = self.captured.take_if(|(captured, _)| *captured == epoch) {
            self.acked = states;
        }
    }

    /// The sync will not be acked: what the secondary has is what it had before.
    pub fn failed(&mut self) {
        if let Some((epoch, _)) = self.captured
            && fault(Fault::StatesAgainstUnacked)
        {
            return self.acked(epoch);
        }
        self.captured = None;
    }

    /// The standby is a new one, which has nothing yet.
    pub fn forget(&mut self) {
        if !fault(Fault::StatesOfAnother) {
            self.acked.clear();
        }
        self.captured = None;
    }
}

/// Which of the states `now` must be sent to whoever has those that were acked.
pub fn changed_states<'a, S: PartialEq>(acked: &[S], now: &'a [S]) -> impl Iterator<Item = &'a S> {
    now.iter().filter(|state| !acked.contains(state))
}
