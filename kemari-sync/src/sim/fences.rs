//! Fences: an order takes its time, outlives the process that gave it,
//! and takes the power from a host at its end.

use rand::Rng;

use crate::record::Term;
use crate::secondary::SecondaryEvent;

use super::events::{Event, ToProcess};
use super::host::Process;
use super::invariants::{Invariant, fence};
use super::secondary_driver::outcome;
use super::world::World;

/// A fence is over within so long, in milliseconds: one that hangs is ended.
pub(super) const FENCE_MS_MAX: u64 = 200;
/// How long a fence takes at most that is quick, and one that is slow, in microseconds.
const QUICK_US_MAX: u64 = 10_000;
const SLOW_US_MAX: u64 = 190_000;

/// A fence under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence {
    number: u64,
    /// Whose order it is, and of which boot of that host: it needs its power.
    by: usize,
    boot: u64,
    /// Whose process waits for it.
    life: u64,
    target: usize,
    /// The term under which it was begun.
    term: Term,
    /// It takes the power from the target, or is ended before.
    strikes: bool,
    /// It says that it did not succeed, whatever it did.
    fails: bool,
}

impl World {
    pub(super) fn begin_fence(&mut self, host: usize, old: &str, until_ms: u64) {
        let most_us = if self.setup.slow_fences {
            SLOW_US_MAX
        } else {
            QUICK_US_MAX
        };
        let (takes_us, fails) = (self.some_us(most_us), std::mem::take(&mut self.flags.fence_fails));
        let Some(target) = self.hosts.iter().position(|it| it.me.host == old) else {
            return;
        };
        let until_us = until_ms * 1_000;
        let ends_us = match fails && self.rng.random_bool(0.5) {
            true => u64::MAX,
            false => self.now_us + takes_us,
        };
        let is_in_time = ends_us <= until_us;
        self.fences_begun += 1;
        let fence = Fence {
            number: self.fences_begun,
            by: host,
            boot: self.hosts[host].boot,
            life: self.hosts[host].life,
            target,
            term: self.store.record.as_ref().map_or(0, |record| record.term),
            strikes: is_in_time && (!fails || self.rng.random_bool(0.3)),
            fails: fails || !is_in_time,
        };
        self.fences.push(fence);
        self.at(ends_us.min(until_us), Event::FenceEnds(fence));
    }

    /// A side acts, on this host: nobody is about to strike it.
    pub(super) fn judge_fences(&mut self, host: usize) {
        let boots: Vec<u64> = self.hosts.iter().map(|host| host.boot).collect();
        let lives = |fence: &&Fence| boots[fence.by] == fence.boot;
        let about = self
            .fences
            .iter()
            .filter(lives)
            .find(|fence| fence.target == host);
        let verdict = fence::acts(host, about.map(|fence| fence.term));
        self.judge(Invariant::Fence, verdict);
    }

    pub(super) fn fence_ends(&mut self, fence: Fence) {
        self.fences.retain(|other| other.number != fence.number);
        if self.hosts[fence.by].boot != fence.boot {
            return;
        }
        if fence.strikes {
            self.strike_host(fence);
        }
        let event = SecondaryEvent::Fenced {
            result: outcome(fence.fails),
        };
        self.at(
            self.now_us,
            Event::Process {
                host: fence.by,
                life: fence.life,
                what: ToProcess::Secondary(event),
            },
        );
    }

    fn strike_host(&mut self, fence: Fence) {
        let target = fence.target;
        self.note(|| format!("a fence of host {} strikes host {target}", fence.by));
        let acts = match &self.hosts[target].process {
            Process::Primary(side) => Some(side.machine.record().term),
            _ => None,
        };
        let verdict = fence::strikes(acts, fence.term);
        self.judge(Invariant::Fence, verdict);
        self.cut_power(target);
    }
}
