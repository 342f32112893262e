//! The world: what there is, and who takes each event.

use std::collections::VecDeque;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::consent::StartEvent;
use crate::primary::{Mode, PrimaryEvent};
use crate::record::Incarnation;
use crate::secondary::SecondaryEvent;

use super::chaos::Flags;
use super::client::{CLIENTS, Client};
use super::events::{Event, Queue, ToProcess};
use super::exhaustive::Steps;
use super::fences::Fence;
use super::host::{Host, Process};
use super::image::Image;
use super::invariants::replica::Blocks;
use super::invariants::{Checks, Invariant};
use super::net::{Connection, Cuts};
use super::script::Script;
use super::setup::Setup;
use super::store::Store;
use super::vm::PAGES;
use super::{HOSTS, Outcome, Violation};

/// Lines kept of a trace: the last ones.
const TRACE_LINES_MAX: usize = 20_000;

pub(super) struct World {
    pub(super) now_us: u64,
    pub(super) queue: Queue,
    pub(super) rng: ChaCha8Rng,
    pub(super) setup: Setup,
    pub(super) script: Script,
    pub(super) flags: Flags,
    pub(super) hosts: [Host; HOSTS],
    pub(super) connections: Vec<Connection>,
    pub(super) cuts: Cuts,
    pub(super) store: Store,
    /// Per block: number and hash of the last write.
    pub(super) disk: Blocks,
    pub(super) clients: [Client; CLIENTS],
    pub(super) checks: Checks,
    pub(super) fences: Vec<Fence>,
    /// Counts them.
    pub(super) fences_begun: u64,
    /// Counts processes.
    pub(super) lives: u64,
    /// Counts cold boots of the VM.
    pub(super) vm_life: u64,
    /// Counts standbys.
    pub(super) prepared: u64,
    /// Counts the hosts on which the operator has tried to start the VM.
    pub(super) starts_tried: usize,
    pub(super) healed: bool,
    pub(super) takeovers: u64,
    pub(super) commits: u64,
    events: u64,
    trace: Option<VecDeque<String>>,
    /// Steps counted, and crashes laid over them.
    pub(super) steps: Steps,
    over: bool,
}

impl World {
    pub(super) fn new(seed: u64, mode: Option<Mode>, traced: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Drawn apart, so that the other runs stay what they are.
        let mut apart = ChaCha8Rng::seed_from_u64(!seed);
        let setup = Setup::draw(mode, &mut rng, &mut apart);
        let first_fence_fails = apart.random_bool(0.2);
        let restore_failures = match apart.random_bool(0.2) {
            true => apart.random_range(1..4),
            false => 0,
        };
        let mut script = Script::draw(&mut rng);
        script.draw_defects(&mut apart);
        let mut world = Self::begun(rng, setup, script, Steps::default(), traced);
        world.flags.fence_fails = first_fence_fails;
        // The bound after a single failure is for a takeover that fails once, in one thing.
        let fences_are_well = !first_fence_fails && !world.setup.slow_fences;
        world.flags.restore_failures = match world.script.is_single {
            true => restore_failures.min(u32::from(fences_are_well)),
            false => restore_failures,
        };
        world
    }

