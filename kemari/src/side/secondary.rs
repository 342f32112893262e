//! The loop of a secondary: it receives the VM's state, and carries out what `kemari_sync::Secondary` decides.

mod actions;
#[cfg(test)]
mod actions_test;
mod berth;
mod build;
mod disks;
mod drill;
mod leave;
#[cfg(test)]
mod leave_test;
mod receive;
mod restore;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod session_test;
mod standby;
mod status;
mod trial;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
use std::{iter, mem, thread};

use anyhow::Context;
use kemari_sync::wire::{Message, Staging, Welcome, encode};
use kemari_sync::{
    ArbiterAnswer, Incarnation, Reign, Secondary, SecondaryAction, SecondaryConfig, SecondaryEvent,
    SessionId, Trouble,
};
use kemari_vmm::machine::MachineSpec;
use kemari_vmm::memory;
use kemari_vmm::state::StateBlob;

use super::about::Questions;
use super::arbiter_thread::{AskId, Asker, describe};
use super::board::{Board, Order};
use super::clock::Clock;
use super::drill::{DrillId, News};
use super::mailbox::Mailbox;
use super::readiness::{Announced, Clocks, InUse, Opened, ReadinessWatch, Source};
use super::shown::Shown;
use super::step::step;
use super::wait::{prefer_latency, wait};
use crate::config::{Config, Latency};
use crate::control::{Command, Counters};
use crate::link::{Arrival, Connection, Listener, Security};
use crate::replica::{self, ImageView, Remains, Report};
use crate::threads::helpers;
use berth::Berth;
use build::{BuildError, BuildId};
use drill::Drills;

pub use standby::Standby;

/// Longest wait of the loop, in milliseconds, whatever the deadlines.
const WAIT_MS_MAX: u64 = 1000;
/// After something has come on a main connection the loop polls it for so long before it sleeps: in a train of syncs the
/// wake-ups would cost more than the work.
const POLL_US_MAX: u64 = 300;
/// How long staging is kept after this side has ended.
const STAGING_KEPT: Duration = Duration::from_secs(3);
/// Most sessions at a time: one that lives, one that replaces it, and one too many to be told so.
const SESSIONS_MAX: usize = 3;

/// What other threads tell the loop.
pub enum Input {
    /// A standby machine was built, or could not be.
    Prepared(Result<Box<Standby>, BuildError>),
    /// The arbiter's answer.
    Arbiter(AskId, ArbiterAnswer),
    /// What the replica of this number says, of the standby of that build.
    Replica(BuildId, usize, Report),
    /// The fence command has ended.
    Fenced(Result<(), String>),
    /// What keeps this host from running the VM well has changed.
    Health(Option<Trouble>),
    /// What would keep this host from taking over now, told about once a second.
    Readiness(Vec<String>),
    /// What the drill of this number says.
    Drill(DrillId, News),
    /// From the control socket.
    Order(Order),
}

/// How a secondary ends.
// There is one: a box would save nothing.
#[expect(clippy::large_enum_variant)]
pub enum End {
    /// It has the VM now: the standby holds its state.
    TookOver(Reign, Box<Standby>, LastSign),
    /// The VM was stopped cleanly.
    Stopped(String),
    /// This process is to end; the primary has been told.
    Left,
    /// There was no primary for [`Setup::idle_ms_max`].
    Idle,
}

/// The last that was seen of the old primary.
pub struct LastSign {
    /// When it was heard, in microseconds of the side's clock.
    pub heard_us: u64,
    /// What it was doing, as far as it was seen from here.
    pub step: &'static str,
    /// For how long the guest had stood still then, in milliseconds, if the end was planned.
    pub paused_ms: Option<u64>,
}

struct Session {
    id: SessionId,
    main: Connection,
    heartbeat: Connection,
    /// Whether any message has come. From then on the core keeps it, or ends it.
    has_spoken: bool,
}

/// What a secondary is made with.
pub struct Setup {
    pub config: Arc<Config>,
    pub host: String,
    pub spec: MachineSpec,
    pub mechanism: SecondaryConfig,
    pub mailbox: Arc<Mailbox<Input>>,
    pub arbiter: Asker,
    pub board: Arc<Board>,
    pub clock: Clock,
    pub security: Security,
    /// The operator's word that images of this history may be overwritten.
    pub overwrite_disks: Option<String>,
    /// Where it is to be noted which images are open.
    pub images_in_use: InUse,
    /// Why this side has not booted the VM itself, if it may.
    pub not_booted: Option<String>,
    /// After so long without a primary, holding nothing, it ends as [`End::Idle`], in milliseconds.
    pub idle_ms_max: Option<u64>,
}

