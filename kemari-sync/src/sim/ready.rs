//! Readiness: something is missing on a host that a takeover needs, its secondary finds that out,
//! and its primary hears of it.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::secondary::SecondaryEvent;
use crate::status::Protection;

use super::chaos::{Blow, Target};
use super::events::{Event, ToProcess};
use super::host::Process;
use super::invariants::{Invariant, ready};
use super::script::Script;
use super::world::World;

/// How often a secondary looks, in microseconds.
const LOOK_US: u64 = 20_000;
/// Longest way of a heartbeat, with a queue before it, in microseconds.
const WAY_US: u64 = 10_000;

impl Script {
    /// In some runs a card has no port on a host for a while, maybe just when the primary's uplink is lost.
    pub(super) fn draw_defects(&mut self, rng: &mut ChaCha8Rng) {
        if self.is_single || !rng.random_bool(0.12) {
            return;
        }
        self.unplugs = true;
        let at_us = rng.random_range(20_000..self.heal_us);
        let target = match rng.random_bool(0.7) {
            true => Target::Secondary,
            false => Target::Any(rng.random_range(0..super::HOSTS)),
        };
        self.blows
            .push((at_us, Blow::Unplug(target, rng.random_range(50_000..500_000))));
        if rng.random_bool(0.5) {
            let lost_us = at_us + rng.random_range(0..300_000);
            self.blows
                .push((lost_us.min(self.heal_us), Blow::UplinkLost(Target::Primary)));
        }
    }
}

impl World {
    /// A card has no port on this host, for so long.
    pub(super) fn unplug(&mut self, host: usize, for_us: u64) {
        self.flags.unplugged_us[host].get_or_insert(self.now_us);
        self.after(for_us, Event::Blow(Blow::Plug(host)));
    }

    /// A secondary looks whether it could take over.
    pub(super) fn look_if_ready(&mut self, host: usize) {
        if !matches!(self.hosts[host].process, Process::Secondary(_)) {
            return;
        }
        self.tell_after(LOOK_US, host, ToProcess::LookIfReady);
        self.hosts[host].looked_us = self.now_us;
        let reasons = self.reasons(host);
        self.feed_secondary(host, SecondaryEvent::Readiness { reasons });
    }

    /// What would keep it from that.
    pub(super) fn reasons(&self, host: usize) -> Vec<String> {
        let reason = self.flags.unplugged_us[host].map(|_| "there is no TAP".to_owned());
        reason.into_iter().collect()
    }

    /// A primary that says "protected", and one that begins to give its VM away,
    /// has a secondary that could go on now.
    pub(super) fn judge_ready(&mut self, host: usize, gives_away: bool) {
        let (now_ms, now_us) = (self.now_ms(), self.now_us);
        let grace_us = LOOK_US + WAY_US + self.setup.timing.suspicion_ms * 1_000;
        let it = &self.hosts[host];
        let Process::Primary(side) = &it.process else {
            return;
        };
        // Who stood still has heard nothing meanwhile.
        if now_us < it.stopped_until_us + grace_us {
            return;
        }
        let peer = side.machine.record().peer.as_ref();
        let Some(peer) = self.hosts.iter().position(|it| Some(&it.me) == peer) else {
            return;
        };
        // What one that stands still has found counts for longer than a run,
        // and so does what a cut has held up.
        let (it, mended_us) = (&self.hosts[peer], self.flags.mended_us);
        let is_late = now_us > it.looked_us + grace_us
            || now_us < it.stopped_until_us + grace_us
            || self.cuts[peer][host]
            || (mended_us > 0 && now_us < mended_us + grace_us);
        if self.script.unplugs && is_late {
            return;
        }
        // Where nothing is missing, or only since a moment ago, there is nothing to judge.
        let Some(lacks_us) = self.flags.unplugged_us[peer].map(|since_us| now_us - since_us) else {
            return;
        };
        if lacks_us <= grace_us {
            return;
        }
        let status = side.machine.status(now_ms);
        let is_ready = status.readiness.is_some_and(|readiness| readiness.is_ready());
        let is_said = status.protection == Protection::Protected && is_ready;
        let verdict = ready::counts_for_nothing(&self.hosts[peer].me, lacks_us, is_said || gives_away);
        self.judge(Invariant::Ready, verdict);
    }
}
