//! The drivers: what the state machines want done. Copies, captures, checks and restores are done at once.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::consent::{PeerWord, Start, StartAction, StartConfig, StartEvent};
use crate::primary::{PrimaryAction, PrimaryEvent};
use crate::record::{ArbiterAnswer, ArbiterRequest};
use crate::secondary::{SecondaryAction, SecondaryEvent};
use crate::wire::{Begin, Commit, Message};

use super::Removed;
use super::state::{
    Ask, Frame, Held, PRIMARY, PrimarySide, Process, SECONDARY, SecondarySide, State, close, host_of, timing,
};

impl State {
    pub(super) fn primary(&mut self, host: usize) -> Option<&mut PrimarySide> {
        let it = &mut self.hosts[host];
        it.changed = true;
        match Rc::make_mut(&mut it.process) {
            Process::Primary(side) => Some(side),
            _ => None,
        }
    }

    pub(super) fn secondary(&mut self, host: usize) -> Option<&mut SecondarySide> {
        let it = &mut self.hosts[host];
        it.changed = true;
        match Rc::make_mut(&mut it.process) {
            Process::Secondary(side) => Some(side),
            _ => None,
        }
    }

    pub(super) fn start_cold(&mut self, host: usize) {
        self.hosts[host].touched = true;
        let lives = self.hosts[host].lives;
        self.new_process(host, Process::None);
        let config = StartConfig {
            me: (*self.hosts[host].me).clone(),
            vm: "vm".to_owned(),
            store: 99,
            assert_dead: None,
            alone_on_host: true,
            ask_retry_ms: 0,
            images: Vec::new(),
            adopt_images: false,
        };
        debug_assert_eq!(lives, self.hosts[host].lives);
        self.new_process(host, Process::Starting(Start::new(config)));
        self.feed_start(host, StartEvent::Tick);
    }

    pub(super) fn feed_start(&mut self, host: usize, event: StartEvent) {
        let mut todo = VecDeque::from([event]);
        while let Some(event) = todo.pop_front() {
            let next_ask = self.next_ask(host);
            let Process::Starting(start) = Rc::make_mut(&mut self.hosts[host].process) else {
                return;
            };
            self.hosts[host].changed = true;
            start.renumber(next_ask);
            let mut actions = Vec::new();
            start.handle(0, event, &mut actions);
            for action in actions {
                self.note(|| format!("host {host}: {action:?}"));
                match action {
                    StartAction::Ask { ask, request } => self.ask(host, ask, request),
                    StartAction::AskPeer(peer) => {
                        let word = match &*self.hosts[host_of(&peer)].process {
                            Process::Secondary(side) => match side.machine.holds() {
                                Some(_) => PeerWord::Holds("a commit".to_owned()),
                                None => PeerWord::HoldsNothing,
                            },
                            Process::Primary(_) => PeerWord::Holds("the running VM".to_owned()),
                            _ => PeerWord::Silent("no answer".to_owned()),
                        };
                        todo.push_back(StartEvent::Peer(word));
                    }
                    StartAction::Run(record) => self.boot_vm(host, record),
                    StartAction::Report(_) => {}
                    StartAction::Refuse(_) => {
                        self.end_process(host);
                        self.start_secondary(host);
                    }
                }
            }
        }
    }

    pub(super) fn ask(&mut self, host: usize, id: u64, request: ArbiterRequest) {
        self.asks.push(Ask {
            host,
            id,
            request: Rc::new(request),
            answer: None,
            awaited: true,
        });
    }

    pub(super) fn feed_primary(&mut self, host: usize, event: PrimaryEvent, stalled: bool) {
        let mut todo = VecDeque::from([event]);
        while let Some(event) = todo.pop_front() {
            let (next_ask, suspicious) = (self.next_ask(host), self.hosts[host].suspicious);
            let Some(side) = self.primary(host) else { return };
            let mut actions = Vec::new();
            side.machine.set_time_outs(&timing(suspicious, stalled), next_ask);
            side.machine.handle(0, event, &mut actions);
            side.machine.set_time_outs(&timing(false, false), 0);
            for action in actions {
                self.note(|| format!("host {host}: {action:?}"));
                self.do_primary(host, action, &mut todo);
            }
        }
    }

