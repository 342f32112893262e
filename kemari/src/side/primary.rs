//! A primary: it executes the VM, and carries out what `kemari_sync::Primary` decides.
//!
//! Its work is done by whoever holds its lock: mostly the loop's thread, which waits for sockets, mailbox and
//! deadlines; but a sync that a vCPU's notification asks for is done by that vCPU's own thread, from the
//! capture to the release (`inline`), because waking another thread costs more than the work.

mod actions;
#[cfg(test)]
mod actions_test;
mod announce;
mod connect;
mod demand;
mod disks;
mod holds;
mod inline;
mod orders;
mod owed;
mod parking;
mod peer;
mod receive;
mod reset;
#[cfg(test)]
mod rig;
mod seat;
mod status;
mod stillness;
mod stopwatch;
mod time;
mod trouble;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kemari_sync::{Epoch, KnownStates, Primary, PrimaryAction, PrimaryConfig, PrimaryEvent, Reign, Trouble};
use kemari_vmm::machine::{Machine, MachineEvent};
use kemari_vmm::state::StateBlob;

use super::arbiter_thread::{AskId, Asker, describe};
use super::board::{Board, Order};
use super::capture::Capture;
use super::clock::Clock;
use super::deltas::Deltas;
use super::mailbox::Mailbox;
use super::shown::Shown;
use super::sync_tap::Waits;
use super::timers::Timed;
use super::trace::{Step, Trace};
use super::wait::prefer_latency;
use crate::config::{Config, Latency};
use crate::link::Security;
use crate::replica::Tracker;

use connect::{Connected, Connector};
use demand::Demand;
use holds::{Hold, Holds};
use owed::Owed;
use peer::Peer;
use stillness::{Stillness, Until};
use stopwatch::Stopwatch;
use time::Timer;

pub use seat::Seat;

/// What other threads tell the loop.
pub enum Input {
    /// Output is held that need not leave at once.
    Waits(Waits),
    /// Output may be held that no vCPU has stayed parked for.
    OutputHeld,
    /// There is something to do that another thread has found.
    Wake,
    /// Something happened to the machine.
    Machine(MachineEvent),
    /// Every vCPU has stopped that a capture waits for.
    Parked,
    /// The machine has been reset, or could not be.
    WasReset(Result<(), String>),
    /// What keeps this host from running the VM well has changed.
    Health(Option<Trouble>),
    /// The arbiter's answer.
    Arbiter(AskId, kemari_sync::ArbiterAnswer),
    /// A connection to a secondary stands, or could not be made.
    Connected(Result<Connected, String>),
    /// Why large packets do not arrive at the secondary's host, if that was found.
    Way(Option<String>),
    /// Every released request is finished and durable, says the drain of this number.
    Drained(u64),
    /// The disks that both hosts see are closed, or why not.
    DisksClosed(Result<(), String>),
    /// Nothing is under way on the disks: the first capture of a pair, of this epoch, may be taken.
    DisksAreStill(Epoch),
    /// From the control socket.
    Order(Order),
    /// An image was made larger for this order, or could not be.
    Enlarged(Order, Result<(), String>),
}

/// How a primary ends.
pub enum End {
    /// The VM was stopped cleanly.
    Stopped(String),
    /// Another host has the VM, or this one cannot go on with it.
    Halted(String),
}

/// What a primary is made with.
pub struct Setup {
    pub config: Arc<Config>,
    pub host: String,
    pub mechanism: PrimaryConfig,
    pub reign: Reign,
    pub seat: Seat,
    pub arbiter: Asker,
    pub board: Arc<Board>,
    pub clock: Clock,
    pub trace: Arc<Trace>,
    /// Who watches the replicated disks.
    pub trackers: Vec<Arc<Tracker>>,
    /// `None`: there can be no link.
    pub security: Option<Security>,
}

