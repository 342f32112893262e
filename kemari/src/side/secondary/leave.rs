//! This process is to end: the primary is told, so that it does not wait.

use kemari_sync::SecondaryEvent;

use super::super::board::Order;
use super::super::looks::{Look, Looked, no_answer};
use super::orders::answer;
use super::{End, SecondarySide};

/// How often it is asked whether a look is over, in milliseconds.
const LOOK_INTERVAL_MS: u64 = 10;

/// Orders to end.
#[derive(Default)]
pub struct Leaves {
    /// Those whose look at the arbiter is not over: one a signal.
    waiting: Vec<(Order, Look)>,
    /// The look for which one was refused. If it is said again it counts: only this side's own way to the
    /// arbiter may be broken.
    refused: Option<Look>,
}

impl Leaves {
    pub fn due_ms(&self, now_ms: u64) -> Option<u64> {
        (!self.waiting.is_empty()).then_some(now_ms + LOOK_INTERVAL_MS)
    }
}

impl SecondarySide {
    /// While the arbiter is away nobody could go on alone, so that is looked at first.
    pub(super) fn on_leave(&mut self, order: Order) {
        if self.core.holds().is_none() || self.orders.leaves.refused.is_some() {
            return self.leave(&order);
        }
        let look = Look::begin(&self.board, self.clock.now_ms());
        self.orders.leaves.waiting.push((order, look));
        self.leave_when_known();
    }

    /// Carries out, or refuses, the orders whose looks are over.
    pub(super) fn leave_when_known(&mut self) {
        let (now_ms, timeout) = (self.clock.now_ms(), self.config.arbiter.timeout());
        let board = &self.board;
        // What was refused while the arbiter was away says nothing of the next time.
        self.orders.leaves.refused.take_if(|look| {
            look.state(board, timeout, now_ms) == Looked::Fresh && board.arbiter_trouble().is_none()
        });
        for (order, look) in std::mem::take(&mut self.orders.leaves.waiting) {
            let trouble = match look.state(&self.board, timeout, now_ms) {
                _ if self.end.is_some() || self.core.holds().is_none() => None,
                Looked::NotYet => {
                    self.orders.leaves.waiting.push((order, look));
                    continue;
                }
                Looked::Fresh => self.board.arbiter_trouble(),
                Looked::TooLate => Some(no_answer(timeout)),
            };
            match trouble {
                Some(trouble) => {
                    self.orders.leaves.refused = Some(look);
                    let reason = format!(
                        "without this side the VM would stand still until the arbiter can be asked: \
                         {trouble}; told so again, it ends all the same"
                    );
                    answer(&order, Err(reason));
                }
                None => self.leave(&order),
            }
        }
    }

    /// While this side takes the VM over it cannot go.
    fn leave(&mut self, order: &Order) {
        if self.end.is_none() {
            self.events.push_back(SecondaryEvent::OperatorLeave);
            self.settle();
        }
        let outcome = match &self.end {
            Some(End::Left) => Ok("this side holds nothing of the VM any more".to_owned()),
            Some(End::Stopped(reason)) => Ok(format!("the VM has ended: {reason}")),
            _ => Err("this side is taking the VM over".to_owned()),
        };
        answer(order, outcome);
    }
}