/// The loop's state.
pub struct SecondarySide {
    config: Arc<Config>,
    host: String,
    spec: MachineSpec,
    me: Incarnation,
    core: Secondary,
    mailbox: Arc<Mailbox<Input>>,
    arbiter: Asker,
    board: Arc<Board>,
    clock: Clock,
    listener: Listener,
    sessions: Vec<Session>,
    next_session: SessionId,
    events: VecDeque<SecondaryEvent>,
    actions: Vec<SecondaryAction>,
    staging: Staging,
    /// The states that the sync brings that was checked.
    checked_states: Vec<StateBlob>,
    /// The session and sync whose frames are staged.
    staged: Option<(SessionId, u64)>,
    berth: Berth,
    /// The operator's word that images of this history may be overwritten.
    overwrite_disks: Option<String>,
    /// Replicas that were let go while their images did not answer.
    remains: Vec<Remains>,
    /// What each replicated disk's record said last.
    views: Vec<Result<ImageView, String>>,
    /// Term of the sync that began last.
    begun_term: u64,
    next_build: BuildId,
    counters: Counters,
    drills: Drills,
    heard_us: Option<u64>,
    /// Until when the main connections are polled, in microseconds.
    poll_until_us: u64,
    /// What the primary was last seen doing.
    step: &'static str,
    /// See [`LastSign::paused_ms`].
    paused_ms: Option<u64>,
    /// Orders to take over, whose outcome is open. There are no more of them than clients of the control socket.
    takeovers: Vec<Order>,
    leaves: leave::Leaves,
    shown: Shown,
    announced: Announced,
    clocks: Clocks,
    readiness: ReadinessWatch,
    images_in_use: InUse,
    /// See [`Setup::not_booted`].
    not_booted: Option<String>,
    /// The disks that a takeover waits for, or has waited for, as they were told.
    held: Vec<String>,
    /// Why this side has ended a session, since it protected the VM last.
    parted: Option<String>,
    /// See [`Setup::idle_ms_max`].
    idle_ms_max: Option<u64>,
    /// Since when nobody is connected and nothing is held.
    idle_since_ms: Option<u64>,
    /// Whether a connection's buffer may hold frames that were left for the next turn.
    more_is_there: bool,
    end: Option<End>,
    questions: Questions,
}

impl SecondarySide {
    /// A secondary that listens, and holds nothing yet.
    pub fn new(setup: Setup) -> anyhow::Result<Self> {
        let Setup {
            config,
            host,
            spec,
            mut mechanism,
            mailbox,
            arbiter,
            board,
            clock,
            security,
            overwrite_disks,
            idle_ms_max,
            not_booted,
            images_in_use,
        } = setup;
        let listen = config.host(&host).listen.address();
        let listener = step("listen", || {
            Listener::bind(listen, security).with_context(|| {
                format!(
                    "cannot listen on {listen}; is another secondary running, or is `listen` not an address of this host?"
                )
            })
        })?;
        tracing::info!("this host waits at {listen} for whoever runs the VM");
        let staging = Staging::with_states(
            config.protection.staging_bytes_max() as usize,
            spec.state_bytes_max(),
        );
        memory::keep_out_of_dumps(staging.block());
        mechanism.staging_pages_max = staging.pages_max();
        let views = replica::views(&config, &host)
            .into_iter()
            .map(|view| view.map_err(|error| format!("{error:#}")))
            .collect();
        let sink = mailbox.clone();
        let readiness = step("watch the readiness", || {
            let sink = mailbox.clone();
            ReadinessWatch::start(
                config.clone(),
                host.clone(),
                board.findings().clone(),
                move |reasons| sink.post(Input::Readiness(reasons)),
            )
        })?;
        board.take_orders(move |order| sink.post(Input::Order(order)));
        Ok(Self {
            me: mechanism.me.clone(),
            core: Secondary::new(mechanism, clock.now_ms()),
            config,
            host,
            spec,
            mailbox,
            arbiter,
            board,
            clock,
            listener,
            sessions: Vec::new(),
            next_session: 1,
            events: VecDeque::new(),
            actions: Vec::new(),
            staging,
            checked_states: Vec::new(),
            staged: None,
            berth: Berth::default(),
            overwrite_disks,
            remains: Vec::new(),
            views,
            begun_term: 0,
            next_build: 1,
            counters: Counters::default(),
            drills: Drills::default(),
            heard_us: None,
            poll_until_us: 0,
            step: "running",
            paused_ms: None,
            takeovers: Vec::new(),
            leaves: leave::Leaves::default(),
            shown: Shown::default(),
            announced: Announced::default(),
            clocks: Clocks::default(),
            readiness,
            images_in_use,
            not_booted,
            held: Vec::new(),
            parted: None,
            idle_ms_max,
            idle_since_ms: None,
            more_is_there: false,
            end: None,
            questions: Questions::default(),
        })
    }

