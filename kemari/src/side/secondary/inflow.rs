//! What is received of the VM: where a sync is staged, and what was counted.

use kemari_sync::wire::{Commit, FrameHeader, Staging};
use kemari_sync::{Epoch, SecondaryEvent, SessionId};
use kemari_vmm::state::{StateBlob, StateKind};

use super::{Standby, trial};
use crate::control::Counters;

/// See the module.
pub struct Inflow {
    staging: Staging,
    /// The session and sync whose frames are staged.
    open: Option<(SessionId, Epoch)>,
    /// The states that the sync brings that was checked.
    checked: Vec<StateBlob>,
    /// Whether that sync is the VM's last.
    is_stop: bool,
    counters: Counters,
}

impl Inflow {
    /// Nothing was received.
    pub fn new(staging: Staging) -> Self {
        Self {
            staging,
            open: None,
            checked: Vec::new(),
            is_stop: false,
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// So many pages of a copy went into memory, in so many bytes.
    pub fn note_copied(&mut self, pages: usize, bytes: usize) {
        self.counters.pages += pages as u64;
        self.counters.wire_bytes += bytes as u64;
    }

    /// The frames of this sync are staged, if they come in this session.
    pub fn begin(&mut self, session: SessionId, epoch: Epoch) {
        self.staging.begin(epoch);
        self.open = Some((session, epoch));
    }

    /// The sync that is staged in this session.
    pub fn staged_in(&self, session: SessionId) -> Option<Epoch> {
        let (_, epoch) = self.open.filter(|(open, _)| *open == session)?;
        Some(epoch)
    }

    /// Where pages of this session go, if they are wanted and there is room.
    pub fn room(&mut self, session: SessionId, header: &FrameHeader) -> Option<&mut [u8]> {
        self.staged_in(session)?;
        // What does not fit is refused once it is there, as all else that is wrong with it.
        self.staging.room(header).ok()
    }

    /// A frame of a sync: `body`, or what lies in its room in staging. What is wrong with it makes the sync
    /// fail, not the link: that is what the core is told then.
    pub fn stage(
        &mut self,
        session: SessionId,
        header: &FrameHeader,
        body: Option<&[u8]>,
        standby: &Standby,
    ) -> Option<SecondaryEvent> {
        let epoch = self.staged_in(session)?;
        let has_page = |gfn| standby.has_page(gfn);
        let checksum = |gfn| standby.page_checksum(gfn);
        let result = match body {
            Some(body) => self.staging.accept(header, body, has_page, checksum),
            None => self.staging.accept_received(header, has_page, checksum),
        };
        self.counters.wire_bytes += header.length as u64;
        let reason = result.err()?.to_string();
        self.open = None;
        Some(SecondaryEvent::StagingFailed { epoch, reason })
    }

    /// Nothing more of the staged sync is to come. It is good if it is whole, and if its states would load.
    pub fn check(
        &mut self,
        commit: &Commit,
        would_load: impl FnOnce(&[StateBlob]) -> Result<(), String>,
    ) -> Result<(), String> {
        self.open = None;
        self.staging.check(commit).map_err(|error| error.to_string())?;
        let states = staged_states(&self.staging)?;
        would_load(&states)?;
        (self.checked, self.is_stop) = (states, commit.stop);
        Ok(())
    }

    /// The sync that was checked becomes the standby VM's state.
    pub fn commit_to(&mut self, standby: &mut Standby) {
        for page in self.staging.pages() {
            standby.write_page(page);
            self.counters.pages += 1;
        }
        trial::merge(&mut standby.states, self.checked.drain(..));
        standby.trial.is_due = true;
        standby.disks.is_stop = self.is_stop;
    }

    /// The sync that was staged is committed.
    pub fn note_commit(&mut self) {
        self.staging.clear();
        self.counters.syncs += 1;
    }

    /// What was staged is thrown away.
    pub fn discard(&mut self) {
        self.staging.clear();
        self.open = None;
    }

    /// Nothing more comes.
    pub fn into_staging(self) -> Staging {
        self.staging
    }
}

/// The states that the staged sync brings.
fn staged_states(staging: &Staging) -> Result<Vec<StateBlob>, String> {
    let blobs = staging.states().map(|frame| {
        let kind = StateKind::from_wire(frame.kind)
            .ok_or_else(|| format!("state of an unknown kind {}", frame.kind))?;
        Ok(StateBlob {
            kind,
            instance: frame.instance,
            version: frame.version,
            bytes: frame.bytes.to_vec(),
        })
    });
    blobs.collect()
}

#[cfg(test)]
mod tests {
    use kemari_sync::wire::SyncTally;

    use super::*;

    const SESSION: SessionId = 3;

    fn begun(epoch: Epoch) -> Inflow {
        let mut inflow = Inflow::new(Staging::new(1 << 20));
        inflow.begin(SESSION, epoch);
        inflow
    }

    #[test]
    fn a_sync_is_staged_in_the_session_that_it_came_in_until_it_is_checked_or_thrown_away() {
        let mut inflow = begun(4);
        assert_eq!(inflow.staged_in(SESSION), Some(4));
        assert_eq!(inflow.staged_in(SESSION + 1), None);
        inflow.discard();
        assert_eq!(inflow.staged_in(SESSION), None);
        inflow.begin(SESSION, 5);
        let commit = SyncTally::default().commit(5, false);
        assert_eq!(inflow.check(&commit, |_| Ok(())), Ok(()));
        assert_eq!(inflow.staged_in(SESSION), None, "its commit came last");
    }

    #[test]
    fn a_sync_whose_states_would_not_load_is_no_good() {
        let commit = SyncTally::default().commit(4, false);
        let refused = begun(4).check(&commit, |_| Err("a test".to_owned()));
        assert_eq!(refused, Err("a test".to_owned()));
        let never = |_: &[StateBlob]| unreachable!("it is not whole");
        let other = SyncTally::default().commit(5, false);
        assert!(begun(4).check(&other, never).is_err());
    }
}
