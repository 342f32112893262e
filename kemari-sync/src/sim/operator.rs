//! Processes come and go: cold boots, deaths, returns, and the operator who brings everything back in the
//! end.

use crate::consent::{PeerWord, Start, StartAction, StartConfig, StartEvent};
use crate::primary::Reign;
use crate::record::{ArbiterRequest, Phase, Record, Term};

use super::events::{Event, ToProcess};
use super::flushes::FlushMode;
use super::host::Process;
use super::invariants::{Invariant, cold_boot, liveness};
use super::net::{Frame, PRIMARY, SECONDARY};
use super::vm::Vm;
use super::world::World;

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

    pub(super) fn start_cold(&mut self, host: usize, assert_dead: Option<Term>) {
        self.new_process(host);
        if !self.open_image(host) {
            return self.start_secondary(host);
        }
        self.hosts[host].image.note_size();
        let config = StartConfig {
            me: self.hosts[host].me.clone(),
            vm: "vm".to_owned(),
            store: 99,
            assert_dead,
            alone_on_host: true,
            ask_retry_ms: self.setup.timing.ask_retry_ms,
            images: self.image_offers(host),
            adopt_images: false,
        };
        self.note(|| match assert_dead {
            None => format!("host {host} boots the VM"),
            Some(term) => format!("host {host} boots the VM: the operator asserts that term {term} is dead"),
        });
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
                    if let ArbiterRequest::Swap { new, .. } = &request
                        && !self.announce_reign(host, new.term)
                    {
                        return self.start_secondary(host);
                    }
                    self.send_ask(host, ask, request);
                }
                StartAction::AskPeer(peer) => {
                    let word = self.word_of(&peer.host);
                    self.tell_after(500, host, ToProcess::Start(StartEvent::Peer(word)));
                }
                StartAction::Run(record) => self.boot_vm(host, record),
                StartAction::Refuse(_) => self.start_secondary(host),
                StartAction::Report(_) => {}
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
        let was_stopped = replaced.is_some_and(|record| record.phase == Phase::Stopped);
        self.format_image(host, record.term, was_stopped);
        let capacity = match self.setup.has_disk {
            true => self.hosts[host].image.recorded,
            false => 0,
        };
        self.checks.history.new_life();
        for client in &mut self.clients {
            client.outstanding = None;
        }
        let vm = Vm::boot(self.vm_life, capacity, self.setup.replicated);
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
        self.enlarge_all();
        self.operate();
    }

    /// Dead processes return; if nobody runs the VM, nor is about to, it is booted.
    pub(super) fn operate(&mut self) {
        for host in 0..super::HOSTS {
            if self.cannot_restore(host) {
                self.kill(host);
            }
            // A host that never took part stays out.
            if self.hosts[host].life > 0 {
                self.bring_back(host);
            }
        }
        self.order_resize();
        let is_busy = |process: &Process| matches!(process, Process::Primary(_) | Process::Starting(_));
        let nobody = !self.hosts.iter().any(|host| is_busy(&host.process));
        if nobody && let Some((host, assert_dead)) = self.next_start() {
            self.end_process(host);
            self.start_cold(host, assert_dead);
        }
        self.after(LOOK_US, Event::Operator);
    }

    /// Whether a takeover has won, and can never restore its image, which has failed before.
    fn cannot_restore(&mut self, host: usize) -> bool {
        let side = self.hosts[host].secondary();
        side.is_some_and(|side| side.image.has_failed && side.machine.won_term().is_some())
    }

    /// Where the operator tries to start the VM, and what is asserted. With a shared disk, or none: where it
    /// was last. Of replicated images, and after a stop, any host is tried: it is for their records to tell
    /// the right one.
    fn next_start(&mut self) -> Option<(usize, Option<Term>)> {
        let record = self.store.record.clone();
        let is_stopped = record
            .as_ref()
            .is_some_and(|record| record.phase == Phase::Stopped);
        if is_stopped && !self.setup.restarts {
            return None;
        }
        let idle = |host: &mut super::host::Host| {
            host.secondary()
                .is_some_and(|side| side.machine.holds().is_none())
        };
        let all_idle = self.hosts.iter_mut().all(|host| host.life == 0 || idle(host));
        let owner = record.as_ref().map_or("a", |record| &record.owner.host);
        let owner = self.hosts.iter().position(|host| host.me.host == owner)?;
        let is_free = all_idle && (self.setup.replicated || is_stopped);
        let Some(record) = record.filter(|_| is_free) else {
            return idle(&mut self.hosts[owner]).then_some((owner, None));
        };
        for _ in 0..super::HOSTS {
            let host = (self.setup.first_tried + self.starts_tried) % super::HOSTS;
            self.starts_tried += 1;
            let asserts = host != owner && !is_stopped;
            if self.hosts[host].life > 0 && !(asserts && self.may_lack_flushed(host)) {
                return Some((host, asserts.then_some(record.term)));
            }
        }
        None
    }

    /// Where a flush waits for one disk only, the other host's may lack what was flushed: an operator does
    /// not boot from it as long as there is the first.
    fn may_lack_flushed(&self, host: usize) -> bool {
        let is_peer = |record: &&Record| {
            let peer = record.peer.as_ref();
            peer.is_some_and(|peer| peer.host == self.hosts[host].me.host)
        };
        let acting = self.store.history.iter().rev();
        let acting = acting.filter(|record| record.phase == Phase::Acting).take(1);
        self.setup.flush == FlushMode::Memory && acting.filter(is_peer).count() > 0
    }

    /// In the end the VM is protected again, if it is wanted so and another host is there.
    pub(super) fn check_protection(&mut self) {
        let now_ms = self.now_ms();
        let followers = self
            .hosts
            .iter_mut()
            .filter_map(super::host::Host::secondary)
            .count();
        let primary = self.hosts.iter_mut().find_map(super::host::Host::primary);
        if let Some(side) = primary.filter(|side| side.machine.wants_protection() && followers > 0) {
            let status = side.machine.status(now_ms);
            let verdict = liveness::protects(&status);
            self.judge(Invariant::Liveness, verdict);
        }
    }

    pub(super) fn check_progress(&mut self, when: &str) {
        if self.stands_still_for_good() {
            return;
        }
        let verdict = liveness::progresses(&self.store, &self.clients, self.now_us, when);
        self.judge(Invariant::Liveness, verdict);
    }
}