    /// A world with a script of its own.
    pub(super) fn begun(rng: ChaCha8Rng, setup: Setup, script: Script, steps: Steps, traced: bool) -> Self {
        let host = |index: usize| Host {
            process: Process::None,
            life: 0,
            boot: 1,
            powered: true,
            image: Image::default(),
            me: Incarnation {
                host: ["a", "b", "c"][index].to_owned(),
                nonce: 0,
            },
            looked_us: 0,
            stopped_until_us: 0,
            tick_us: None,
            primary_actions: Vec::new(),
            secondary_actions: Vec::new(),
        };
        let mut world = Self {
            now_us: 0,
            queue: Queue::default(),
            rng,
            setup,
            script,
            flags: Flags::default(),
            hosts: [host(0), host(1), host(2)],
            connections: Vec::new(),
            cuts: [[false; HOSTS]; HOSTS],
            store: Store::default(),
            disk: [(0, 0); PAGES],
            clients: Default::default(),
            checks: Checks::default(),
            fences: Vec::new(),
            fences_begun: 0,
            lives: 0,
            vm_life: 0,
            prepared: 0,
            starts_tried: 0,
            healed: false,
            takeovers: 0,
            commits: 0,
            events: 0,
            trace: traced.then(VecDeque::new),
            steps,
            over: false,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let setup = &self.setup;
        let text = format!(
            "{:?}, disk: {}, replicated: {}, slow fences: {}, flush: {:?}, on error: {:?}, grows: {}, delay: \
             {} us",
            setup.mode,
            setup.has_disk,
            setup.replicated,
            setup.slow_fences,
            setup.flush,
            setup.on_error,
            self.script.grows,
            setup.delay_us
        );
        self.note(|| text);
        self.flags.breaks_pairing = self.script.breaks_pairing;
        self.begin_images();
        self.start_secondary(1);
        self.start_cold(0, None);
        if self.script.third_host {
            self.start_secondary(2);
        }
        for client in 0..CLIENTS {
            self.set_alarm(client, 1_000 + client as u64 * 700);
        }
        for (at_us, blow) in std::mem::take(&mut self.script.blows) {
            self.at(at_us, Event::Blow(blow));
        }
        self.at(self.script.heal_us, Event::Heal);
        self.at(self.script.end_us, Event::End);
    }

    pub(super) fn run(&mut self) {
        while let Some((at_us, event)) = self.queue.take_next() {
            if self.over || self.checks.violation.is_some() {
                break;
            }
            debug_assert!(at_us >= self.now_us);
            self.now_us = at_us;
            self.events += 1;
            self.dispatch(event);
            self.judge_marks();
        }
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Process { host, life, what } => self.deliver(host, life, what),
            Event::Pump {
                connection,
                sender,
                channel,
            } => self.pump(connection, sender, channel),
            Event::Connect { from, life, to } => self.connect(from, life, to),
            Event::Ask {
                host,
                life,
                ask,
                request,
                answered,
            } => self.ask(host, life, ask, &request, answered),
            Event::WriteLands {
                host,
                boot,
                life,
                number,
                reply,
            } => {
                self.write_lands(host, boot, life, number, reply);
            }
            Event::FenceEnds(fence) => self.fence_ends(fence),
            Event::Client { client, alarm } => self.client_wakes(client, alarm),
            Event::Reply(reply) => self.client_hears(reply),
            Event::Blow(blow) => self.strike(blow),
            Event::Heal => self.heal(),
            Event::Operator => self.operate(),
            Event::CheckProgress => self.check_progress("after a single failure"),
            Event::End => {
                self.check_progress("at the end, long after everything was healed");
                self.check_protection();
                self.over = true;
            }
        }
    }

