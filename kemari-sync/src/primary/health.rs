//! A host that lives, and cannot do for the VM what it should: it steps down, if its secondary can do better.

use crate::faults::{Fault, fault};
use crate::trouble::Trouble;

use super::{Actions, Primary, PrimaryAction, Standing};

impl Primary {
    pub(super) fn on_health(&mut self, trouble: Option<Trouble>, actions: &mut Actions) {
        if self.trouble == trouble {
            return;
        }
        let text = match &trouble {
            Some(trouble) => format!("this host is in trouble: {trouble}"),
            None => "this host is well again".to_owned(),
        };
        actions.push(PrimaryAction::Report(text));
        self.trouble = trouble;
        self.stepped_down = false;
    }

    /// Steps down as soon as the secondary of a recorded pair is there and ready. The record decides, as
    /// for every switchover and hand-over.
    pub(super) fn check_health(&mut self, actions: &mut Actions) {
        let can_go_on_there = self.is_joined()
            && self.parting.is_none()
            && !self.stop_is_committed()
            && (self.peer_lacks(self.now_ms).is_none() || fault(Fault::StepDownBlindly));
        let Some(trouble) = self.trouble.clone().filter(|_| can_go_on_there) else {
            return;
        };
        if self.stepped_down || fault(Fault::StayInTrouble) {
            return;
        }
        match trouble {
            Trouble::Uplink(text) => {
                if self.stop.is_none() && self.switchover.is_none() {
                    self.stepped_down = true;
                    let text = format!("the secondary is well, and is to go on: {text}");
                    actions.push(PrimaryAction::Report(text));
                    self.on_switchover(actions);
                }
            }
            // What is stuck would hold up a switchover, also one that is under way.
            Trouble::Disk(text) => self.hand_over(&text, actions),
        }
    }

    pub(super) fn waiting_in_trouble(&self, now_ms: u64) -> Option<String> {
        let trouble = self.trouble.as_ref()?;
        let why = match (&self.standing, self.peer_lacks(now_ms)) {
            (Standing::Paired, _) if self.stepped_down => "the secondary did not go on".to_owned(),
            (Standing::Paired, Some(lacks)) => format!("the secondary is no better off: {lacks}"),
            (Standing::Paired, None) => "the secondary is to go on".to_owned(),
            _ => "no secondary could go on".to_owned(),
        };
        Some(format!("this host is in trouble ({trouble}), and {why}"))
    }
}
