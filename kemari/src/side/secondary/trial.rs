//! The committed state is tried on this host's KVM: before the first commit of a pair, whenever a processor
//! changes its identity, and then about once a second. Decoding alone does not tell what KVM says.

use std::time::{Duration, Instant};

use kemari_sync::SecondaryEvent;
use kemari_vmm::state::{StateBlob, StateKind};

use super::super::readiness::Source;
use super::super::{capture, faults};
use super::{SecondarySide, Standby};

/// Shortest time between two trials, in milliseconds.
const INTERVAL_MS: u64 = 1_000;
/// At most this part of the loop's time goes into trials: a machine with many processors takes milliseconds.
const SHARE_OF_TIME: u64 = 200;

/// When the state was tried, and is to be tried again.
#[derive(Default)]
pub struct Trial {
    /// A commit came since.
    pub is_due: bool,
    next_ms: u64,
}

impl Trial {
    fn note(&mut self, now_ms: u64, took: Duration) {
        self.is_due = false;
        self.next_ms = now_ms + INTERVAL_MS.max(took.as_millis() as u64 * SHARE_OF_TIME);
    }
}

impl Standby {
    /// Whether this host could continue from its committed states with `parts` in their places. `epoch` is
    /// theirs. Returns whether KVM was asked.
    pub fn check_states(&mut self, epoch: u64, parts: &[StateBlob], now_ms: u64) -> Result<bool, String> {
        let begins = parts.iter().any(|part| part.kind == StateKind::VcpuIdentity);
        if !self.states.is_empty() && !begins {
            let checked = self.seat.machine.check_parts(parts, &self.states);
            return checked.map(|()| false).map_err(|error| capture::explain(&error));
        }
        let mut whole = self.states.clone();
        merge(&mut whole, parts.iter().cloned());
        self.try_on(epoch, &whole, now_ms).map(|()| true)
    }

    fn try_on(&mut self, epoch: u64, states: &[StateBlob], now_ms: u64) -> Result<(), String> {
        let begin = Instant::now();
        let tried = self.seat.machine.try_on(states);
        self.trial.note(now_ms, begin.elapsed());
        match tried {
            Ok(()) if faults::refuses_state(epoch) => Err("a deliberate fault".to_owned()),
            tried => tried.map_err(|error| capture::explain(&error)),
        }
    }
}

/// Puts states in the places of those that they replace.
pub fn merge(states: &mut Vec<StateBlob>, parts: impl IntoIterator<Item = StateBlob>) {
    for part in parts {
        let is_its_own = |other: &&mut StateBlob| (other.kind, other.instance) == (part.kind, part.instance);
        match states.iter_mut().find(is_its_own) {
            Some(other) => *other = part,
            None => states.push(part),
        }
    }
}

impl SecondarySide {
    /// When the committed state is to be tried: not once a takeover may load it, which finds out itself.
    pub(super) fn trial_due_ms(&self) -> Option<u64> {
        let standby = self.berth.standby().filter(|standby| standby.trial.is_due)?;
        let is_taking_over = self.core.won_term().is_some() || standby.restoration.is_loaded();
        (!is_taking_over).then_some(standby.trial.next_ms)
    }

    /// Tries the committed state. One that KVM refuses makes this side unfit at once: nothing could go on
    /// from it.
    pub(super) fn try_state(&mut self) {
        let now_ms = self.clock.now_ms();
        let epoch = self.core.holds().map_or(0, |last| last.epoch);
        let Some(standby) = self.berth.standby_mut() else {
            return;
        };
        let states = std::mem::take(&mut standby.states);
        let result = standby
            .try_on(epoch, &states, now_ms)
            // What was out of its memory for a moment says the same again if it is the state.
            .or_else(|_| standby.try_on(epoch, &states, now_ms));
        standby.states = states;
        let refused = result
            .err()
            .map(|reason| format!("the VM's committed state does not load here: {reason}"));
        self.board.findings().note(Source::State, None, refused.clone());
        if let Some(reason) = refused {
            tracing::error!("{reason}");
            self.events.push_back(SecondaryEvent::StateRefused { reason });
        }
    }
}