    /// Giving so much memory back takes the kernel tens of milliseconds, in which the process can map no memory and begin
    /// no thread: not now, when a guest waits to go on.
    fn free_staging_later(&mut self) {
        let staging = mem::replace(&mut self.staging, Staging::new(0));
        helpers::run("free staging", move || {
            thread::sleep(STAGING_KEPT);
            drop(staging);
        });
    }

    /// Follows primaries until it takes a VM over, or the VM is stopped.
    pub fn run(mut self) -> End {
        if self.config.protection.latency == Latency::Low {
            prefer_latency();
        }
        loop {
            for input in self.mailbox.take() {
                self.on_input(input);
            }
            self.settle();
            self.accept();
            self.receive();
            self.poll_main();
            let now_ms = self.clock.now_ms();
            if self.core.next_deadline().is_some_and(|due_ms| due_ms <= now_ms) {
                self.events.push_back(SecondaryEvent::Tick);
            }
            self.check_disks();
            self.drill_when_due();
            self.try_state();
            self.settle();
            self.leave_when_known();
            self.answer_takeovers();
            self.note_idle(now_ms);
            if let Some(end) = self.end.take() {
                self.board.refuse_orders();
                self.board.show(|status| status.drill = None);
                self.free_staging_later();
                return end;
            }
            self.show_now_and_then();
            self.wait();
        }
    }

    fn note_idle(&mut self, now_ms: u64) {
        // A build has the images until it ends.
        if !self.sessions.is_empty() || self.core.holds().is_some() || self.berth.build().is_some() {
            self.idle_since_ms = None;
            return;
        }
        let since_ms = *self.idle_since_ms.get_or_insert(now_ms);
        if self.end.is_none()
            && self
                .idle_ms_max
                .is_some_and(|most_ms| now_ms >= since_ms + most_ms)
        {
            self.end = Some(End::Idle);
        }
    }

