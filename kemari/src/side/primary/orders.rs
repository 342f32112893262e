//! Commands from the control socket, each answered with what came of it.

use kemari_sync::{Pace, PrimaryEvent, Protection, Readiness};

use super::super::board::Order;
use super::super::looks::{Look, Looked, no_answer};
use super::{End, PrimarySide};
use crate::config::ArbiterKind;
use crate::control::{Command, PaceChange};

/// An order to protect the VM is answered after so long, in milliseconds, though no secondary is there yet.
const PROTECT_MS_MAX: u64 = 5000;

/// An order whose outcome is open. There are no more of them than clients of the control socket.
pub struct Pending {
    order: Order,
    since_ms: u64,
    /// It would end a pair, and is not begun: the look at the arbiter that it waits for.
    awaits: Option<Look>,
}

pub(super) type Outcome = Result<String, String>;

impl PrimarySide {
    pub(super) fn on_order(&mut self, order: Order) {
        if !self.is_pair() || !self.ends_pair(&order.command) {
            return self.begin_order(order);
        }
        let look = Look::begin(&self.board, self.clock.now_ms());
        self.keep_order(order, Some(look));
        self.begin_orders();
    }

    fn ends_pair(&self, command: &Command) -> bool {
        match command {
            Command::Switchover | Command::Leave | Command::Unprotect => true,
            Command::Resize => self.has_replica_grown(),
            _ => false,
        }
    }

    /// When something becomes of an order at the latest though nothing happens.
    pub(super) fn orders_due_ms(&self) -> Option<u64> {
        let timeout = self.config.arbiter.timeout();
        let due_ms = |pending: &Pending| match (&pending.awaits, &pending.order.command) {
            (Some(look), _) => Some(look.due_ms(timeout)),
            (None, Command::Protect) => Some(pending.since_ms + PROTECT_MS_MAX),
            _ => None,
        };
        self.orders.iter().filter_map(due_ms).min()
    }

    /// Begins the orders whose looks are over.
    pub(super) fn begin_orders(&mut self) {
        let (now_ms, timeout) = (self.clock.now_ms(), self.config.arbiter.timeout());
        for pending in std::mem::take(&mut self.orders) {
            let Some(look) = pending.awaits else {
                self.orders.push(pending);
                continue;
            };
            match look.state(&self.board, timeout, now_ms) {
                Looked::NotYet => self.orders.push(pending),
                Looked::TooLate => answer(
                    &pending.order,
                    Err(format!(
                        "the VM could stand still until the arbiter can be asked: {}",
                        no_answer(timeout)
                    )),
                ),
                Looked::Fresh if self.needs_more(&pending.order.command) && !look.is_due(timeout, now_ms) => {
                    self.orders.push(pending);
                }
                Looked::Fresh => self.begin_order(pending.order),
            }
        }
    }

    /// Whether an order to end the pair waits for what the other side finds, too:
    /// if the VM is to go on there.
    fn needs_more(&self, command: &Command) -> bool {
        if !matches!(command, Command::Switchover | Command::Leave) || !self.is_pair() {
            return false;
        }
        let readiness = self.core.status(self.clock.now_ms()).readiness;
        if readiness.as_ref().is_some_and(Readiness::is_unseen) {
            return true;
        }
        // If this side has just found the arbiter away, the other one may be about to.
        self.board.arbiter_trouble().is_some() && self.nobody_could_go_on().is_none()
    }

    fn is_pair(&self) -> bool {
        self.core.status(self.clock.now_ms()).protection == Protection::Protected
    }

    fn keep_order(&mut self, order: Order, awaits: Option<Look>) {
        self.orders.push(Pending {
            order,
            since_ms: self.clock.now_ms(),
            awaits,
        });
    }

