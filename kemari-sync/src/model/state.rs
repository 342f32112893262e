//! One state of everything: the record, three hosts, what is on the way, and what has left.

use std::hash::{Hash, Hasher};
use std::rc::Rc;

use crate::consent::{AskId, Start};
use crate::primary::{CopyLimits, Mode, OnSecondaryLoss, Primary, PrimaryConfig, Reign, SessionId};
use crate::record::{ArbiterAnswer, ArbiterRequest, Incarnation, Record};
use crate::secondary::{Secondary, SecondaryConfig};
use crate::timing::Timing;
use crate::wire::{Begin, Commit, Message};

use super::hash::digest;
use super::judge::{Ledger, Rule};
use super::{Bounds, Removed};

pub(super) const HOSTS: usize = 3;
/// Index of the primary's end of a link, and of what it sends.
pub(super) const PRIMARY: usize = 0;
/// Index of the secondary's end of a link, and of what it sends.
pub(super) const SECONDARY: usize = 1;
/// Lives of one host that have names of their own.
const LIVES_MAX: u8 = 16;
/// As good as never, in milliseconds.
const NEVER_MS: u64 = 1 << 40;

/// All outputs of an execution so far, each the number of the process that executed it.
pub(super) type Log = Rc<Vec<u8>>;

/// The clock stands at 0: a time-out of 1 ms has not fired, one of 0 has.
pub(super) fn timing(suspicious: bool, stalled: bool) -> Timing {
    let silence_ms = u64::from(!suspicious);
    Timing {
        heartbeat_ms: NEVER_MS,
        suspicion_ms: silence_ms,
        reconnect_ms: silence_ms,
        progress_ms: silence_ms,
        won_stall_ms: u64::from(!stalled),
        ask_retry_ms: 0,
        max_interval_ms: NEVER_MS,
        interval_ms: NEVER_MS,
        protect_retry_ms: 0,
        protect_retry_ms_max: 0,
        takeover_retry_ms: 0,
    }
}

#[derive(Clone, Hash)]
pub(super) struct PrimarySide {
    pub(super) machine: Primary,
    pub(super) log: Log,
    /// Outputs that have left, or were let go.
    pub(super) released: usize,
    pub(super) gate_open: bool,
    pub(super) paused: bool,
    /// By epoch: outputs captured.
    pub(super) captures: Vec<(u64, usize)>,
    /// The record of a pair that the arbiter has written for this process last.
    pub(super) recorded: Option<(u64, Option<Incarnation>)>,
    /// Which rule of the VM this is, counted over all.
    pub(super) reign: u8,
    pub(super) vm_life: u8,
}

#[derive(Clone, Hash)]
pub(super) struct SecondarySide {
    pub(super) machine: Secondary,
    pub(super) held: Option<Held>,
    pub(super) staged: Option<(u64, Held)>,
    /// What it held when it began to ask, if that is what it would start from.
    pub(super) held_at_ask: Option<Held>,
}

#[derive(Clone, Hash)]
pub(super) struct Held {
    pub(super) log: Log,
    pub(super) stop: bool,
    pub(super) vm_life: u8,
}

#[derive(Clone, Hash)]
#[expect(clippy::large_enum_variant, reason = "each is in a box of its own")]
pub(super) enum Process {
    None,
    Starting(Start),
    Primary(PrimarySide),
    Secondary(SecondarySide),
}

#[derive(Clone)]
pub(super) struct Host {
    pub(super) process: Rc<Process>,
    pub(super) me: Rc<Incarnation>,
    /// Nothing was heard for long, and nothing since.
    pub(super) suspicious: bool,
    /// It has taken part: until then it is like any other that has not.
    pub(super) touched: bool,
    pub(super) lives: u8,
    /// What a restart would find on the disk, if it looked.
    pub(super) snapshot: Option<Rc<Process>>,
    /// Of the process.
    digest: u64,
    pub(super) changed: bool,
}

