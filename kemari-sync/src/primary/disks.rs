//! The copy of the replicated disks, before that of memory: what the secondary's images are, how they are
//! copied, and whether they may be.

use crate::faults::{Fault, fault};
use crate::replica::{CopyDisk, DiskOffer, plan_copy};
use crate::wire::Message;

use super::session::Stage;
use super::{Actions, Primary, PrimaryAction, SessionId};

/// How far the copy of the disks has come.
#[derive(Clone, Hash)]
pub(super) enum DiskStep {
    /// The driver notes in the records here what the copy covers.
    Marking(Vec<CopyDisk>),
    /// The secondary marks its images as inconsistent.
    Told(Vec<CopyDisk>),
    /// Blocks are being compared and sent.
    Copying,
}

impl DiskStep {
    pub(super) fn waiting(&self) -> &'static str {
        match self {
            Self::Marking(_) => "the images' records are being written",
            Self::Told(_) => "the secondary makes its images ready",
            Self::Copying => "the disks are being copied; the guest runs on",
        }
    }
}

impl Primary {
    /// The secondary has said what its images are.
    pub(super) fn plan_disks(&mut self, offers: &[DiskOffer], actions: &mut Actions) {
        if self.sources.is_empty() && offers.is_empty() {
            return self.begin_copy(actions);
        }
        let plans = match self.plans(offers) {
            Ok(plans) => plans,
            Err(reason) => return self.close(&reason, actions),
        };
        let Some(session) = &mut self.session else { return };
        session.stage = Stage::Disks(DiskStep::Marking(plans.clone()));
        actions.push(PrimaryAction::MarkSources {
            session: session.id,
            plans,
        });
    }

    fn plans(&self, offers: &[DiskOffer]) -> Result<Vec<CopyDisk>, String> {
        if offers.len() != self.sources.len() {
            return Err(format!(
                "the secondary replicates {} disks, this host {}; give both the same configuration",
                offers.len(),
                self.sources.len()
            ));
        }
        let plans = self
            .sources
            .iter()
            .zip(offers)
            .enumerate()
            .map(|(index, (source, offer))| {
                let mut offer = offer.clone();
                offer.overwrite |= fault(Fault::CopyOverNewer);
                plan_copy(source, self.record.term, &offer, self.fresh_base(index))
            });
        plans.collect()
    }

    pub(super) fn on_source_grown(&mut self, disk: usize, bytes: u64) {
        if let Some(source) = self.sources.get_mut(disk)
            && !fault(Fault::KeepOldSize)
        {
            source.bytes = bytes;
        }
    }

    /// A number that no other copy has: the process's own, drawn at random, with the session and the disk.
    fn fresh_base(&self, index: usize) -> u128 {
        let copy = u128::from(self.sessions_begun) << 8 | index as u128;
        self.config.me.nonce.rotate_left(64).wrapping_add(copy)
    }

    pub(super) fn on_sources_marked(
        &mut self,
        id: SessionId,
        result: Result<(), String>,
        actions: &mut Actions,
    ) {
        let Some(session) = self.session.as_mut().filter(|session| session.id == id) else {
            return;
        };
        let Stage::Disks(DiskStep::Marking(plans)) = &session.stage else {
            return;
        };
        let plans = plans.clone();
        if let Err(reason) = result {
            return self.close(&reason, actions);
        }
        session.stage = Stage::Disks(DiskStep::Told(plans.clone()));
        for (source, plan) in self.sources.iter_mut().zip(&plans) {
            if source.base != plan.base {
                (source.base, source.paired_term) = (plan.base, 0);
            }
        }
        self.send(Message::CopyDisks(plans), actions);
    }

    pub(super) fn on_disks_ready(&mut self, actions: &mut Actions) {
        let Some(session) = &mut self.session else { return };
        let Stage::Disks(DiskStep::Told(plans)) = &session.stage else {
            return self.close("the disks were ready before they were asked for", actions);
        };
        let plans = plans.clone();
        session.stage = Stage::Disks(DiskStep::Copying);
        actions.push(PrimaryAction::CopyDisks {
            session: session.id,
            plans,
        });
    }

    pub(super) fn on_disks_copied(
        &mut self,
        id: SessionId,
        result: Result<(), String>,
        actions: &mut Actions,
    ) {
        let Some(session) = self.session.as_ref().filter(|session| session.id == id) else {
            return;
        };
        let is_copying = matches!(session.stage, Stage::Disks(DiskStep::Copying));
        match result {
            Ok(()) if is_copying => self.begin_copy(actions),
            Ok(()) => {}
            Err(reason) => self.close(&reason, actions),
        }
    }

    /// The pair is recorded: the images have their base in common from this reign on.
    pub(super) fn note_disks_paired(&mut self) {
        let term = self.record.term;
        self.sources
            .iter_mut()
            .for_each(|source| source.paired_term = term);
    }
}
