//! What is seen of the primary: that it is heard, where it is in a sync, and what its clock shows.

use kemari_sync::Term;
use kemari_sync::wire::{Goodbye, Message};

use super::super::readiness::Clocks;

/// The last that was seen of the old primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastSign {
    /// When it was heard, in microseconds of the side's clock.
    pub heard_us: u64,
    /// What it was doing, as far as it was seen from here.
    pub step: &'static str,
    /// For how long the guest had stood still then, in milliseconds, if the end was planned.
    pub paused_ms: Option<u64>,
}

/// See the module. What somebody else says than who is followed is nothing to go by: it is not noted here.
pub struct Signs {
    heard_us: Option<u64>,
    step: &'static str,
    /// See [`LastSign::paused_ms`].
    paused_ms: Option<u64>,
    begun_term: Term,
    clocks: Clocks,
}

impl Default for Signs {
    fn default() -> Self {
        Self {
            heard_us: None,
            step: "running",
            paused_ms: None,
            begun_term: 0,
            clocks: Clocks::default(),
        }
    }
}

impl Signs {
    /// A message has come.
    pub fn note(&mut self, message: &Message, now_us: u64) {
        self.heard_us = Some(now_us);
        match message {
            Message::Prepare => (self.step, self.paused_ms) = ("copying", None),
            Message::Begin(begin) => (self.step, self.begun_term) = ("sending", begin.term),
            Message::Commit(_) => self.step = "awaiting ack",
            Message::Goodbye(Goodbye::SwitchOver { paused_ms }) => self.paused_ms = Some(*paused_ms),
            // Heartbeats say nothing about it.
            _ => {}
        }
    }

    /// What it has sent is committed here, and it is told so.
    pub fn note_commit(&mut self) {
        self.step = "acked";
    }

    /// Its wall clock showed `theirs_ms` when it was `ours_ms` here: see [`Clocks::note`].
    pub fn note_clock(&mut self, ours_ms: u64, theirs_ms: u64) -> Option<Option<String>> {
        self.clocks.note(ours_ms, theirs_ms)
    }

    /// The next one has another clock.
    pub fn forget_clock(&mut self) {
        self.clocks = Clocks::default();
    }

    /// Term of the sync that began last.
    pub fn begun_term(&self) -> Term {
        self.begun_term
    }

    /// For how long nothing was heard, in milliseconds, if anything ever was.
    pub fn silent_ms(&self, now_ms: u64) -> Option<u64> {
        let heard_us = self.heard_us?;
        Some(now_ms.saturating_sub(heard_us / 1000))
    }

    /// What a takeover is told.
    pub fn last(&self) -> LastSign {
        LastSign {
            heard_us: self.heard_us.unwrap_or_default(),
            step: self.step,
            paused_ms: self.paused_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use kemari_sync::wire::{Begin, SyncTally};

    use super::*;

    fn begin(term: Term) -> Message {
        Message::Begin(Begin {
            epoch: 1,
            base: None,
            term,
            store: 1,
            primary: 1,
            secondary: 2,
        })
    }

    #[test]
    fn a_takeover_is_told_what_the_primary_did_last() {
        let mut signs = Signs::default();
        let mut step_after = |message: &Message| {
            signs.note(message, 5_000);
            signs.last().step
        };
        assert_eq!(step_after(&Message::Prepare), "copying");
        assert_eq!(step_after(&begin(9)), "sending");
        let commit = Message::Commit(SyncTally::default().commit(1, false));
        assert_eq!(step_after(&commit), "awaiting ack");
        signs.note_commit();
        let step = "acked";
        let (heard_us, paused_ms) = (5_000, None);
        assert_eq!(
            signs.last(),
            LastSign {
                heard_us,
                step,
                paused_ms
            }
        );
    }

    #[test]
    fn a_pause_that_was_planned_is_that_of_this_primary() {
        let mut signs = Signs::default();
        signs.note(&Message::Goodbye(Goodbye::SwitchOver { paused_ms: 7 }), 0);
        assert_eq!(signs.last().paused_ms, Some(7));
        signs.note(&Message::Prepare, 0);
        assert_eq!(signs.last().paused_ms, None, "another one copies the VM anew");
    }

    #[test]
    fn silence_is_counted_from_the_last_message_of_any_kind() {
        let mut signs = Signs::default();
        assert_eq!(signs.silent_ms(5), None);
        signs.note(&begin(2), 1_000);
        signs.note(&Message::DisksReady, 3_000);
        assert_eq!((signs.silent_ms(5), signs.begun_term()), (Some(2), 2));
        assert_eq!(signs.silent_ms(1), Some(0));
    }
}
