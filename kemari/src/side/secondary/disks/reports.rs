//! What replicas say, and what comes of it.

use kemari_sync::SecondaryEvent;
use kemari_sync::wire::{BlockFrame, DiskMark, FrameKind, encode_blocks};

use super::super::{BuildId, SecondarySide};
use super::Wait;
use crate::replica::{Barrier, Report};

impl SecondarySide {
    /// A replica of the standby of this build says something.
    pub(in crate::side::secondary) fn on_replica(&mut self, build: BuildId, index: usize, report: Report) {
        let standby = self.berth.standby_mut();
        let Some(standby) = standby.filter(|standby| standby.build == build) else {
            return;
        };
        let session = standby.session;
        match report {
            Report::Room => {
                if !standby.disks.is_full() {
                    self.events.extend(standby.disks.awaited.room());
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
                self.sessions.send_frames(session, frame);
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
                self.sessions.send_frames(session, frame);
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
        let Some(standby) = self.berth.standby_mut() else {
            return;
        };
        match standby.disks.awaited.reached(index, barrier) {
            Some(Wait::Check { epoch, .. }) => {
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
        if let Some(standby) = self.berth.standby_mut() {
            self.events.extend(standby.disks.awaited.failed(reason));
        }
    }
}
