//! A host that lives and cannot go on: its guest ends for good, its disks are closed, and it says so. The
//! secondary then needs no fence, which is for those who do not answer.

use crate::faults::{Fault, fault};
use crate::wire::{Goodbye, Message, reason_text};

use super::{Actions, Primary, PrimaryAction, PrimaryEvent, Standing};

/// The guest has ended here, and the secondary hears of it as soon as the disks are closed.
#[cfg_attr(feature = "sim", derive(Clone, Hash))]
pub(super) struct HandOver {
    reason: String,
    /// When the secondary hears of it in any case, in milliseconds:
    /// nobody waits longer for who lives than for who is silent.
    pub(super) due_ms: u64,
}

impl Primary {
    /// This host fails: the secondary goes on, if there is one.
    pub(super) fn hand_over(&mut self, reason: &str, actions: &mut Actions) {
        let is_heard_of = self.session.is_some() && !matches!(self.standing, Standing::Alone);
        // One that is under way waits for what hangs.
        self.switchover = None;
        self.assume_pairing(actions);
        self.end(&format!("this host fails: {reason}"));
        self.hand_over = Some(HandOver {
            reason: reason.to_owned(),
            due_ms: self.now_ms + self.config.timing.suspicion_ms,
        });
        if !is_heard_of {
            return self.end_hand_over(Goodbye::HandOver, actions);
        }
        actions.push(PrimaryAction::CloseDisks);
        if fault(Fault::CloseUndrained) {
            self.end_hand_over(Goodbye::Closed, actions);
        }
    }

    /// The guest runs well, and cannot be followed. A secondary that can goes on with it;
    /// or else it stays here, unprotected.
    pub(super) fn on_protection_failing(&mut self, reason: &str, actions: &mut Actions) {
        match self.standing {
            Standing::Paired if self.goes_on_there() => self.hand_over(reason, actions),
            Standing::Paired => self.secondary_is_unfit(reason, actions),
            Standing::Alone | Standing::Pairing(_) | Standing::Over(_) => self.close(reason, actions),
        }
    }

    /// Nothing else concerns a side whose guest has ended.
    pub(super) fn go_on_handing_over(&mut self, event: PrimaryEvent, actions: &mut Actions) {
        let Some(due_ms) = self.hand_over.as_ref().map(|hand_over| hand_over.due_ms) else {
            return;
        };
        match event {
            PrimaryEvent::DisksClosed { result: Ok(()) } => {
                return self.end_hand_over(Goodbye::Closed, actions);
            }
            PrimaryEvent::DisksClosed { result: Err(why) } => {
                return self.leave_unclosed(&why, actions);
            }
            PrimaryEvent::PeerClosed { session, reason } => self.on_closed(session, &reason, actions),
            _ => {}
        }
        if self.session.is_none() {
            self.leave_unclosed("it is not heard any more", actions);
        } else if self.now_ms >= due_ms {
            self.leave_unclosed("requests of its disks did not end in time", actions);
        } else {
            self.beat(actions);
        }
    }

    fn leave_unclosed(&mut self, why: &str, actions: &mut Actions) {
        let text = format!("whoever goes on has to fence this host: {why}");
        actions.push(PrimaryAction::Report(text));
        self.end_hand_over(Goodbye::HandOver, actions);
    }

    fn end_hand_over(&mut self, goodbye: fn(String) -> Goodbye, actions: &mut Actions) {
        let Some(HandOver { reason, .. }) = self.hand_over.take() else {
            return;
        };
        self.send(Message::Goodbye(goodbye(reason_text(&*reason))), actions);
        self.assume_successor(actions);
        self.halt(&format!("this host fails: {reason}"), actions);
    }
}
