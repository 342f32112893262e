//! What the secondary shows.

use std::time::Duration;

use kemari_sync::Protection as Stage;
use kemari_vmm::memory::PAGE_BYTES;

use super::SecondarySide;
use crate::control::{Peer, Protection, Role};

/// A takeover waits for this host's disks. After so long without any progress of one it is told for which.
const HELD: Duration = Duration::from_secs(1);

impl SecondarySide {
    /// Which disk of this host a takeover waits for, in words, and once in the log.
    fn takeover_is_held_by(&mut self, stage: Stage) -> Option<String> {
        let deciding = self.berth.standby().filter(|_| stage == Stage::Deciding);
        let held = deciding.and_then(|standby| standby.disks.stuck(HELD));
        if self.is_held_anew(stage, held.as_deref()) {
            tracing::warn!(
                "the takeover waits for a disk of this host: {}",
                held.as_deref().unwrap_or_default()
            );
        }
        held
    }

    /// Whether this takeover has not been held by that before: a slow disk goes on now and then, and stands still again.
    pub(super) fn is_held_anew(&mut self, stage: Stage, held: Option<&str>) -> bool {
        if stage != Stage::Deciding {
            self.held.clear();
        }
        let new = held.filter(|held| !self.held.iter().any(|told| told == held));
        self.held.extend(new.map(str::to_owned));
        new.is_some()
    }

    pub(super) fn show_now_and_then(&mut self) {
        let now_ms = self.clock.now_ms();
        if !self.shown.is_due(now_ms) {
            return;
        }
        self.shown.note(now_ms);
        let core = self.core.status(now_ms);
        self.board.lives_under(self.core.lives_under());
        let protection = match core.protection {
            Stage::Unprotected | Stage::Over => Protection::Off,
            Stage::Copying | Stage::Pairing => Protection::Copying {
                done_bytes: self.counters.pages * PAGE_BYTES as u64,
                total_bytes: self.spec.memory_bytes,
            },
            Stage::Protected => Protection::On,
            Stage::Deciding => Protection::Doubtful,
        };
        let peer = self.sessions.first().map(|session| Peer {
            host: self
                .core
                .primary()
                .map_or_else(String::new, |primary| primary.host.clone()),
            address: session.main.peer_address(),
            connected: true,
            silent_ms: self
                .heard_us
                .map(|heard_us| now_ms.saturating_sub(heard_us / 1000)),
        });
        let readiness = core.readiness;
        self.announced.note(readiness.as_ref());
        let counters = self.counters;
        let not_booted = self.not_booted.as_ref().filter(|_| self.sessions.is_empty());
        let waiting = match (self.build_shown().or(core.waiting), not_booted) {
            (Some(waiting), Some(reason)) => Some(format!("{waiting}; the VM is not booted here: {reason}")),
            (waiting, reason) => waiting.or(reason.cloned()),
        };
        if core.protection == Stage::Protected {
            self.parted = None;
        }
        let is_idle = core.protection == Stage::Unprotected && self.sessions.is_empty();
        let waiting = match (waiting, self.parted.as_ref().filter(|_| is_idle)) {
            (Some(waiting), Some(reason)) => Some(format!("{waiting}; the last session ended: {reason}")),
            (waiting, _) => waiting,
        };
        let waiting = match (waiting, self.takeover_is_held_by(core.protection)) {
            (Some(waiting), Some(reason)) => Some(format!("{waiting}: {reason}")),
            (waiting, _) => waiting,
        };
        let disks = self.disks_shown(core.protection);
        let drill = self.drills.shown(now_ms);
        self.board.show(|status| {
            status.role = Role::Secondary;
            status.term = core.term;
            status.epoch = core.epoch;
            status.protection = protection;
            status.readiness = readiness.map(Into::into);
            status.since_s = core.for_ms / 1000;
            status.waiting_because = waiting;
            status.peer = peer;
            status.counters = counters;
            status.disks = disks;
            status.drill = drill;
            status.pace = None;
        });
    }
}
