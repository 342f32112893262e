//! What must hold in every state, whatever happened.

use std::rc::Rc;

use crate::record::{Phase, Record};

use super::state::{Held, Log, Process, State, host_of, number};

/// One thing that must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Output leaves only with consent: the ack of the recorded peer, or a record that names nobody else.
    Consent,
    /// All that ever left is explained by one single execution.
    OneExecution,
    /// Whoever may go on lacks nothing that has left.
    Succession,
    /// Never two sides release in one term.
    Terms,
    /// A stop is not resurrected.
    Stop,
    /// A cold boot replaces nobody who lives and holds the VM.
    ColdBoot,
    /// While a member of a recorded pair lives that did not crash, somebody holds the VM.
    Survival,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Consent,
        Self::OneExecution,
        Self::Succession,
        Self::Terms,
        Self::Stop,
        Self::ColdBoot,
        Self::Survival,
    ];
}

/// What must be remembered of the past.
#[derive(Clone, Default, Hash)]
pub(super) struct Ledger {
    /// Counts cold boots of the VM.
    pub(super) vm_life: u8,
    /// The longest row of outputs that has left in this life.
    left: Log,
    /// Counts rules of the VM.
    reigns: u8,
    /// What the last of them began with.
    begun: Log,
    /// By term: the number of the process that released in it.
    releasers: Vec<u8>,
    /// What a cold boot has replaced that does not run the VM yet.
    pub(super) replaced: Option<Rc<Record>>,
    /// Processes that crashed: one bit each.
    crashed: u64,
}

impl Ledger {
    pub(super) fn crash(&mut self, process: u8) {
        self.crashed |= 1 << process;
    }
}

fn is_prefix(short: &[u8], long: &[u8]) -> bool {
    long.starts_with(short)
}

impl State {
    fn judge(&mut self, rule: Rule, holds: bool, text: impl FnOnce() -> String) {
        self.judged.push(rule);
        if !holds && self.broken.is_none() {
            self.broken = Some((rule, text()));
        }
    }

    pub(super) fn boot_vm(&mut self, host: usize, record: Record) {
        // Whoever the record had named that a cold boot replaced could go on.
        let replaced = self.ledger.replaced.take();
        let members = replaced
            .iter()
            .filter(|replaced| replaced.phase != Phase::Stopped);
        let members = members.flat_map(|replaced| [Some(&replaced.owner), replaced.peer.as_ref()]);
        let holder = members.flatten().find(|member| {
            let it = &self.hosts[host_of(member)];
            let holds = match &*it.process {
                Process::Primary(_) => true,
                Process::Secondary(side) => side.held.is_some(),
                _ => false,
            };
            *it.me == **member && holds
        });
        let text = holder.map(|holder| format!("host {host} boots the VM, which {holder} lives and holds"));
        self.judge(Rule::ColdBoot, text.is_none(), || text.unwrap_or_default());
        self.ledger.vm_life += 1;
        (self.ledger.left, self.ledger.begun) = (Log::default(), Log::default());
        let (reign, vm_life) = (
            crate::primary::Reign {
                record,
                last_epoch: 0,
            },
            self.ledger.vm_life,
        );
        self.become_primary(host, reign, Log::default(), vm_life);
    }

    /// A side begins to run the VM; returns the number of its reign.
    pub(super) fn judge_begin(&mut self, host: usize, record: &Record, log: &Log, vm_life: u8) -> u8 {
        let stands = self.record.as_deref() == Some(record) && record.phase == Phase::Acting;
        self.judge(Rule::Consent, stands, || {
            format!(
                "host {host} runs the VM in term {}, but the arbiter says otherwise",
                record.term
            )
        });
        let holds = vm_life == self.ledger.vm_life && is_prefix(&self.ledger.left, log);
        let left = self.ledger.left.clone();
        self.judge(Rule::Succession, holds, || {
            format!("host {host} begins with {log:?}, but {left:?} has left")
        });
        self.ledger.reigns += 1;
        self.ledger.begun = log.clone();
        self.ledger.reigns
    }

    pub(super) fn judge_run(&mut self, host: usize, held: Option<&Held>) {
        let holds = held.is_some_and(|held| !held.stop);
        self.judge(Rule::Stop, holds, || {
            format!("host {host} runs the VM from a stop, or from nothing")
        });
    }