impl Hash for Host {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let flags = u8::from(self.suspicious) | u8::from(self.touched) << 1;
        hasher.write_u64(self.digest);
        hasher.write_u32(u32::from(self.lives) << 8 | u32::from(flags));
        if let Some(snapshot) = &self.snapshot {
            snapshot.hash(hasher);
        }
    }
}

#[derive(Clone, Debug, Hash)]
pub(super) enum Frame {
    Message(Message),
    Sync {
        begin: Begin,
        commit: Commit,
        log: Log,
        vm_life: u8,
    },
    Closed,
}

#[derive(Clone, Hash)]
pub(super) struct Link {
    pub(super) id: SessionId,
    /// Hosts of the primary's end and of the secondary's.
    pub(super) hosts: [usize; 2],
    pub(super) open: [bool; 2],
    /// By sender.
    pub(super) queues: [Vec<Rc<Frame>>; 2],
}

/// A question on its way to the arbiter, or the answer on its way back.
#[derive(Clone, Hash, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) host: usize,
    pub(super) id: AskId,
    pub(super) request: Rc<ArbiterRequest>,
    pub(super) answer: Option<Rc<ArbiterAnswer>>,
    /// Somebody waits for the answer. If not, it may yet be carried out.
    pub(super) awaited: bool,
}

#[derive(Clone)]
pub(super) struct State {
    pub(super) record: Option<Rc<Record>>,
    pub(super) hosts: [Host; HOSTS],
    pub(super) links: Vec<Rc<Link>>,
    pub(super) asks: Vec<Ask>,
    pub(super) blows: u8,
    pub(super) outputs: u8,
    pub(super) ledger: Ledger,
    pub(super) broken: Option<(Rule, String)>,
    /// Rules that had something to judge in the last move.
    pub(super) judged: Vec<Rule>,
    /// What came of the last move, if anybody wants to read it.
    pub(super) notes: Option<Vec<String>>,
    pub(super) removed: Removed,
}

impl State {
    pub(super) fn new(bounds: &Bounds, removed: Removed) -> Self {
        let host = |index: usize| Host {
            process: Rc::new(Process::None),
            me: Rc::new(incarnation(index, 0)),
            suspicious: false,
            touched: false,
            lives: 0,
            snapshot: None,
            digest: 0,
            changed: true,
        };
        let mut state = Self {
            record: None,
            hosts: [host(0), host(1), host(2)],
            links: Vec::new(),
            asks: Vec::new(),
            blows: bounds.blows_max,
            outputs: bounds.outputs_max,
            ledger: Ledger::default(),
            broken: None,
            judged: Vec::new(),
            notes: None,
            removed,
        };
        state.start_secondary(1);
        state.start_secondary(2);
        state.start_cold(0);
        state.settle();
        state
    }

    pub(super) fn digest(&self) -> u64 {
        digest(&(
            &self.record,
            &self.hosts,
            &self.links,
            &self.asks,
            (self.blows, self.outputs),
            &self.ledger,
        ))
    }

