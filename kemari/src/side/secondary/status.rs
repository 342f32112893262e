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
        if self.told.is_held_anew(stage, held.as_deref()) {
            tracing::warn!(
                "the takeover waits for a disk of this host: {}",
                held.as_deref().unwrap_or_default()
            );
        }
        held
    }

    pub(super) fn show_now_and_then(&mut self) {
        let now_ms = self.clock.now_ms();
        if !self.told.shown.is_due(now_ms) {
            return;
        }
        let core = self.core.status(now_ms);
        self.board.lives_under(self.core.lives_under());
        let protection = match core.protection {
            Stage::Unprotected | Stage::Over => Protection::Off,
            Stage::Copying | Stage::Pairing => Protection::Copying {
                done_bytes: self.inflow.counters().pages * PAGE_BYTES as u64,
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
            silent_ms: self.signs.silent_ms(now_ms),
        });
        let readiness = core.readiness;
        self.told.shown.note(now_ms, readiness.as_ref());
        let counters = self.inflow.counters();
        let held = self.takeover_is_held_by(core.protection);
        let waiting = self.build_shown().or(core.waiting);
        let is_connected = !self.sessions.is_empty();
        let waiting = self
            .told
            .waiting(waiting, core.protection, is_connected, held.as_deref());
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
