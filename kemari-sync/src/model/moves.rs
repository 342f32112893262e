//! What may happen next.

use std::rc::Rc;

use crate::primary::PrimaryEvent;
use crate::record::{ArbiterAnswer, ArbiterRequest, Phase};
use crate::secondary::SecondaryEvent;

use crate::wire::Message;

use super::Removed;
use super::state::{Frame, HOSTS, Link, PRIMARY, Process, SECONDARY, State, close, number};

/// Connections from one host to another: a new one while the end of an old one is still on its way.
const LINKS_MAX: usize = 2;

/// What an operator may order, and what a host may say of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Stop,
    Unprotect,
    Protect,
    SwitchOver,
    TakeOver,
    HandOver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// The arbiter carries a question out.
    Execute(u8),
    /// Its answer arrives; or arrives after a winner has stalled for too long.
    Answer {
        ask: u8,
        stalled: bool,
    },
    /// The answer is lost; a swap that was not carried out yet may be, later.
    LoseAnswer(u8),
    /// The arbiter says that it did nothing.
    Refuse(u8),
    /// A frame arrives at this end.
    Deliver {
        link: u8,
        end: u8,
    },
    /// This end of a link breaks; what it has sent is lost, or not.
    Break {
        link: u8,
        end: u8,
        reset: bool,
    },
    /// A primary makes a connection.
    Dial {
        from: u8,
        to: u8,
    },
    /// Silence has lasted too long, on this host.
    TimeOut(u8),
    /// The guest produces an output.
    Output(u8),
    /// A process dies.
    Crash(u8),
    /// It comes back as a secondary.
    Return(u8),
    /// It comes back to boot the VM.
    Boot(u8),
    Order(u8, Order),
}

impl Move {
    /// Whether it costs something.
    fn is_blow(self) -> bool {
        !matches!(
            self,
            Self::Execute(_)
                | Self::Answer { stalled: false, .. }
                | Self::Deliver { .. }
                | Self::Dial { .. }
                | Self::Output(_)
        )
    }
}

impl State {
    /// All that may happen now.
    pub(super) fn moves(&self, moves: &mut Vec<Move>) {
        moves.clear();
        for (index, ask) in (0..).zip(&self.asks) {
            match &ask.answer {
                None => moves.push(Move::Execute(index)),
                Some(answer) => {
                    moves.push(Move::Answer {
                        ask: index,
                        stalled: false,
                    });
                    let record = match &**answer {
                        ArbiterAnswer::Record(record) | ArbiterAnswer::Conflict(record) => record.as_ref(),
                        _ => None,
                    };
                    if record.is_some_and(|record| record.phase == Phase::Won) {
                        moves.push(Move::Answer {
                            ask: index,
                            stalled: true,
                        });
                    }
                }
            }
            if ask.awaited {
                moves.push(Move::LoseAnswer(index));
                if ask.answer.is_none() && matches!(*ask.request, ArbiterRequest::Swap { .. }) {
                    moves.push(Move::Refuse(index));
                }
            }
        }
        for (index, link) in (0..).zip(&self.links) {
            for end in [PRIMARY, SECONDARY] {
                if !link.queues[1 - end].is_empty() && link.open[end] {
                    moves.push(Move::Deliver {
                        link: index,
                        end: end as u8,
                    });
                }
                if link.open[end] {
                    for reset in [false, true] {
                        let has_sent = !link.queues[end].is_empty();
                        if !reset || has_sent {
                            moves.push(Move::Break {
                                link: index,
                                end: end as u8,
                                reset,
                            });
                        }
                    }
                }
            }
        }
        for host in 0..HOSTS {
            self.moves_of(host, moves);
        }
        if self.blows == 0 {
            moves.retain(|it| !it.is_blow());
        }
    }

