//! What replicas say, and what comes of it.

use kemari_sync::wire::{BlockFrame, DiskMark, FrameKind, encode_blocks};
use kemari_sync::{SecondaryEvent, SessionId};

use super::super::{BuildId, SecondarySide};
use super::Wait;
use crate::replica::{Barrier, Report};

impl SecondarySide {
    /// A replica of the standby of this build says something.
    pub(in crate::side::secondary) fn on_replica(&mut self, build: BuildId, index: usize, report: Report) {
        let current = self.standby.as_ref().filter(|standby| standby.build == build);
        let Some(session) = current.map(|standby| standby.session) else {
            return;
        };
        match report {
            Report::Room => {
                if !self.disks_are_full()
                    && let Some(epoch) = self.applying.take()
                {
                    self.events.push_back(SecondaryEvent::Applied { epoch });
                }
            }
            Report::Wanted { first, count, bits } => {
                let mut frame = Vec::new();
                let wanted = BlockFrame {
                    disk: index as u16,
                    count,
                    place: first,
                    bytes: &bits,
                };
                encode_blocks(FrameKind::DiskWanted, &wanted, &mut frame);
                self.send_frames(session, frame);
            }
            Report::Stored(frames) => {
                let mut frame = Vec::new();
                let stored = BlockFrame {
                    disk: index as u16,
                    count: 0,
                    place: frames,
                    bytes: &[],
                };
                encode_blocks(FrameKind::DiskStored, &stored, &mut frame);
                self.send_frames(session, frame);
            }
            Report::Flushed(request) => {
                let disk = index as u16;
                self.events
                    .push_back(SecondaryEvent::DiskFlushed(DiskMark { disk, request }));
            }
            Report::Reached(barrier) => self.on_barrier(index, barrier),
            Report::Failed(reason) => self.on_replica_failed(reason),
        }
    }

    fn on_barrier(&mut self, index: usize, barrier: Barrier) {
        let Some(standby) = &mut self.standby else { return };
        let awaited = match (self.waits_for_disks, barrier) {
            (Some(Wait::Check(_)), Barrier::Whole(term)) => term == self.begun_term,
            (Some(Wait::Restore), Barrier::Flush) => true,
            _ => false,
        };
        if !awaited {
            return;
        }
        standby.disks.unreached.remove(&index);
        if !standby.disks.unreached.is_empty() {
            return;
        }
        match self.waits_for_disks.take() {
            Some(Wait::Check(epoch)) => {
                let result = Ok(());
                self.events.push_back(SecondaryEvent::Checked { epoch, result });
            }
            Some(Wait::Restore) => {
                let result = self.restore();
                self.events.push_back(SecondaryEvent::Restored { result });
            }
            None => {}
        }
    }

    pub(super) fn on_replica_failed(&mut self, reason: String) {
        tracing::error!("{reason}");
        let result = Err(reason.clone());
        match self.waits_for_disks.take() {
            Some(Wait::Check(epoch)) => self.events.push_back(SecondaryEvent::Checked { epoch, result }),
            Some(Wait::Restore) => self.events.push_back(SecondaryEvent::Restored { result }),
            None => self.events.push_back(SecondaryEvent::ReplicaFailed { reason }),
        }
        // Nothing more is carried out, so nothing waits for room.
        if let Some(epoch) = self.applying.take() {
            self.events.push_back(SecondaryEvent::Applied { epoch });
        }
    }

    pub(super) fn send_frames(&mut self, session: SessionId, frames: Vec<u8>) {
        if let Some(session) = self.sessions.iter_mut().find(|other| other.id == session) {
            session.main.send(frames);
        }
    }
}