    fn do_primary(&mut self, host: usize, action: PrimaryAction, todo: &mut VecDeque<PrimaryEvent>) {
        let Some(side) = self.primary(host) else { return };
        match action {
            PrimaryAction::Send { session, message } => self.send(session, PRIMARY, Frame::Message(message)),
            PrimaryAction::CloseSession { session, .. } => self.close_session(session, PRIMARY),
            PrimaryAction::Ask { ask, request } => self.ask(host, ask, request),
            PrimaryAction::MarkSources { .. }
            | PrimaryAction::CopyDisks { .. }
            | PrimaryAction::PeerFlushed(_) => {
                unreachable!("the model's VM has no disk of its own")
            }
            PrimaryAction::CopyRound { session, .. } => todo.push_back(PrimaryEvent::CopyRoundSent {
                session,
                dirty_pages: 0,
            }),
            PrimaryAction::Capture { epoch, hold, .. } => {
                side.paused = true;
                side.gate_open &= !hold;
                side.captures.push((epoch, side.log.len()));
                todo.push_back(PrimaryEvent::Captured {
                    epoch,
                    pages: 1,
                    bytes: 1,
                    stop: false,
                });
            }
            PrimaryAction::Transmit { session, begin, stop } => self.transmit(host, session, begin, stop),
            PrimaryAction::GiveBack { epoch } => side.captures.retain(|(captured, _)| *captured != epoch),
            PrimaryAction::Release { epoch } => self.release_sync(host, epoch),
            PrimaryAction::OpenGate => {
                side.gate_open = true;
                self.release_alone(host);
            }
            PrimaryAction::Pause => side.paused = true,
            PrimaryAction::Resume => side.paused = false,
            PrimaryAction::Drain => {
                side.paused = true;
                todo.push_back(PrimaryEvent::Drained);
            }
            PrimaryAction::CloseDisks => {
                side.paused = true;
                todo.push_back(PrimaryEvent::DisksClosed { result: Ok(()) });
            }
            PrimaryAction::Halt { .. } | PrimaryAction::Exit { .. } => self.end_process(host),
            // Nothing is dirty here without a sync.
            PrimaryAction::SendAhead(_) => {}
            PrimaryAction::Progress { .. }
            | PrimaryAction::Assume(_)
            | PrimaryAction::Report(_)
            | PrimaryAction::TrustArbiter
            | PrimaryAction::Adopted(_) => {}
        }
    }

    fn transmit(&mut self, host: usize, session: u64, begin: Begin, stop: bool) {
        let Some(side) = self.primary(host) else { return };
        let captured = side.captures.iter().find(|(epoch, _)| *epoch == begin.epoch);
        let Some(&(epoch, length)) = captured else { return };
        let (log, vm_life) = (Rc::new(side.log[..length].to_vec()), side.vm_life);
        let commit = Commit {
            epoch,
            pages: 1,
            states: 1,
            digest: 0,
            stop,
        };
        self.send(
            session,
            PRIMARY,
            Frame::Sync {
                begin,
                commit,
                log,
                vm_life,
            },
        );
    }

    pub(super) fn feed_secondary(&mut self, host: usize, event: SecondaryEvent, stalled: bool) {
        let mut todo = VecDeque::from([event]);
        while let Some(event) = todo.pop_front() {
            let (next_ask, suspicious) = (self.next_ask(host), self.hosts[host].suspicious);
            let removed = self.removed;
            let Some(side) = self.secondary(host) else { return };
            let mut actions = Vec::new();
            side.machine.set_time_outs(&timing(suspicious, stalled), next_ask);
            side.machine.handle(0, event, &mut actions);
            side.machine.set_time_outs(&timing(false, false), 0);
            if removed == Removed::StateAtTheWin {
                match side.machine.is_asking() {
                    true if side.held_at_ask.is_none() => side.held_at_ask = side.held.clone(),
                    false if !side.machine.is_over() => side.held_at_ask = None,
                    _ => {}
                }
            }
            for action in actions {
                self.note(|| format!("host {host}: {action:?}"));
                self.do_secondary(host, action, &mut todo);
            }
        }
    }

