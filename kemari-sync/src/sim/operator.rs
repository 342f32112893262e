//! Processes come and go: cold boots, deaths, returns, and the operator who brings everything back in the end.

use crate::consent::{PeerWord, Start, StartAction, StartConfig, StartEvent};
use crate::primary::Reign;
use crate::record::{ArbiterRequest, Phase};

use super::host::Process;
use super::invariants::{Invariant, cold_boot, liveness};
use super::net::{Frame, PRIMARY, SECONDARY};
use super::vm::Vm;
use super::world::{Event, ToProcess, World};

/// The operator looks this often, in microseconds.
const LOOK_US: u64 = 100_000;

impl World {
    /// A process with a new incarnation; whatever was scheduled for the one before is void.
    pub(super) fn new_process(&mut self, host: usize) {
        self.lives += 1;
        let it = &mut self.hosts[host];
        it.life = self.lives;
        it.me.nonce = u128::from(self.lives) << 96;
        it.stopped_until_us = 0;
        it.tick_us = None;
    }

    /// The process is gone. Its kernel tells its peers, if it has power.
    pub(super) fn end_process(&mut self, host: usize) {
        self.leave_image(host);
        let life = self.hosts[host].life;
        self.hosts[host].process = Process::None;
        for session in 0..self.connections.len() {
            for end in [PRIMARY, SECONDARY] {
                let connection = &mut self.connections[session];
                if connection.ends[end].life == life && connection.open[end] {
                    if self.hosts[host].powered {
                        self.transmit(session as u64, end, Frame::Closed);
                    } else {
                        connection.queues[end] = Default::default();
                    }
                    self.connections[session].open[end] = false;
                }
            }
        }
        self.new_process(host);
    }

    pub(super) fn kill(&mut self, host: usize) {
        if self.hosts[host].powered {
            self.note(|| format!("host {host}: its process is killed"));
            self.end_process(host);
        }
    }

    pub(super) fn cut_power(&mut self, host: usize) {
        if self.hosts[host].powered {
            self.note(|| format!("host {host} loses its power"));
            self.lose_unflushed(host);
            self.hosts[host].powered = false;
            self.hosts[host].boot += 1;
            self.end_process(host);
        }
    }

    pub(super) fn bring_back(&mut self, host: usize) {
        self.hosts[host].powered = true;
        if matches!(self.hosts[host].process, Process::None) {
            self.start_secondary(host);
        }
    }

    pub(super) fn start_cold(&mut self, host: usize) {
        self.new_process(host);
        let config = StartConfig {
            me: self.hosts[host].me.clone(),
            vm: "vm".to_owned(),
            store: 99,
            assert_dead: None,
            alone_on_host: true,
            ask_retry_ms: self.setup.timing.ask_retry_ms,
            images: self.image_offers(host),
            adopt_images: false,
        };
        self.note(|| format!("host {host} boots the VM"));
        self.hosts[host].process = Process::Starting(Start::new(config));
        self.tell_after(100, host, ToProcess::Start(StartEvent::Tick));
    }

    pub(super) fn feed_start(&mut self, host: usize, event: StartEvent) {
        if self.steps_into(host, "start", &event) {
            return;
        }
        let now_ms = self.now_ms();
        let Process::Starting(start) = &mut self.hosts[host].process else {
            return;
        };
        let mut actions = Vec::new();
        start.handle(now_ms, event, &mut actions);
        for action in actions {
            self.note(|| format!("host {host}: {action:?}"));
            let name = self.steps.name("start does", &action);
            match action {
                StartAction::Ask { ask, request } => {
                    if let ArbiterRequest::Swap { new, .. } = &request {
                        self.announce_reign(host, new.term);
                    }
                    self.send_ask(host, ask, request);
                }
                StartAction::AskPeer(peer) => {
                    let word = self.word_of(&peer.host);
                    self.tell_after(500, host, ToProcess::Start(StartEvent::Peer(word)));
                }
                StartAction::Run(record) => self.boot_vm(host, record),
                StartAction::Refuse(_) => self.start_secondary(host),
            }
            if self.crashes_after(host, name) {
                return;
            }
        }
        self.schedule_tick(host);
    }

    fn word_of(&mut self, name: &str) -> PeerWord {
        let peer = self
            .hosts
            .iter_mut()
            .find(|host| host.me.host == name && host.powered);
        match peer.map(|host| &host.process) {
            Some(Process::Secondary(side)) => match side.machine.holds() {
                Some(commit) => PeerWord::Holds(format!("sync {} of term {}", commit.epoch, commit.term)),
                None => PeerWord::HoldsNothing,
            },
            Some(Process::Primary(_)) => PeerWord::Holds("the running VM".to_owned()),
            _ => PeerWord::Silent("no answer".to_owned()),
        }
    }

    fn boot_vm(&mut self, host: usize, record: crate::record::Record) {
        let replaced = self
            .store
            .history
            .iter()
            .rev()
            .find(|older| older.term < record.term)
            .cloned();
        let verdict = cold_boot::runs(&self.hosts, host, replaced.as_ref());
        self.judge(Invariant::ColdBoot, verdict);
        self.vm_life += 1;
        self.disk = Default::default();
        self.format_image(host, record.term);
        self.checks.history.new_life();
        for client in &mut self.clients {
            client.outstanding = None;
        }
        let vm = Vm::boot(self.vm_life, self.setup.has_disk);
        self.become_primary(
            host,
            Reign {
                record,
                last_epoch: 0,
            },
            vm,
        );
    }

    /// Everything that is broken is repaired, once and for all.
    pub(super) fn heal(&mut self) {
        self.note(|| "=== everything is healed".to_owned());
        self.healed = true;
        for host in 0..super::HOSTS {
            // Looks when all is well again.
            self.look_soon(host);
        }
        self.flags = Default::default();
        self.cuts = Default::default();
        (self.store.is_down, self.store.is_lossy) = (false, false);
        self.operate();
    }

    /// Dead processes return; if nobody runs the VM, nor is about to, its last owner boots it.
    pub(super) fn operate(&mut self) {
        for host in 0..super::HOSTS {
            // A host that never took part stays out.
            if self.hosts[host].life > 0 {
                self.bring_back(host);
            }
        }
        let is_stopped = self
            .store
            .record
            .as_ref()
            .is_some_and(|record| record.phase == Phase::Stopped);
        let is_busy = |process: &Process| matches!(process, Process::Primary(_) | Process::Starting(_));
        let nobody = !self.hosts.iter().any(|host| is_busy(&host.process));
        let owner = self
            .store
            .record
            .as_ref()
            .map_or("a".to_owned(), |record| record.owner.host.clone());
        let owner = self.hosts.iter().position(|host| host.me.host == owner);
        if let Some(owner) = owner.filter(|_| nobody && !is_stopped) {
            let is_idle = self.hosts[owner]
                .secondary()
                .is_none_or(|side| side.machine.holds().is_none());
            if is_idle {
                self.end_process(owner);
                self.start_cold(owner);
            }
        }
        self.after(LOOK_US, Event::Operator);
    }

    pub(super) fn check_progress(&mut self, when: &str) {
        let verdict = liveness::progresses(&self.store, &self.clients, self.now_us, when);
        self.judge(Invariant::Liveness, verdict);
    }
}