    fn moves_of(&self, host: usize, moves: &mut Vec<Move>) {
        let (it, at) = (&self.hosts[host], host as u8);
        match &*it.process {
            Process::None => moves.extend([Move::Return(at), Move::Boot(at)]),
            Process::Starting(_) => moves.push(Move::Crash(at)),
            Process::Primary(side) => {
                moves.push(Move::Crash(at));
                if !it.suspicious {
                    moves.push(Move::TimeOut(at));
                }
                if self.outputs > 0 && !side.paused {
                    moves.push(Move::Output(at));
                }
                moves.extend([Order::Stop, Order::Unprotect, Order::HandOver].map(|it| Move::Order(at, it)));
                if !side.machine.wants_protection() {
                    moves.push(Move::Order(at, Order::Protect));
                }
                if side.machine.refuses_switchover().is_none() {
                    moves.push(Move::Order(at, Order::SwitchOver));
                }
                if side.machine.wants_peer() {
                    moves.extend(self.dials(host));
                }
            }
            Process::Secondary(side) if it.touched => {
                moves.push(Move::Crash(at));
                if !it.suspicious {
                    moves.push(Move::TimeOut(at));
                }
                if side.held.is_some() {
                    moves.push(Move::Order(at, Order::TakeOver));
                }
            }
            Process::Secondary(_) => {}
        }
    }

    fn dials(&self, from: usize) -> impl Iterator<Item = Move> {
        let others = (0..HOSTS).filter(move |to| *to != from);
        let live = others.filter(|to| matches!(*self.hosts[*to].process, Process::Secondary(_)));
        // Of hosts that never took part any is as good as another.
        let between = move |to: &usize| self.links.iter().filter(|link| link.hosts == [from, *to]).count();
        let live = live.filter(move |to| between(to) < LINKS_MAX);
        let is_new = |to: &usize| !self.hosts[*to].touched;
        let (new, known): (Vec<usize>, Vec<usize>) = live.partition(is_new);
        let all = known.into_iter().chain(new.into_iter().take(1));
        all.map(move |to| Move::Dial {
            from: from as u8,
            to: to as u8,
        })
    }

    /// Makes a move, and judges what it leads to.
    pub(super) fn make(&mut self, it: Move) {
        self.note(|| format!("--- {it:?}"));
        self.blows -= u8::from(it.is_blow());
        match it {
            Move::Execute(ask) => self.execute(usize::from(ask)),
            Move::Answer { ask, stalled } => {
                let ask = self.asks.remove(usize::from(ask));
                if let Some(answer) = ask.answer {
                    self.tell_answer(ask.host, ask.id, Rc::unwrap_or_clone(answer), stalled);
                }
            }
            Move::LoseAnswer(ask) => {
                let it = &mut self.asks[usize::from(ask)];
                let (host, id) = (it.host, it.id);
                it.awaited = false;
                if it.answer.is_some() {
                    self.asks.remove(usize::from(ask));
                }
                self.tell_answer(host, id, ArbiterAnswer::Unknown("lost".to_owned()), false);
            }
            Move::Refuse(ask) => {
                let ask = self.asks.remove(usize::from(ask));
                let answer = ArbiterAnswer::Unavailable("refused".to_owned());
                self.tell_answer(ask.host, ask.id, answer, false);
            }
            Move::Deliver { link, end } => self.deliver(usize::from(link), usize::from(end)),
            Move::Break { link, end, reset } => {
                let (at, end) = (usize::from(link), usize::from(end));
                let link = Rc::make_mut(&mut self.links[at]);
                close(link, end, reset);
                let (host, session) = (link.hosts[end], link.id);
                self.tell_closed(host, session, end);
            }
            Move::Dial { from, to } => self.dial(usize::from(from), usize::from(to)),
            Move::TimeOut(host) => {
                let host = usize::from(host);
                self.hosts[host].suspicious = true;
                match &*self.hosts[host].process {
                    Process::Primary(_) => self.feed_primary(host, PrimaryEvent::Tick, false),
                    _ => self.feed_secondary(host, SecondaryEvent::Tick, false),
                }
            }
            Move::Output(host) => self.output(usize::from(host)),
            Move::Crash(host) => self.crash(usize::from(host)),
            Move::Return(host) => self.bring_back(usize::from(host)),
            Move::Boot(host) => self.start_cold(usize::from(host)),
            Move::Order(host, order) => self.order(usize::from(host), order),
        }
        self.judge_state();
        self.settle();
    }

