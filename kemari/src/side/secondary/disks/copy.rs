//! The copy of the primary's images into this side's.

use kemari_sync::wire::{BlockFrame, FrameHeader, FrameKind, encode_blocks};
use kemari_sync::{CopyDisk, SecondaryEvent, SessionId};

use super::super::SecondarySide;
use super::Wait;
use crate::link::LinkError;

impl SecondarySide {
    /// Tells the primary which extents may differ.
    pub(in crate::side::secondary) fn send_maps(&mut self, session: SessionId) {
        let Some(standby) = self.berth.standby() else {
            return;
        };
        let mut frames = Vec::new();
        for (index, image) in standby.disks.images.iter().enumerate() {
            let map = image.map().to_bytes();
            let frame = BlockFrame {
                disk: index as u16,
                count: map.len() as u32,
                place: 0,
                bytes: &map,
            };
            encode_blocks(FrameKind::DiskMap, &frame, &mut frames);
        }
        self.sessions.send_frames(session, frames);
    }

    pub(in crate::side::secondary) fn mark_targets(&mut self, session: SessionId, plans: &[CopyDisk]) {
        let result = match self.berth.standby_mut() {
            Some(standby) => standby
                .disks
                .mark_targets(plans)
                .map_err(|error| format!("{error:#}")),
            None => Err("there is no standby VM".into()),
        };
        self.events
            .push_back(SecondaryEvent::TargetsMarked { session, result });
    }

    /// A frame of the disks' copy.
    pub(in crate::side::secondary) fn take_blocks(
        &mut self,
        session: SessionId,
        header: &FrameHeader,
        body: &[u8],
    ) -> Result<(), LinkError> {
        let copying = self.berth.copying_for(session);
        let Some(standby) = copying.filter(|standby| standby.disks.are_targets) else {
            return Err(LinkError::Refused(
                "blocks came before they were asked for".into(),
            ));
        };
        header.check(body)?;
        let frame = BlockFrame::parse(header.kind, body)?;
        let Some(replica) = standby.disks.replicas.get(usize::from(frame.disk)) else {
            return Err(LinkError::Refused(format!(
                "there is no replicated disk {}",
                frame.disk
            )));
        };
        self.inflow.note_copied(0, body.len());
        match header.kind {
            FrameKind::DiskSums => replica.compare(frame.place, frame.bytes),
            _ => replica.write_blocks(frame.place, frame.count.into(), frame.bytes),
        }
        Ok(())
    }

    /// The check of the first sync of a pair passes when the images are whole, and durably so. Returns
    /// whether it waits.
    pub(in crate::side::secondary) fn wait_for_whole_disks(&mut self, epoch: u64) -> bool {
        let term = self.signs.begun_term();
        let Some(standby) = self.berth.standby_mut() else {
            return false;
        };
        if standby.disks.replicas.is_empty() {
            return false;
        }
        standby.disks.wait(Wait::Check { epoch, term });
        true
    }
}
