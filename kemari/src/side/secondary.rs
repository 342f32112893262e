//! The loop of a secondary: it receives the VM's state, and carries out what `kemari_sync::Secondary`
//! decides.

mod actions;
#[cfg(test)]
mod actions_test;
mod berth;
mod build;
mod disks;
mod drill;
mod idle;
mod inflow;
mod leave;
#[cfg(test)]
mod leave_test;
mod orders;
mod receive;
mod restore;
#[cfg(test)]
pub(super) mod rig;
#[cfg(test)]
mod session_test;
mod sessions;
mod signs;
mod standby;
mod status;
mod time;
mod told;
mod trial;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::{mem, thread};

use anyhow::Context;
use kemari_sync::wire::{Message, Staging, Welcome, encode};
use kemari_sync::{
    ArbiterAnswer, Incarnation, Reign, Secondary, SecondaryAction, SecondaryConfig, SecondaryEvent, Trouble,
};
use kemari_vmm::machine::MachineSpec;
use kemari_vmm::memory;

use super::about::Questions;
use super::arbiter_thread::{AskId, Asker, describe};
use super::board::{Board, Order};
use super::clock::Clock;
use super::drill::{DrillId, News};
use super::mailbox::Mailbox;
use super::readiness::{InUse, Opened, ReadinessWatch, Source};
use super::step::step;
use super::timers::Timed;
use super::wait::prefer_latency;
use crate::config::{Config, Latency};
use crate::link::{Listener, Security};
use crate::replica::{self, Report};
use crate::threads::helpers;
use berth::Berth;
use build::{BuildError, BuildId, Builder};
use drill::Drills;
use idle::Idle;
use inflow::Inflow;
use orders::Orders;
use sessions::Sessions;
use signs::Signs;
use told::Told;

pub use signs::LastSign;
pub use standby::Standby;

/// After something has come on a main connection the loop polls it for so long before it sleeps: in a train
/// of syncs the wake-ups would cost more than the work.
const POLL_US_MAX: u64 = 300;
/// How long staging is kept after this side has ended.
const STAGING_KEPT: Duration = Duration::from_secs(3);

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
    events: VecDeque<SecondaryEvent>,
    actions: Vec<SecondaryAction>,
    sessions: Sessions,
    signs: Signs,
    inflow: Inflow,
    berth: Berth,
    builder: Builder,
    drills: Drills,
    orders: Orders,
    readiness: ReadinessWatch,
    images_in_use: InUse,
    told: Told,
    idle: Idle,
    questions: Questions,
    end: Option<End>,
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
        let listener = step("listen", || listen(&config, &host, security))?;
        let sessions = Sessions::new(listener);
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
            events: VecDeque::new(),
            actions: Vec::new(),
            sessions,
            signs: Signs::default(),
            inflow: Inflow::new(staging),
            berth: Berth::default(),
            builder: Builder::new(overwrite_disks),
            drills: Drills::default(),
            orders: Orders::default(),
            readiness,
            images_in_use,
            told: Told::new(views, not_booted),
            idle: Idle::new(idle_ms_max),
            questions: Questions::default(),
            end: None,
        })
    }

    /// Giving so much memory back takes the kernel tens of milliseconds, in which the process can map no
    /// memory and begin no thread: not now, when a guest waits to go on.
    fn free_staging_later(&mut self) {
        let nothing = Inflow::new(Staging::new(0));
        let staging = mem::replace(&mut self.inflow, nothing).into_staging();
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
            self.note_idle();
            self.note_drills();
            self.fire_due(self.clock.now_us());
            self.check_disks();
            self.settle();
            self.leave_when_known();
            self.answer_takeovers();
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

    fn wait(&self) {
        let (bell, now_ms) = (self.mailbox.fd(), self.clock.now_ms());
        let sleep_ms = self.sleep_ms(self.clock.now_us());
        self.sessions.wait(bell, now_ms, self.may_read(), sleep_ms);
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
        self.signs.forget_clock();
        self.readiness.expect_locked(0);
        self.images_in_use.set(Opened::default());
        self.board.findings().forget(Source::Drill);
        self.board.findings().expect_state();
    }

    /// Takes whoever has come, and answers those who only ask.
    fn accept(&mut self) {
        for mut connection in self.sessions.accept(self.clock.now_ms()) {
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

/// Binds the address that a secondary waits at on this host.
fn listen(config: &Config, host: &str, security: Security) -> anyhow::Result<Listener> {
    let listen = config.host(host).listen.address();
    let listener = Listener::bind(listen, security).with_context(|| {
        format!(
            "cannot listen on {listen}; is another secondary running, or is `listen` not an address of this \
             host?"
        )
    })?;
    tracing::info!("this host waits at {listen} for whoever runs the VM");
    Ok(listener)
}
