//! Commands from the control socket, each answered with what came of it.

use kemari_sync::{PrimaryEvent, Protection};

use super::super::board::Order;
use super::{End, PrimarySide};
use crate::control::Command;

/// An order to protect the VM is answered after so long, in milliseconds, though no secondary is there yet.
const PROTECT_MS_MAX: u64 = 5000;

/// An order whose outcome is open. There are no more of them than clients of the control socket.
pub struct Pending {
    order: Order,
    since_ms: u64,
}

type Outcome = Result<String, String>;

impl PrimarySide {
    pub(super) fn on_order(&mut self, order: Order) {
        let refusal = match order.command {
            Command::Takeover => {
                Some("this side is the primary already; say that to the secondary".to_owned())
            }
            Command::Switchover => self.core.refuses_switchover(),
            Command::Protect => self.connector.refuses().map(str::to_owned),
            Command::Stop | Command::Unprotect => None,
        };
        if let Some(reason) = refusal {
            return answer(&order, Err(reason));
        }
        self.events.push_back(match order.command {
            Command::Protect => PrimaryEvent::OperatorProtect,
            Command::Unprotect => PrimaryEvent::OperatorUnprotect,
            Command::Switchover => PrimaryEvent::OperatorSwitchover,
            Command::Stop | Command::Takeover => PrimaryEvent::OperatorStop,
        });
        self.orders.push(Pending {
            order,
            since_ms: self.clock.now_ms(),
        });
    }

    /// Answers the orders whose outcome is known. To be called when the core has nothing more to say.
    pub(super) fn answer_orders(&mut self) {
        for pending in std::mem::take(&mut self.orders) {
            match self.outcome(&pending) {
                Some(outcome) => answer(&pending.order, outcome),
                None => self.orders.push(pending),
            }
        }
    }

    fn outcome(&self, pending: &Pending) -> Option<Outcome> {
        match (pending.order.command, &self.end) {
            (Command::Stop, Some(End::Stopped(reason))) => {
                return Some(Ok(format!("the VM has ended: {reason}")));
            }
            (Command::Switchover, Some(End::Halted(reason))) => {
                return Some(Ok(format!(
                    "switched over: {reason}; this host follows as its secondary"
                )));
            }
            (_, Some(End::Stopped(reason))) => return Some(Err(format!("the VM has ended: {reason}"))),
            (_, Some(End::Halted(reason))) => {
                return Some(Err(format!("the VM does not run here any more: {reason}")));
            }
            (_, None) => {}
        }
        let status = self.core.status(self.clock.now_ms());
        match pending.order.command {
            Command::Stop | Command::Takeover => None,
            Command::Switchover => (!self.core.is_switching()).then(|| {
                Err("the other host did not go on, so the VM goes on here, and nothing is lost; the logs say why".into())
            }),
            Command::Unprotect => (status.protection == Protection::Unprotected)
                .then(|| Ok(format!("the VM runs on unprotected, in term {}", status.term))),
            Command::Protect => self.protected(status.protection, status.term, pending.since_ms),
        }
    }

    fn protected(&self, protection: Protection, term: u64, since_ms: u64) -> Option<Outcome> {
        let host = self
            .session
            .as_ref()
            .map_or("the other host", |session| session.host.as_str());
        match protection {
            Protection::Protected => Some(Ok(format!("the VM is protected by {host}, in term {term}"))),
            _ if self.copy.is_active() => Some(Ok(format!(
                "the VM is being copied to {host} while it runs; `kemari status` says how far"
            ))),
            _ if self.clock.now_ms() >= since_ms + PROTECT_MS_MAX => {
                let trouble = self
                    .connector
                    .trouble()
                    .map(|trouble| format!(" ({trouble})"))
                    .unwrap_or_default();
                Some(Ok(format!(
                    "a secondary is wanted, and taken as soon as one is there; none is so far{trouble}"
                )))
            }
            _ => None,
        }
    }
}

fn answer(order: &Order, outcome: Outcome) {
    // Whoever asked may have gone.
    let _ = order.answer.send(outcome);
}