    /// Brings everything into one order, drops what can have no effect any more.
    pub(super) fn settle(&mut self) {
        for host in self.hosts.iter_mut().filter(|host| host.changed) {
            host.digest = digest(&*host.process);
            host.changed = false;
        }
        self.links.retain(|link| link.open.contains(&true));
        let term = self.record.as_ref().map_or(0, |record| record.term);
        self.asks.retain(|ask| {
            ask.awaited
                || match &*ask.request {
                    ArbiterRequest::Read => false,
                    // Terms only grow: what expects an older one will always be refused.
                    ArbiterRequest::Swap { expected, .. } => {
                        expected.as_ref().map_or(0, |record| record.term) >= term
                    }
                }
        });
        self.asks
            .sort_by_cached_key(|ask| (ask.host, !ask.awaited, ask.id, digest(&ask.request)));
        // The same question twice, with nobody who waits: the second is refused if the first was carried out.
        self.asks
            .dedup_by(|a, b| !a.awaited && !b.awaited && a.host == b.host && a.request == b.request);
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            notes.push(line());
        }
    }

    /// Numbers of questions begin anew behind those that are under way.
    pub(super) fn next_ask(&self, host: usize) -> AskId {
        let own = self.asks.iter().filter(|ask| ask.host == host && ask.awaited);
        own.map(|ask| ask.id).max().unwrap_or(0) + 1
    }

    /// A process with a new name.
    pub(super) fn new_process(&mut self, host: usize, process: Process) {
        let it = &mut self.hosts[host];
        it.me = Rc::new(incarnation(host, it.lives));
        it.process = Rc::new(process);
        (it.suspicious, it.changed) = (false, true);
    }

    pub(super) fn start_secondary(&mut self, host: usize) {
        let config = SecondaryConfig {
            me: incarnation(host, self.hosts[host].lives),
            vm: "vm".to_owned(),
            config_digest: 7,
            timing: timing(false, false),
            fence_ms_max: None,
            staging_pages_max: 8,
        };
        self.new_process(
            host,
            Process::Secondary(SecondarySide {
                machine: Secondary::new(config, 0),
                held: None,
                staged: None,
                held_at_ask: None,
            }),
        );
    }

    pub(super) fn become_primary(&mut self, host: usize, reign: Reign, log: Log, vm_life: u8) {
        let config = PrimaryConfig {
            me: (*self.hosts[host].me).clone(),
            config_digest: 7,
            mode: Mode::Pipelined,
            timing: timing(false, false),
            copy: CopyLimits::default(),
            on_secondary_loss: OnSecondaryLoss::Continue,
            protect: true,
            sources: Vec::new(),
        };
        let number = self.judge_begin(host, &reign.record, &log, vm_life);
        let it = &mut self.hosts[host];
        (it.suspicious, it.changed) = (false, true);
        it.process = Rc::new(Process::Primary(PrimarySide {
            machine: Primary::new(config, reign, 0),
            log,
            released: 0,
            gate_open: true,
            paused: false,
            captures: Vec::new(),
            recorded: None,
            reign: number,
            vm_life,
        }));
        self.release_alone(host);
    }

    /// The process is gone. Its kernel says so to its peers, behind what it has sent.
    pub(super) fn end_process(&mut self, host: usize) {
        for link in &mut self.links {
            for end in [PRIMARY, SECONDARY] {
                if link.hosts[end] == host && link.open[end] {
                    close(Rc::make_mut(link), end, false);
                }
            }
        }
        self.asks.retain_mut(|ask| {
            let is_own = ask.host == host;
            ask.awaited &= !is_own;
            !(is_own && ask.answer.is_some())
        });
        let it = &mut self.hosts[host];
        it.lives = (it.lives + 1).min(LIVES_MAX - 1);
        self.new_process(host, Process::None);
    }
}

/// One end closes: what was sent to it is lost, and if `reset`, what it has sent too.
pub(super) fn close(link: &mut Link, end: usize, reset: bool) {
    link.open[end] = false;
    link.queues[1 - end].clear();
    if reset {
        link.queues[end].clear();
    }
    if link.open[1 - end] {
        link.queues[end].push(Rc::new(Frame::Closed));
    }
}

fn incarnation(host: usize, life: u8) -> Incarnation {
    Incarnation {
        host: ["a", "b", "c"][host].to_owned(),
        nonce: (number_of(host, life) as u128) << 96,
    }
}

fn number_of(host: usize, life: u8) -> u8 {
    host as u8 * LIVES_MAX + life + 1
}

/// The number of a process.
pub(super) fn number(incarnation: &Incarnation) -> u8 {
    (incarnation.nonce >> 96) as u8
}

/// The host of a process.
pub(super) fn host_of(incarnation: &Incarnation) -> usize {
    usize::from((number(incarnation) - 1) / LIVES_MAX)
}