    fn do_secondary(&mut self, host: usize, action: SecondaryAction, todo: &mut VecDeque<SecondaryEvent>) {
        match action {
            SecondaryAction::Send { session, message } => {
                self.send(session, SECONDARY, Frame::Message(message));
            }
            SecondaryAction::CloseSession { session, .. } => self.close_session(session, SECONDARY),
            SecondaryAction::Ask { ask, request } => self.ask(host, ask, request),
            SecondaryAction::Prepare { session } => todo.push_back(SecondaryEvent::Prepared {
                session,
                result: Ok(Vec::new()),
            }),
            SecondaryAction::MarkTargets { .. } | SecondaryAction::Settled(_) => {
                unreachable!("the model's VM has no disk of its own")
            }
            SecondaryAction::Check { commit } => todo.push_back(SecondaryEvent::Checked {
                epoch: commit.epoch,
                result: Ok(()),
            }),
            SecondaryAction::Apply { epoch } => {
                let keeps = self.removed == Removed::RightInMemory;
                let Some(side) = self.secondary(host) else { return };
                if let Some((_, staged)) = side.staged.take_if(|(staged, _)| *staged == epoch) {
                    side.held = Some(staged);
                }
                let it = &mut self.hosts[host];
                if keeps && it.snapshot.is_none() {
                    it.snapshot = Some(Rc::clone(&it.process));
                }
                todo.push_back(SecondaryEvent::Applied { epoch });
            }
            SecondaryAction::Discard { .. } => {
                if let Some(side) = self.secondary(host) {
                    side.staged = None;
                }
            }
            SecondaryAction::Fence { .. } => todo.push_back(SecondaryEvent::Fenced { result: Ok(()) }),
            SecondaryAction::Restore { .. } => todo.push_back(SecondaryEvent::Restored { result: Ok(()) }),
            SecondaryAction::Run(reign) => {
                let Some(side) = self.secondary(host) else { return };
                let held = side.held_at_ask.take().or(side.held.take());
                self.judge_run(host, held.as_ref());
                if let Some(held) = held {
                    self.become_primary(host, reign, held.log, held.vm_life);
                }
            }
            SecondaryAction::Forget { .. } => {
                self.hosts[host].snapshot = None;
                if let Some(side) = self.secondary(host) {
                    (side.held, side.staged) = (None, None);
                }
            }
            SecondaryAction::Exit { .. } | SecondaryAction::Leave => self.end_process(host),
            SecondaryAction::Stage { .. } | SecondaryAction::Assume(_) | SecondaryAction::Report(_) => {}
        }
    }

    fn send(&mut self, session: u64, end: usize, frame: Frame) {
        let link = self
            .links
            .iter_mut()
            .find(|link| link.id == session && link.open[end]);
        if let Some(link) = link.filter(|link| link.open[1 - end]) {
            Rc::make_mut(link).queues[end].push(Rc::new(frame));
        }
    }

    fn close_session(&mut self, session: u64, end: usize) {
        let link = self
            .links
            .iter_mut()
            .find(|link| link.id == session && link.open[end]);
        if let Some(link) = link {
            close(Rc::make_mut(link), end, false);
        }
    }

    /// A frame arrives.
    pub(super) fn deliver(&mut self, index: usize, end: usize) {
        let link = Rc::make_mut(&mut self.links[index]);
        let (host, session) = (link.hosts[end], link.id);
        let frame = Rc::unwrap_or_clone(link.queues[1 - end].remove(0));
        self.note(|| format!("host {host} receives {frame:?}"));
        let events = match frame {
            Frame::Closed => {
                Rc::make_mut(&mut self.links[index]).open[end] = false;
                return self.tell_closed(host, session, end);
            }
            Frame::Message(message) => vec![message],
            Frame::Sync {
                begin,
                commit,
                log,
                vm_life,
            } => {
                let held = Held {
                    log,
                    stop: commit.stop,
                    vm_life,
                };
                if let Some(side) = self.secondary(host) {
                    side.staged = Some((begin.epoch, held));
                }
                vec![Message::Begin(begin), Message::Commit(commit)]
            }
        };
        let it = &mut self.hosts[host];
        (it.suspicious, it.touched) = (false, true);
        for message in events {
            match end {
                PRIMARY => self.feed_primary(host, PrimaryEvent::Message { session, message }, false),
                _ => self.feed_secondary(host, SecondaryEvent::Message { session, message }, false),
            }
        }
    }

    pub(super) fn tell_closed(&mut self, host: usize, session: u64, end: usize) {
        let reason = "closed".to_owned();
        match end {
            PRIMARY => self.feed_primary(host, PrimaryEvent::PeerClosed { session, reason }, false),
            _ => self.feed_secondary(host, SecondaryEvent::PeerClosed { session, reason }, false),
        }
    }

    pub(super) fn tell_answer(&mut self, host: usize, id: u64, answer: ArbiterAnswer, stalled: bool) {
        self.note(|| format!("host {host} is answered {answer:?}"));
        match &*self.hosts[host].process {
            Process::None => {}
            Process::Starting(_) => self.feed_start(host, StartEvent::Arbiter { ask: id, answer }),
            Process::Primary(_) => {
                self.feed_primary(host, PrimaryEvent::Arbiter { ask: id, answer }, stalled);
            }
            Process::Secondary(_) => {
                self.feed_secondary(host, SecondaryEvent::Arbiter { ask: id, answer }, stalled);
            }
        }
    }
}