    fn begin_order(&mut self, mut order: Order) {
        let is_leaving = order.command == Command::Leave;
        if is_leaving {
            // The VM goes on elsewhere if it can, and ends cleanly if nobody else has it.
            let protection = self.core.status(self.clock.now_ms()).protection;
            order.command = match self.core.refuses_switchover() {
                None => match self.nobody_could_go_on() {
                    Some(reason) => return answer(&order, Err(reason)),
                    None => Command::Switchover,
                },
                Some(_) if self.core.is_switching() => {
                    order.command = Command::Switchover;
                    return self.keep_order(order, None);
                }
                // A secondary that may be back in a moment, or go on by itself, is no reason to end the VM.
                Some(reason) if protection == Protection::Deciding => return answer(&order, Err(reason)),
                Some(_) => Command::Stop,
            };
        }
        let event = match order.command.clone() {
            Command::Takeover => {
                Err("this side is the primary already; say that to the secondary".to_owned())
            }
            Command::Drill { .. } => {
                Err("a drill is the secondary's: say that to it, on the other host".to_owned())
            }
            Command::Resume => return answer(&order, self.resume_after_trouble()),
            Command::Resize => match self.begin_resize() {
                Some(outcome) => return answer(&order, outcome),
                None => self.unprotect(),
            },
            Command::Enlarge { disk, bytes } => return self.enlarge(order, &disk, bytes),
            Command::Switchover if self.holds.disk().is_some() => Err(
                "a disk of this host fails, so its I/O cannot be finished first: say `kemari resume`, or \
                 `kemari takeover` to the secondary"
                    .to_owned(),
            ),
            Command::AdoptRecord => self.begin_adoption(),
            Command::Pace(change) => {
                let outcome = self.change_pace(change);
                self.show();
                return answer(&order, outcome);
            }
            // A process that is to end tries all the same: what fails there goes on here.
            Command::Switchover => match (
                self.core.refuses_switchover(),
                self.core.peer_lacks(self.clock.now_ms()),
            ) {
                (Some(reason), _) => Err(reason),
                (None, Some(lacks)) if !is_leaving => Err(match self.board.arbiter_trouble() {
                    Some(trouble) => still_stands(&trouble, &lacks),
                    None => format!("the secondary could not go on now: {lacks}"),
                }),
                _ => Ok(PrimaryEvent::OperatorSwitchover),
            },
            Command::Protect => match self.peer.connector.refuses() {
                Some(reason) => Err(reason.to_owned()),
                None => Ok(PrimaryEvent::OperatorProtect),
            },
            Command::Unprotect => self.unprotect(),
            Command::Stop | Command::Leave => Ok(PrimaryEvent::OperatorStop),
        };
        match event {
            Ok(event) => self.events.push_back(event),
            Err(reason) => return answer(&order, Err(reason)),
        }
        self.keep_order(order, None);
    }

    /// Why the VM would stand still if the roles changed now: the secondary could not win the term, nor this
    /// side have it back. As long as nobody asks, the pair needs no arbiter.
    fn nobody_could_go_on(&self) -> Option<String> {
        let here = self.board.arbiter_trouble()?;
        let there = self.core.peer_lacks(self.clock.now_ms())?;
        Some(still_stands(&here, &there))
    }

    /// The arbiter must agree that this side goes on alone, and the VM stands still until it has.
    fn unprotect(&self) -> Result<PrimaryEvent, String> {
        match self.board.arbiter_trouble().filter(|_| self.is_pair()) {
            Some(trouble) => Err(format!(
                "the VM would stand still until the arbiter can be asked: {trouble}"
            )),
            None => Ok(PrimaryEvent::OperatorUnprotect),
        }
    }

    fn begin_adoption(&mut self) -> Result<PrimaryEvent, String> {
        let is_adoption = |pending: &Pending| pending.order.command == Command::AdoptRecord;
        if self.orders.iter().any(is_adoption) {
            return Err("the record is being given back already".to_owned());
        }
        Ok(PrimaryEvent::OperatorAdopt {
            store: rand::random(),
        })
    }

    /// What became of the order to give the record back.
    pub(super) fn on_adopted(&mut self, outcome: Outcome) {
        match &outcome {
            Ok(text) => tracing::warn!("{text}"),
            Err(reason) => tracing::error!("the arbiter's record is not given back: {reason}"),
        }
        for pending in std::mem::take(&mut self.orders) {
            match pending.order.command {
                Command::AdoptRecord => answer(&pending.order, outcome.clone()),
                _ => self.orders.push(pending),
            }
        }
    }

