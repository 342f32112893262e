//! What this side has its replicas do: what commits release, the restore, and the end.

use std::sync::mpsc::SyncSender;

use kemari_sync::wire::DiskMark;
use kemari_sync::{Protection as Stage, SecondaryEvent};

use super::super::SecondarySide;
use super::Wait;
use crate::replica::Replica;

impl SecondarySide {
    /// Whether a replica has so much to do that nothing more is to be read for it.
    pub(in crate::side::secondary) fn disks_are_full(&self) -> bool {
        self.berth
            .standby()
            .is_some_and(|standby| standby.disks.is_full())
    }

    /// The pages of a commit are in memory: now the disks.
    pub(in crate::side::secondary) fn apply_outputs(&mut self, epoch: u64) {
        if let Some(standby) = self.berth.standby_mut() {
            let machine = standby.seat.machine.clone();
            if let Err(reason) = standby.disks.apply(&machine, &standby.states) {
                self.events.push_back(SecondaryEvent::ReplicaFailed { reason });
            }
            if standby.disks.is_full() {
                return standby.disks.awaited.wait_for_room(epoch);
            }
        }
        self.events.push_back(SecondaryEvent::Applied { epoch });
    }

    pub(in crate::side::secondary) fn settle_disk(&mut self, mark: DiskMark) {
        if let Some(standby) = self.berth.standby()
            && let Some(replica) = standby.disks.replicas.get(usize::from(mark.disk))
        {
            replica.settle(mark.request);
        }
    }

    /// All that was committed is carried out and durable before the machine takes the disks over.
    pub(in crate::side::secondary) fn finish_disks_and_restore(&mut self) {
        if let Some(standby) = self.berth.standby_mut()
            && !standby.disks.replicas.is_empty()
        {
            standby.disks.replicas.iter().for_each(Replica::retry);
            return standby.disks.wait(Wait::Restore);
        }
        let result = self.restore();
        self.events.push_back(SecondaryEvent::Restored { result });
    }

    /// An image that does not answer is given up, and what is held with it: a guest's flush may wait for it,
    /// and a takeover would. Not while the VM may depend on it.
    pub(in crate::side::secondary) fn check_disks(&mut self) {
        let limit = self.config.protection.replica_timeout();
        let standby = self.berth.standby();
        let stuck = standby.and_then(|standby| standby.disks.stuck(limit));
        let Some(reason) = stuck.filter(|_| !self.sessions.is_empty()) else {
            return;
        };
        let protection = self.core.status(self.clock.now_ms()).protection;
        if matches!(protection, Stage::Protected | Stage::Copying) {
            self.on_replica_failed(reason);
        }
    }

    /// Makes the image of a replicated disk larger, on the thread that writes it. That is all: it counts when
    /// the next standby VM opens it, or a takeover.
    pub(in crate::side::secondary) fn enlarge(
        &self,
        disk: &str,
        bytes: u64,
        answer: SyncSender<Result<String, String>>,
    ) {
        let standby = self.berth.occupant();
        let replica = standby.and_then(|standby| {
            let mut replicas = standby.disks.replicas.iter();
            replicas.find(|replica| replica.image().disk() == disk)
        });
        if let Some(replica) = replica {
            let disk = disk.to_owned();
            return replica.enlarge(bytes, move |result| {
                let said = |()| {
                    format!(
                        "the image of disk {disk} has {bytes} bytes here, which counts when \
                                         the primary's has them, too"
                    )
                };
                // Whoever asked may have gone.
                let _ = answer.send(result.map(said));
            });
        }
        let reason = match (self.berth.build(), standby) {
            (Some(_), _) => "a standby VM is being made ready: say it again when that is done".to_owned(),
            (None, None) => format!(
                "no image of disk {disk} is in use here: make it larger as any file, with `truncate -s` or \
                 `qemu-img resize`"
            ),
            (None, Some(_)) => format!("there is no replicated disk {disk}"),
        };
        // As above.
        let _ = answer.send(Err(reason));
    }

    /// The VM was stopped.
    pub(in crate::side::secondary) fn stop_disks(&mut self) {
        let limit = self.config.protection.replica_timeout();
        if let Some(mut standby) = self.berth.vacate() {
            standby.disks.stop(limit);
        }
    }
}
