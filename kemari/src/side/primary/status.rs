//! What the primary shows.

use kemari_sync::{Protection as Stage, Status as CoreStatus};
use kemari_vmm::memory::PAGE_BYTES;

use super::{End, PrimarySide, trouble};
use crate::control::{Peer, Protection, Role, Waits};

impl PrimarySide {
    pub(super) fn show_now_and_then(&mut self) {
        if self.shown.is_due(self.clock.now_ms()) {
            self.show();
        }
    }

    pub(super) fn show(&mut self) {
        let now_ms = self.clock.now_ms();
        let core = self.core.status(now_ms);
        let record = self.core.record();
        self.board.lives_under(Some((record.store, record.term)));
        let protection = match core.protection {
            Stage::Unprotected | Stage::Over => Protection::Off,
            Stage::Copying | Stage::Pairing => Protection::Copying {
                done_bytes: self.owed.copy.done_pages * PAGE_BYTES as u64,
                total_bytes: self.owed.copy.total_pages.max(1) * PAGE_BYTES as u64,
            },
            Stage::Protected => Protection::On,
            Stage::Deciding => Protection::Doubtful,
        };
        let peer = self.peer.session().map(|session| Peer {
            host: session.host.clone(),
            address: session.main.peer_address(),
            connected: true,
            silent_ms: self.peer.silent_ms(now_ms),
        });
        let (counters, pace, timings) = (
            self.stopwatch.counters,
            self.demand.pace(),
            self.stopwatch.timings(),
        );
        let readiness = core.readiness.clone();
        self.shown.note(now_ms, readiness.as_ref());
        let waits = match self.machine.holds_output() {
            true => Waits {
                guest: self.demand.gather.stands_still(),
                output_us: self.demand.gather.wait_us(),
            },
            false => Waits::default(),
        };
        let waiting = self.waits_because(&core, protection);
        let disks = self.disks.shown(&self.config, &core, self.holds.disk());
        let standstill = self.holds.disk().map(trouble::Standstill::sentence);
        let role = match self.end {
            Some(End::Halted(_) | End::Stopped(_)) => Role::Stopped,
            None => Role::Primary,
        };
        self.board.show(|status| {
            status.role = role;
            status.term = core.term;
            status.epoch = core.epoch;
            status.protection = protection;
            status.readiness = readiness.map(Into::into);
            status.since_s = core.for_ms / 1000;
            status.waiting_because = standstill.or(waiting);
            status.peer = peer;
            status.counters = counters;
            status.disks = disks;
            status.pace = Some(pace);
            status.waits = waits;
            status.timings.clone_from(timings);
        });
    }

    /// What waits and why, besides a guest that stands still.
    fn waits_because(&self, core: &CoreStatus, protection: Protection) -> Option<String> {
        let waiting = match (core.waiting.clone(), self.disk_trouble()) {
            // A secondary that fails is tried again and again: how far one attempt has come tells nothing.
            (Some(waiting), Some(trouble)) => Some(format!("{waiting}; {trouble}")),
            (waiting, trouble) => waiting
                .or(self.peer.connector.trouble().map(str::to_owned))
                .or(trouble.filter(|_| self.core.wants_peer())),
        };
        let narrow = self.peer.connector.narrow();
        match (waiting, narrow.filter(|_| protection == Protection::Off)) {
            (Some(waiting), Some(narrow)) => Some(format!("{waiting}; {narrow}")),
            (waiting, _) => waiting,
        }
    }
}