    fn change_pace(&mut self, change: PaceChange) -> Outcome {
        let range = self.config.protection.dirty_pages_range();
        if let Some(pages) = change.max_dirty_pages.filter(|pages| !range.contains(pages)) {
            return Err(format!(
                "the limit of dirty pages cannot be {pages}: with this staging it is {} to {}",
                range.start(),
                range.end()
            ));
        }
        let mut pace = self.demand.pace();
        pace.mode = change.mode.unwrap_or(pace.mode);
        pace.interval_ms = change.interval_ms.unwrap_or(pace.interval_ms);
        pace.max_interval_ms = change.max_interval_ms.unwrap_or(pace.max_interval_ms);
        pace.max_dirty_pages = change.max_dirty_pages.unwrap_or(pace.max_dirty_pages);
        let sentence = format!("the pace of the syncs is now: {pace}");
        tracing::info!("{sentence}");
        self.demand.set_pace(pace);
        self.events.push_back(PrimaryEvent::OperatorPace(Pace {
            mode: pace.mode.into(),
            interval_ms: pace.interval_ms.into(),
            max_interval_ms: pace.max_interval_ms.into(),
        }));
        // What the tap has let pass under the old pace.
        self.ask_again_for_held();
        Ok(sentence)
    }

    /// Answers the orders whose outcome is known. To be called when the core has nothing more to say.
    pub(super) fn answer_orders(&mut self) {
        for pending in std::mem::take(&mut self.orders) {
            let outcome = match pending.order.command {
                Command::Resize if self.end.is_none() && pending.awaits.is_none() => self.end_resize(),
                _ => self.outcome(&pending),
            };
            match outcome {
                Some(outcome) => {
                    // Whoever asks next how things stand must find what was done.
                    self.show();
                    answer(&pending.order, outcome);
                }
                None => self.orders.push(pending),
            }
        }
    }

    fn outcome(&self, pending: &Pending) -> Option<Outcome> {
        match (&pending.order.command, &self.end) {
            (Command::Stop, Some(End::Stopped(reason))) => {
                return Some(Ok(format!("the VM has ended: {reason}")));
            }
            // Nobody keeps a record that would say so.
            (Command::Switchover, Some(End::Halted(_))) if self.config.arbiter.kind == ArbiterKind::None => {
                return Some(Ok(
                    "given to the other host; without an arbiter this one does not learn whether it goes on \
                     there: look there; this host follows as its secondary"
                        .to_owned(),
                ));
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
            (_, None) if pending.awaits.is_some() => return None,
            (_, None) => {}
        }
        let status = self.core.status(self.clock.now_ms());
        match pending.order.command {
            Command::Stop | Command::Takeover | Command::Leave | Command::Pace(_) => None,
            Command::AdoptRecord => None,
            Command::Resume | Command::Resize | Command::Enlarge { .. } | Command::Drill { .. } => None,
            Command::Switchover => (!self.core.is_switching()).then(|| {
                Err("the other host did not go on, so the VM goes on here, and nothing is lost; the logs say \
                     why".into())
            }),
            Command::Unprotect => (status.protection == Protection::Unprotected)
                .then(|| Ok(format!("the VM runs on unprotected, in term {}", status.term))),
            Command::Protect => self.protected(status.protection, status.term, pending.since_ms),
        }
    }

    fn protected(&self, protection: Protection, term: u64, since_ms: u64) -> Option<Outcome> {
        let host = self
            .peer
            .session()
            .map_or("the other host", |session| session.host.as_str());
        match protection {
            Protection::Protected => Some(Ok(format!("the VM is protected by {host}, in term {term}"))),
            _ if self.owed.copy.is_active() => Some(Ok(format!(
                "the VM is being copied to {host} while it runs; `kemari status` says how far"
            ))),
            _ if self.clock.now_ms() >= since_ms + PROTECT_MS_MAX => {
                let trouble = self
                    .peer
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

/// Neither side could have a new term.
fn still_stands(here: &str, there: &str) -> String {
    format!(
        "the VM would stand still until the arbiter can be asked, on either host: {here}; the secondary: \
         {there}"
    )
}

pub(super) fn answer(order: &Order, outcome: Outcome) {
    // Whoever asked may have gone.
    let _ = order.answer.send(outcome);
}

#[cfg(test)]
#[path = "orders_test.rs"]
mod tests;