    fn execute(&mut self, index: usize) {
        let ask = &self.asks[index];
        let answer = match &*ask.request {
            ArbiterRequest::Read => ArbiterAnswer::Record(self.record.as_deref().cloned()),
            ArbiterRequest::Swap { expected, new } if expected.as_ref() == self.record.as_deref() => {
                let new = new.clone();
                self.note(|| format!("the record is now {new:?}"));
                let host = super::state::host_of(&new.owner);
                if *self.hosts[host].me == new.owner
                    && new.phase == Phase::Acting
                    && new.peer.is_some()
                    && let Some(side) = self.primary(host)
                {
                    side.recorded = Some((new.term, new.peer.clone()));
                }
                if matches!(*self.hosts[host].process, Process::Starting(_)) {
                    self.ledger.replaced = self.record.take();
                }
                self.record = Some(Rc::new(new));
                ArbiterAnswer::Swapped
            }
            ArbiterRequest::Swap { .. } => ArbiterAnswer::Conflict(self.record.as_deref().cloned()),
        };
        let ask = &mut self.asks[index];
        ask.answer = Some(Rc::new(answer));
        if !ask.awaited {
            self.asks.remove(index);
        }
    }

    fn dial(&mut self, from: usize, to: usize) {
        let is_free = |id: &u64| self.links.iter().all(|link| link.id != *id);
        let session = (0..).find(is_free).unwrap_or_default();
        self.links.push(Rc::new(Link {
            id: session,
            hosts: [from, to],
            open: [true; 2],
            queues: [Vec::new(), Vec::new()],
        }));
        self.hosts[to].touched = true;
        self.number_sessions(from);
        // The silence of a session begins with it.
        self.hosts[from].suspicious = false;
        self.feed_primary(from, PrimaryEvent::PeerConnected { session }, false);
    }

    /// Sessions are numbered from what is yet remembered or under way, so that equal states are equal.
    fn number_sessions(&mut self, host: usize) {
        let nonce = self.hosts[host].me.nonce;
        let remembered = self.hosts.iter().filter_map(|it| match &*it.process {
            Process::Secondary(side) => side.machine.last_session_of(nonce),
            _ => None,
        });
        let frames = self.links.iter().flat_map(|link| &link.queues[PRIMARY]);
        let under_way = frames.filter_map(|frame| match &**frame {
            Frame::Message(Message::Hello(hello)) if hello.incarnation.nonce == nonce => Some(hello.session),
            _ => None,
        });
        let newest = remembered.chain(under_way).max().unwrap_or(0);
        if let Some(side) = self.primary(host) {
            side.machine.set_sessions_begun(newest);
        }
    }

    fn output(&mut self, host: usize) {
        self.outputs -= 1;
        let name = number(&self.hosts[host].me);
        let Some(side) = self.primary(host) else { return };
        Rc::make_mut(&mut side.log).push(name);
        match side.gate_open {
            true => self.release_alone(host),
            false => self.feed_primary(host, PrimaryEvent::OutputPending, false),
        }
    }

    fn crash(&mut self, host: usize) {
        self.ledger.crash(number(&self.hosts[host].me));
        self.end_process(host);
    }

    fn bring_back(&mut self, host: usize) {
        let Some(snapshot) = self.hosts[host]
            .snapshot
            .take()
            .filter(|_| self.removed == Removed::RightInMemory)
        else {
            return self.start_secondary(host);
        };
        // Its old name, too: it lies on the same disk.
        self.hosts[host].lives -= 1;
        self.new_process(host, Process::None);
        self.hosts[host].process = snapshot;
        self.feed_secondary(
            host,
            SecondaryEvent::PeerClosed {
                session: 0,
                reason: "long ago".to_owned(),
            },
            false,
        );
    }

    fn order(&mut self, host: usize, order: Order) {
        let event = match order {
            Order::Stop => PrimaryEvent::OperatorStop,
            Order::Unprotect => PrimaryEvent::OperatorUnprotect,
            Order::Protect => PrimaryEvent::OperatorProtect,
            Order::SwitchOver => PrimaryEvent::OperatorSwitchover,
            Order::TakeOver => return self.feed_secondary(host, SecondaryEvent::OperatorTakeover, false),
            Order::HandOver => {
                // The host is as good as dead.
                self.ledger.crash(number(&self.hosts[host].me));
                PrimaryEvent::HostFailing {
                    reason: "its disk".to_owned(),
                }
            }
        };
        self.feed_primary(host, event, false);
    }
}
