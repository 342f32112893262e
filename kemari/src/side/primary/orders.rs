//! Commands from the control socket.

use kemari_sync::PrimaryEvent;

use super::super::board::Order;
use super::PrimarySide;
use crate::control::Command;

impl PrimarySide {
    pub(super) fn on_order(&mut self, order: Order) {
        let result = match order.command {
            Command::Stop => {
                self.events.push_back(PrimaryEvent::OperatorStop);
                Ok("the VM is being stopped on both hosts".to_owned())
            }
            Command::Protect => {
                self.events.push_back(PrimaryEvent::OperatorProtect);
                Ok("a secondary is taken as soon as one is reached".to_owned())
            }
            Command::Unprotect => {
                self.events.push_back(PrimaryEvent::OperatorUnprotect);
                Ok("the secondary is let go; the VM runs on unprotected".to_owned())
            }
            Command::Takeover => Err("this side is the primary already".to_owned()),
            Command::Switchover => Err("a planned switchover is not possible with this version".to_owned()),
        };
        // Whoever asked may have gone.
        let _ = order.answer.send(result);
    }
}