/// The loop's state.
pub struct PrimarySide {
    config: Arc<Config>,
    core: Primary,
    machine: Arc<Machine>,
    mailbox: Arc<Mailbox<Input>>,
    arbiter: Asker,
    board: Arc<Board>,
    clock: Clock,
    trace: Arc<Trace>,
    demand: Demand,
    peer: Peer,
    /// Events that wait for the core, in order.
    events: VecDeque<PrimaryEvent>,
    actions: Vec<PrimaryAction>,
    owed: Owed,
    capture: Option<Capture>,
    disks: disks::Disks,
    /// The states that the secondary has: only what differs from them is sent.
    known_states: KnownStates<StateBlob>,
    /// The same of pages, as far as they are kept.
    deltas: Deltas,
    /// Why the guest stands still.
    holds: Holds,
    stillness: Stillness,
    announcements: announce::Announcements,
    stopwatch: Stopwatch,
    /// Whose thread does this, and who polls for acks.
    polling: inline::Polling,
    shown: Shown,
    orders: Vec<orders::Pending>,
    end: Option<End>,
}

impl PrimarySide {
    /// A primary whose machine is paused and ready to run. This cannot fail: the VM depends on it by now.
    pub fn new(setup: Setup) -> Self {
        let Setup {
            config,
            host,
            mechanism,
            reign,
            seat,
            arbiter,
            board,
            clock,
            trace,
            trackers,
            security,
        } = setup;
        let Seat {
            machine,
            mailbox,
            waiter,
        } = seat;
        let polling = inline::Polling::new(config.protection.latency, config.machine.vcpus.into());
        let demand = Demand::new(&config.protection, clock, &machine, &mailbox);
        let sink = mailbox.clone();
        board.take_orders(move |order| sink.post(Input::Order(order)));
        board.show_machine(Some(machine.clone()));
        let term = reign.record.term;
        Self {
            core: Primary::new(mechanism, reign, clock.now_ms()),
            peer: Peer::new(Connector::new(&config, &host, security), waiter),
            machine,
            mailbox,
            arbiter,
            board,
            clock,
            trace,
            demand,
            events: VecDeque::new(),
            actions: Vec::new(),
            owed: Owed::default(),
            capture: None,
            disks: disks::Disks::new(trackers, term),
            known_states: KnownStates::default(),
            deltas: Deltas::new(&config.protection),
            holds: Holds::default(),
            stillness: Stillness::default(),
            announcements: announce::Announcements::from(clock.now_ms()),
            stopwatch: Stopwatch::default(),
            polling,
            shown: Shown::default(),
            orders: Vec::new(),
            end: None,
            config,
        }
    }

    /// Counts a takeover by which this primary began.
    pub fn note_takeover(&mut self) {
        self.stopwatch.counters.takeovers += 1;
    }

    /// Runs the VM until it is stopped, or goes on elsewhere.
    pub fn run(self) -> End {
        let (machine, waiter, board) = (
            self.machine.clone(),
            self.peer.waiter().clone(),
            self.board.clone(),
        );
        let side = Arc::new(Mutex::new(self));
        let driven = Arc::downgrade(&side);
        machine.on_parked(Some(Arc::new(move || {
            if let Some(side) = driven.upgrade() {
                lock(&side).drive_parked();
            }
        })));
        if lock(&side).config.protection.latency == Latency::Low {
            prefer_latency();
        }
        lock(&side).trace.note(Step::Running, 0);
        machine.resume();
        loop {
            let mut turn = lock(&side);
            turn.turn();
            if let Some(end) = turn.end.take() {
                machine.on_parked(None);
                board.show_machine(None);
                board.refuse_orders();
                return end;
            }
            let sleep_ms = turn.sleep();
            drop(turn);
            if !inline::poll_for_acks(&side) {
                waiter.wait(sleep_ms);
            }
        }
    }