    pub(super) fn release_alone(&mut self, host: usize) {
        let Some(side) = self.primary(host) else { return };
        let (upto, own) = (side.log.len(), side.machine.record().clone());
        if upto > side.released {
            let stands =
                self.record.as_deref() == Some(&own) && own.phase == Phase::Acting && own.peer.is_none();
            self.judge(Rule::Consent, stands, || {
                format!(
                    "host {host} releases alone in term {}, but the arbiter says otherwise",
                    own.term
                )
            });
        }
        self.release(host, upto, own.term);
    }

    pub(super) fn release_sync(&mut self, host: usize, epoch: u64) {
        let Some(side) = self.primary(host) else { return };
        let Some(&(_, upto)) = side.captures.iter().find(|(captured, _)| *captured == epoch) else {
            return;
        };
        side.captures.retain(|(captured, _)| *captured > epoch);
        let own = side.machine.record().clone();
        let recorded = side.recorded.clone();
        if upto > side.released {
            let is_recorded = recorded == Some((own.term, own.peer.clone())) && own.peer.is_some();
            self.judge(Rule::Consent, is_recorded, || {
                format!("host {host} releases sync {epoch} for a pair that was never recorded")
            });
        }
        self.release(host, upto, own.term);
    }

    fn release(&mut self, host: usize, upto: usize, term: u64) {
        let name = number(&self.hosts[host].me);
        let Some(side) = self.primary(host) else { return };
        if upto <= side.released {
            return;
        }
        side.released = upto;
        let (gone, vm_life, reign) = (side.log[..upto].to_vec(), side.vm_life, side.reign);
        self.note(|| format!("host {host} lets {gone:?} leave, in term {term}"));
        let at = term as usize;
        if self.ledger.releasers.len() <= at {
            self.ledger.releasers.resize(at + 1, 0);
        }
        let first = self.ledger.releasers[at];
        self.judge(Rule::Terms, first == 0 || first == name, || {
            format!("process {name} releases in term {term}, as process {first} did")
        });
        self.ledger.releasers[at] = name;
        if vm_life != self.ledger.vm_life {
            // Late, as a packet may be that was long under way. That life has ended alone, with all that it
            // knew: what it had consent for contradicts nobody.
            return;
        }
        let left = self.ledger.left.clone();
        let is_one = is_prefix(&gone, &left) || is_prefix(&left, &gone);
        self.judge(Rule::OneExecution, is_one, || {
            format!("host {host} lets {gone:?} leave, but {left:?} has left")
        });
        let begun = self.ledger.begun.clone();
        let known = reign == self.ledger.reigns || is_prefix(&gone, &begun);
        self.judge(Rule::Succession, known, || {
            format!("host {host}, deposed, lets {gone:?} leave, but its successor began with {begun:?}")
        });
        if gone.len() > left.len() {
            self.ledger.left = Log::new(gone);
        }
    }

    /// Judges the state that a move has led to.
    pub(super) fn judge_state(&mut self) {
        let Some(record) = self.record.clone() else { return };
        let Some(peer) = record.peer.clone().filter(|_| record.phase != Phase::Stopped) else {
            return;
        };
        let (mut holders, mut crashed) = (0, 0);
        for member in [&record.owner, &peer] {
            crashed += u32::from(self.ledger.crashed >> number(member) & 1 == 1);
            let host = &self.hosts[host_of(member)];
            if *host.me != *member {
                continue;
            }
            let log = match &*host.process {
                Process::Primary(side) => Some(side.log.clone()),
                Process::Secondary(side) => side.held.as_ref().map(|held| held.log.clone()),
                _ => None,
            };
            let Some(log) = log else { continue };
            holders += 1;
            let left = self.ledger.left.clone();
            self.judge(Rule::Succession, is_prefix(&left, &log), || {
                format!("{member} may go on from {log:?}, but {left:?} has left")
            });
        }
        self.judge(Rule::Survival, holders > 0 || crashed == 2, || {
            format!(
                "nobody holds the VM of term {}, although only {crashed} of its pair crashed",
                record.term
            )
        });
    }
}
