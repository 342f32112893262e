//! The planned change of roles: a last sync, all I/O finished,
//! and the secondary asks for the VM while this side waits.
//!
//! Nothing is given up before the record says that the secondary acts. Until then this side holds its guest
//! paused where the last sync ended, and goes on from there if the secondary does not. Where nobody keeps a
//! record for both (`arbiter = "none"`) the VM is given up with the word, for good: whether the secondary
//! goes on is not learned here.

use crate::consent::contest::Goal;
use crate::wire::{Goodbye, Message};

use super::parting::{Cause, Parting};
use super::{Actions, Primary, PrimaryAction, Standing};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    /// The next capture is the last here.
    Wanted,
    /// The last sync is committed; released requests are being finished.
    Draining,
    /// They are finished, and nothing is in flight.
    Drained,
    /// The secondary was told to go on.
    HandedOver,
}

#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct Switchover {
    step: Step,
    /// Since when the guest stands still for it, in milliseconds.
    paused_since_ms: u64,
}

impl Primary {
    /// Why a switchover is not possible now; `None` if it is.
    pub fn refuses_switchover(&self) -> Option<String> {
        let reason = match &self.standing {
            Standing::Over(reason) => return Some(format!("the VM does not run here: {reason}")),
            Standing::Alone => "the VM is not protected, so no secondary could go on: protect it first",
            Standing::Pairing(_) => "the VM is not protected yet: wait for its first sync",
            Standing::Paired if self.stop.is_some() => "the VM is being stopped",
            Standing::Paired if self.switchover.is_some() => "a switchover is under way already",
            Standing::Paired if self.parting.is_some() || !self.is_live() => {
                "the secondary is not connected now"
            }
            Standing::Paired => return None,
        };
        Some(reason.to_owned())
    }

    /// Whether a switchover was ordered and its outcome is open.
    pub fn is_switching(&self) -> bool {
        self.switchover.is_some()
    }

    pub(super) fn on_switchover(&mut self, actions: &mut Actions) {
        match self.refuses_switchover() {
            Some(reason) => actions.push(PrimaryAction::Report(format!("no switchover: {reason}"))),
            None => {
                self.switchover = Some(Switchover {
                    step: Step::Wanted,
                    paused_since_ms: self.now_ms,
                })
            }
        }
    }

    /// Whether the guest must stay where its last sync ended or will end.
    pub(super) fn is_held_for_switchover(&self) -> bool {
        self.is_past_last_sync() || self.sync.as_ref().is_some_and(|sync| sync.last_here)
    }

    /// Whether the last sync here is past.
    pub(super) fn is_past_last_sync(&self) -> bool {
        self.switchover
            .as_ref()
            .is_some_and(|switchover| switchover.step != Step::Wanted)
    }

    /// The last sync is committed and its output released: what is released must be finished before another
    /// may write.
    pub(super) fn drain_for_switchover(&mut self, paused_since_ms: u64, actions: &mut Actions) {
        self.paused = true;
        self.switchover = Some(Switchover {
            step: Step::Draining,
            paused_since_ms,
        });
        actions.push(PrimaryAction::Drain);
    }

    pub(super) fn note_drained(&mut self) {
        if let Some(switchover) = self
            .switchover
            .as_mut()
            .filter(|switchover| switchover.step == Step::Draining)
        {
            switchover.step = Step::Drained;
        }
    }

    /// Tells the secondary to go on, once everything is finished and it is there.
    pub(super) fn check_switchover(&mut self, actions: &mut Actions) {
        let is_joined = matches!(self.standing, Standing::Paired) && self.is_live() && self.parting.is_none();
        let (now_ms, progress_ms) = (self.now_ms, self.config.timing.progress_ms);
        let Some(switchover) = self
            .switchover
            .as_mut()
            .filter(|s| is_joined && s.step == Step::Drained)
        else {
            return;
        };
        switchover.step = Step::HandedOver;
        let paused_ms = now_ms.saturating_sub(switchover.paused_since_ms);
        actions.push(PrimaryAction::Report(format!(
            "switching over: the guest has been paused for {paused_ms} ms, the secondary goes on"
        )));
        self.send(Message::Goodbye(Goodbye::SwitchOver { paused_ms }), actions);
        self.assume_successor(actions);
        // From here on the record decides. The secondary is let win as long as it may take.
        let contest = self.contest(Goal::Rule).yielding(now_ms + progress_ms);
        self.parting = Some(Parting {
            contest,
            cause: Cause::Final("the secondary has not gone on after the switchover".to_owned()),
            is_futile: false,
        });
    }

    /// This side has won the right to act alone instead.
    pub(super) fn switchover_failed(&mut self, cause: &str, actions: &mut Actions) {
        if self.switchover.take().is_some() {
            actions.push(PrimaryAction::Report(format!(
                "the switchover failed, and nothing is lost: the VM goes on here ({cause})"
            )));
        }
    }
}