    fn turn(&mut self) {
        for input in self.mailbox.take() {
            self.on_input(input);
        }
        self.receive();
        self.pump_disks();
        self.pump_copy();
        self.fire_due(self.clock.now_us());
        self.leave_standstill();
        self.begin_orders();
        self.settle();
        // Not before: whoever has just been connected hears the core's greeting first.
        if self.is_due(Timer::Settle, self.clock.now_us()) {
            self.settle_disks();
        }
        self.answer_orders();
        if self.end.is_some() {
            return self.show();
        }
        self.show_now_and_then();
        let is_wanted = self.core.wants_peer() && self.peer.session().is_none();
        self.peer.connector.want(is_wanted);
        self.peer.watch(true);
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Waits(Waits::Console) => self.demand.await_console(self.clock.now_us()),
            Input::Waits(Waits::Until(due_us)) => self.demand.gather.await_until(due_us),
            Input::OutputHeld => {
                self.on_output_held();
                self.settle();
                self.run_unless_held();
            }
            Input::Wake => {}
            Input::Machine(MachineEvent::PowerOff) => self.events.push_back(PrimaryEvent::PoweredOff),
            Input::Machine(MachineEvent::Reset) => self.stillness.wants_reset = true,
            Input::Parked => self.on_parked(),
            Input::WasReset(result) => self.on_reset_done(result),
            Input::Health(trouble) => self.events.push_back(PrimaryEvent::Health { trouble }),
            Input::Machine(MachineEvent::DiskTrouble {
                disk,
                reason,
                fail_over,
            }) => self.on_disk_trouble(&disk, &reason, fail_over),
            Input::Machine(MachineEvent::GuestFailed(why)) => {
                let reason = format!("the guest cannot go on: {why}");
                tracing::error!("{reason}; that is no failure of this host");
                self.events.push_back(PrimaryEvent::GuestFailed { reason });
            }
            Input::Machine(MachineEvent::MuchDirty) => self.owed.look_due_us = self.clock.now_us(),
            Input::Machine(MachineEvent::Failed(reason)) => {
                tracing::error!("{reason}");
                self.events.push_back(PrimaryEvent::HostFailing { reason });
            }
            Input::Arbiter(ask, answer) => {
                let kind = self.config.arbiter.kind;
                self.board.show(|status| status.arbiter = describe(kind, &answer));
                self.events.push_back(PrimaryEvent::Arbiter { ask, answer });
            }
            Input::Connected(outcome) => self.on_connected(outcome),
            Input::Way(narrow) => self.peer.connector.on_way(narrow),
            Input::DisksAreStill(epoch) => self.go_on_from(Until::DisksAreStill(epoch)),
            Input::Drained(drain) => {
                if self.stillness.is_drained(drain) {
                    self.note_stopped_disks();
                    self.events.push_back(PrimaryEvent::Drained);
                }
                // A switchover that failed meanwhile has let the guest run on.
                self.run_unless_held();
            }
            Input::DisksClosed(result) => self.events.push_back(PrimaryEvent::DisksClosed { result }),
            Input::Order(order) => self.on_order(order),
            Input::Enlarged(order, result) => self.on_enlarged(order, result),
        }
    }

    /// Output is held. It may have gone out with a sync meanwhile.
    fn on_output_held(&mut self) {
        if self.machine.output_held() {
            self.events.push_back(PrimaryEvent::OutputPending);
        } else {
            self.run_unless_held();
        }
    }

    /// Lets the guest run, unless something holds it.
    fn resume_unless_held(&self) {
        if self.holds.is_empty() {
            self.machine.resume();
        }
    }

    /// Undoes a pause of the tap that turned out to be for nothing.
    fn run_unless_held(&self) {
        self.resume_unless_held();
        // Another vCPU's output may have asked for a pause after it was looked at:
        // the resume has undone that.
        if self.holds.is_empty_but_for_disk() && self.demand.looked().is_some() {
            self.mailbox.post(Input::OutputHeld);
        }
    }

    /// Feeds the core until it has nothing more to say.
    fn settle(&mut self) {
        loop {
            self.reset_if_possible();
            let Some(event) = self.events.pop_front() else {
                return;
            };
            let mut actions = std::mem::take(&mut self.actions);
            self.core.handle(self.clock.now_ms(), event, &mut actions);
            if self.core.is_over() {
                self.holds.add(Hold::Over);
            }
            for action in actions.drain(..) {
                self.perform(action);
            }
            self.actions = actions;
        }
    }
}

fn lock(side: &Mutex<PrimarySide>) -> MutexGuard<'_, PrimarySide> {
    side.lock().unwrap_or_else(PoisonError::into_inner)
}
