//! What the operator orders.

use kemari_sync::SecondaryEvent;

use super::super::board::Order;
use super::leave::Leaves;
use super::{End, SecondarySide};
use crate::control::Command;

/// Orders whose outcome is open.
#[derive(Default)]
pub struct Orders {
    /// To take over. There are no more of them than clients of the control socket.
    takeovers: Vec<Order>,
    /// To end.
    pub leaves: Leaves,
}

impl SecondarySide {
    pub(super) fn on_order(&mut self, order: Order) {
        if order.command == Command::Leave {
            return self.on_leave(order);
        }
        if order.command == Command::Takeover && self.core.holds().is_some() {
            self.events.push_back(SecondaryEvent::OperatorTakeover);
            return self.orders.takeovers.push(order);
        }
        if let Command::Drill { seconds } = order.command {
            return self.order_drill(seconds, order);
        }
        if let Command::Enlarge { disk, bytes } = &order.command {
            return self.enlarge(disk, *bytes, order.answer.clone());
        }
        let reason = match order.command {
            Command::Takeover => {
                "this secondary holds no whole state of the VM, so it has nothing to go on from"
            }
            _ => "this side is the secondary; say that to the primary, on the other host",
        };
        answer(&order, Err(reason.to_owned()));
    }

    /// Answers orders to take over once it is certain who has the VM.
    pub(super) fn answer_takeovers(&mut self) {
        let outcome = match &self.end {
            Some(End::TookOver(reign, ..)) => {
                Ok(format!("the VM goes on here, in term {}", reign.record.term))
            }
            Some(End::Stopped(reason)) => Err(format!("the VM has ended: {reason}")),
            Some(End::Left | End::Idle) => Err("this side has let the VM go".into()),
            None if self.core.holds().is_none() => Err("another has the VM; the log says who".to_owned()),
            None => return,
        };
        let takeovers = self.orders.takeovers.drain(..);
        takeovers.for_each(|order| answer(&order, outcome.clone()));
    }
}

/// Tells who gave an order what came of it.
pub fn answer(order: &Order, outcome: Result<String, String>) {
    // Whoever asked may have gone.
    let _ = order.answer.send(outcome);
}