    fn deliver(&mut self, host: usize, life: u64, what: ToProcess) {
        let it = &self.hosts[host];
        if it.life != life {
            return;
        }
        if it.stopped_until_us > self.now_us {
            let at_us = it.stopped_until_us;
            return self.at(at_us, Event::Process { host, life, what });
        }
        match what {
            ToProcess::Tick => self.tick(host),
            ToProcess::Primary(event) => self.feed_primary(host, event),
            ToProcess::Secondary(event) => self.feed_secondary(host, event),
            ToProcess::Start(event) => self.feed_start(host, event),
            ToProcess::Answer(ask, answer) => match &self.hosts[host].process {
                Process::None => {}
                Process::Starting(_) => self.feed_start(host, StartEvent::Arbiter { ask, answer }),
                Process::Primary(_) => self.feed_primary(host, PrimaryEvent::Arbiter { ask, answer }),
                Process::Secondary(_) => self.feed_secondary(host, SecondaryEvent::Arbiter { ask, answer }),
            },
            ToProcess::Dial => self.dial(host),
            ToProcess::CopyRoundSent(session) => self.copy_round_sent(host, session),
            ToProcess::VmTick => self.vm_tick(host),
            ToProcess::Request(request) => self.vm_request(host, request),
            ToProcess::WriteDone(number, done) => self.vm_write_done(host, number, done),
            ToProcess::RequestFailed(number) => self.request_failed(host, number),
            ToProcess::RetryDisk => self.retry_disk(host),
            ToProcess::Resize => self.begin_resize(host),
            ToProcess::ReplicaFailed(generation) => self.replica_failed(host, generation),
            ToProcess::ImageFlushed {
                number,
                flush,
                covered,
            } => self.image_flushed(host, number, &flush, *covered),
            ToProcess::ReplicaFlushed {
                generation,
                carried,
                flush,
            } => self.replica_flushed(host, generation, carried, &flush),
            ToProcess::CopyFlushed { session, flush } => self.copy_flushed(host, session, &flush),
            ToProcess::CopyStep(session) => self.copy_step(host, session),
            ToProcess::ReplicaStored {
                generation,
                carried,
                flush,
            } => self.replica_stored(host, generation, carried, &flush),
            ToProcess::Settle => self.settle_image(host),
            ToProcess::Restore(attempt) => self.restore_part(host, attempt),
            ToProcess::Look => self.look(host),
            ToProcess::LookIfReady => self.look_if_ready(host),
        }
    }

    fn tick(&mut self, host: usize) {
        self.hosts[host].tick_us = None;
        match &self.hosts[host].process {
            Process::None => {}
            Process::Starting(_) => self.feed_start(host, StartEvent::Tick),
            Process::Primary(_) => self.feed_primary(host, PrimaryEvent::Tick),
            Process::Secondary(_) => self.feed_secondary(host, SecondaryEvent::Tick),
        }
    }

    /// Schedules the next tick of a host's state machine.
    pub(super) fn schedule_tick(&mut self, host: usize) {
        let now_ms = self.now_ms();
        let it = &self.hosts[host];
        let due_ms = match &it.process {
            Process::None => None,
            Process::Starting(start) => start.next_deadline(),
            Process::Primary(side) => side.machine.next_deadline(),
            Process::Secondary(side) => side.machine.next_deadline(),
        };
        let Some(due_ms) = due_ms else { return };
        self.checks.exercise(Invariant::Bounds);
        if due_ms <= now_ms {
            let text = format!("host {host} has a deadline that its own handling does not move");
            self.violate(Invariant::Bounds, text);
        }
        let it = &mut self.hosts[host];
        let at_us = due_ms * 1_000;
        if it.tick_us.is_none_or(|tick_us| at_us < tick_us) {
            it.tick_us = Some(at_us);
            self.tell_at(at_us, host, ToProcess::Tick);
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        // What was still under way when a rule broke explains nothing.
        if self.checks.violation.is_some() {
            return;
        }
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LINES_MAX {
                trace.pop_front();
            }
            trace.push_back(format!("{:>8} {}", self.now_us, line()));
        }
    }

    pub(super) fn judge(&mut self, invariant: Invariant, verdict: Result<(), String>) {
        self.checks.exercise(invariant);
        if let Err(text) = verdict {
            self.violate(invariant, text);
        }
    }

    pub(super) fn violate(&mut self, invariant: Invariant, text: String) {
        self.note(|| format!("VIOLATION of {invariant:?}: {text}"));
        self.checks.violation.get_or_insert((invariant, text));
    }

    pub(super) fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().map(Vec::from).unwrap_or_default()
    }

    pub(super) fn outcome(mut self, seed: u64) -> Outcome {
        let (trace, exercised) = (self.take_trace(), self.checks.exercised());
        Outcome {
            seed,
            violation: self.checks.violation.map(|(invariant, text)| Violation {
                invariant,
                text,
                trace,
            }),
            exercised,
            takeovers: self.takeovers,
            commits: self.commits,
            events: self.events,
        }
    }
}
