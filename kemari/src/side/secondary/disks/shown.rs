//! The disks, for humans.

use kemari_sync::{ImageState, Protection as Stage};

use super::super::SecondarySide;
use crate::control::{DiskState, DiskStatus};
use crate::replica::ImageView;

impl SecondarySide {
    /// For humans.
    pub(in crate::side::secondary) fn disks_shown(&mut self, stage: Stage) -> Vec<DiskStatus> {
        if let Some(standby) = self.berth.occupant() {
            self.told.views = standby
                .disks
                .images
                .iter()
                .map(|image| Ok(image.view()))
                .collect();
        }
        let copying = self.berth.copying().map(|standby| standby.session);
        let is_copied = copying.is_some_and(|copying| self.sessions.get(copying).is_some());
        let unanswered = self.builder.image_in_use();
        let config = self.config.clone();
        let mut place = 0;
        let shown = config.disks.iter().map(|disk| {
            let mut shown = DiskStatus::of(&config, disk);
            if !config.replicates(disk) {
                return shown;
            }
            let replica = self
                .berth
                .standby()
                .and_then(|standby| standby.disks.replicas.get(place));
            let failure = match replica {
                Some(replica) => {
                    (shown.queued_requests, shown.queued_bytes) = replica.queued();
                    replica.failure()
                }
                None => unanswered.clone(),
            };
            let view = self
                .told
                .views
                .get(place)
                .cloned()
                .unwrap_or(Ok(ImageView::default()));
            let view = failure.map_or(view, Err);
            shown.state = match &view {
                Err(_) => DiskState::Failed,
                Ok(view) => {
                    shown.changed_bytes = view.changed_bytes;
                    match view.state {
                        Some(ImageState::Target) if is_copied => DiskState::Copying,
                        Some(ImageState::Target) => DiskState::Inconsistent,
                        Some(_) if stage == Stage::Protected => DiskState::InSync,
                        Some(_) => DiskState::Whole,
                        None => DiskState::Unknown,
                    }
                }
            };
            shown.failure = view.err();
            place += 1;
            shown
        });
        shown.collect()
    }
}