    fn wait(&self) {
        let now_ms = self.clock.now_ms();
        let idle_ms = self
            .idle_ms_max
            .zip(self.idle_since_ms)
            .map(|(most_ms, since_ms)| since_ms + most_ms);
        // What was read off a connection and left in its buffer makes nothing readable.
        let at_once = (self.more_is_there && !self.disks_are_full()).then_some(now_ms);
        let due_ms = [
            self.core.next_deadline(),
            self.listener.due_ms(now_ms),
            self.shown.due_ms(),
            self.leaves.due_ms(now_ms),
            idle_ms,
            at_once,
        ];
        let timeout_ms = due_ms
            .into_iter()
            .flatten()
            .min()
            .map_or(WAIT_MS_MAX, |due| due.saturating_sub(now_ms));
        let readable: Vec<BorrowedFd<'_>> = iter::once(self.mailbox.fd())
            .chain(self.listener.fd(now_ms))
            .collect();
        // What comes on a main connection waits there as long as a replica's queue is full.
        let may_read = !self.disks_are_full();
        let sessions = self.sessions.iter().flat_map(|session| {
            let main = (may_read || session.main.wants_to_write()).then_some(&session.main);
            main.into_iter().chain([&session.heartbeat])
        });
        wait(
            &readable,
            sessions.chain(self.listener.connections()),
            timeout_ms.min(WAIT_MS_MAX),
        );
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Prepared(result) => self.on_prepared(result),
            Input::Arbiter(ask, answer) => {
                let kind = self.config.arbiter.kind;
                self.board.show(|status| status.arbiter = describe(kind, &answer));
                self.events.push_back(SecondaryEvent::Arbiter { ask, answer });
            }
            Input::Replica(build, index, report) => self.on_replica(build, index, report),
            Input::Fenced(result) => self.events.push_back(SecondaryEvent::Fenced { result }),
            Input::Health(trouble) => self.events.push_back(SecondaryEvent::Health { trouble }),
            Input::Readiness(reasons) => self.events.push_back(SecondaryEvent::Readiness { reasons }),
            Input::Drill(id, news) => self.on_drill(id, news),
            Input::Order(order) => self.on_order(order),
        }
    }

    fn on_order(&mut self, order: Order) {
        if order.command == Command::Leave {
            return self.on_leave(order);
        }
        if order.command == Command::Takeover && self.core.holds().is_some() {
            self.events.push_back(SecondaryEvent::OperatorTakeover);
            return self.takeovers.push(order);
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
    fn answer_takeovers(&mut self) {
        let outcome = match &self.end {
            Some(End::TookOver(reign, ..)) => {
                Ok(format!("the VM goes on here, in term {}", reign.record.term))
            }
            Some(End::Stopped(reason)) => Err(format!("the VM has ended: {reason}")),
            Some(End::Left | End::Idle) => Err("this side has let the VM go".into()),
            None if self.core.holds().is_none() => Err("another has the VM; the log says who".to_owned()),
            None => return,
        };
        self.takeovers
            .drain(..)
            .for_each(|order| answer(&order, outcome.clone()));
    }

    /// Feeds the core until it has nothing more to say.
    fn settle(&mut self) {
        while let Some(event) = self.events.pop_front() {
            let mut actions = std::mem::take(&mut self.actions);
            self.core.handle(self.clock.now_ms(), event, &mut actions);
            for action in actions.drain(..) {
                self.perform(action);
            }
            self.actions = actions;
        }
    }

    /// What was found out about what is void now.
    fn forget_findings(&mut self) {
        self.clocks = Clocks::default();
        self.readiness.expect_locked(0);
        self.images_in_use.set(Opened::default());
        self.board.findings().forget(Source::Drill);
        self.board.findings().expect_state();
    }

    /// Whoever has said nothing yet gives way, the oldest first: it must not keep the right primary out.
    fn end_a_mute_session(&mut self) {
        let mute = self.sessions.iter().position(|session| !session.has_spoken);
        if let Some(place) = mute {
            let session = self.sessions.remove(place);
            tracing::info!("{} has said nothing and gives way", session.main.peer_address());
        }
    }

    fn accept(&mut self) {
        for arrival in self.listener.poll(self.clock.now_ms()) {
            if matches!(arrival, Arrival::Session { .. }) && self.sessions.len() >= SESSIONS_MAX {
                self.end_a_mute_session();
            }
            match arrival {
                Arrival::Session { main, heartbeat } if self.sessions.len() < SESSIONS_MAX => {
                    let id = self.next_session;
                    self.next_session += 1;
                    tracing::info!("{} has connected", main.peer_address());
                    self.sessions.push(Session {
                        id,
                        main,
                        heartbeat,
                        has_spoken: false,
                    });
                }
                Arrival::Session { main, .. } => {
                    tracing::warn!("{} was sent away: too many sessions", main.peer_address());
                }
                // A port scan, a health check, `kemari check`: not worth a warning. Nor is a peer that cannot be told
                // from them, but its operator will look here.
                Arrival::Refused { address, reason } => {
                    tracing::info!("{address} was refused: {:#}", anyhow::Error::from(reason));
                }
                Arrival::Query(mut connection) => {
                    let mut bytes = Vec::new();
                    let welcome = Welcome {
                        incarnation: self.me.clone(),
                        last: self.core.holds(),
                    };
                    encode(&Message::Welcome(welcome), &mut bytes);
                    connection.send(bytes);
                    let kernel = self.spec.kernel.digest();
                    self.questions
                        .answer(connection, self.config.clone(), self.host.clone(), kernel);
                }
            }
        }
    }
}

fn answer(order: &Order, outcome: Result<String, String>) {
    // Whoever asked may have gone.
    let _ = order.answer.send(outcome);
}
