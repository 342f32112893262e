//! The replicated disks of a standby VM: the copy, what commits release, and the takeover.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, channel};
use std::time::Duration;

use anyhow::bail;
use kemari_sync::wire::{BlockFrame, DiskMark, FrameHeader, FrameKind, encode_blocks};
use kemari_sync::{CopyDisk, DiskOffer, Protection as Stage, SecondaryEvent, SessionId};
use kemari_vmm::disk::Operation;
use kemari_vmm::machine::Machine;

use super::super::assembly;
use super::super::capture::explain;
use super::super::drill::MomentOfDisk;
use super::super::step::step;
use super::{BuildId, SecondarySide, Standby};
use crate::config::Config;
use crate::control::{DiskState, DiskStatus};
use crate::link::LinkError;
use crate::replica::{Barrier, Image, ImageView, Remains, Replica, Report, State, Tracker};

/// What waits until all replicas have reached a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The check of the first sync.
    Check(u64),
    /// The restore.
    Restore,
}

/// The replicated disks of a standby VM.
pub struct StandbyDisks {
    /// Until the machine takes them over.
    replicas: Vec<Replica>,
    images: Vec<Arc<Image>>,
    /// Which disk of the machine each of them is.
    places: Vec<usize>,
    /// How many disks the machine has.
    disks: usize,
    /// The last output that was given to each replica.
    applied: Vec<Option<u64>>,
    /// Commits so far.
    commits: u64,
    /// Whether their images are marked as inconsistent: blocks may come.
    are_targets: bool,
    /// Which replicas have not reached the barrier that something waits for.
    unreached: BTreeSet<usize>,
    /// Whether the last sync that was checked ends the VM.
    pub is_stop: bool,
}

impl StandbyDisks {
    pub fn new(config: &Config, replicas: Vec<Replica>) -> Self {
        let places = config.disks.iter().enumerate();
        Self {
            images: replicas.iter().map(|replica| replica.image().clone()).collect(),
            applied: vec![None; replicas.len()],
            replicas,
            places: places
                .filter(|(_, disk)| config.replicates(disk))
                .map(|(place, _)| place)
                .collect(),
            disks: config.disks.len(),
            commits: 0,
            are_targets: false,
            unreached: BTreeSet::new(),
            is_stop: false,
        }
    }

    /// The disks as they are when all commits so far are carried out, for a drill. Each layer holds at most so many bytes.
    pub fn moment(&self, layer_bytes_max: u64) -> Vec<MomentOfDisk> {
        let replicas = self.replicas.iter().zip(&self.applied);
        replicas
            .map(|(replica, applied)| {
                let (given, overlay) = channel();
                replica.overlay(layer_bytes_max, move |overlay| {
                    // The drill may be over.
                    let _ = given.send(overlay);
                });
                MomentOfDisk {
                    applied: *applied,
                    overlay,
                }
            })
            .collect()
    }

    /// The ids of the disks, and where their images are.
    pub fn paths(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.images.iter().map(|image| (image.disk(), image.path()))
    }

    /// What is told to the primary.
    pub fn offers(&self) -> Vec<DiskOffer> {
        self.images.iter().map(|image| image.offer()).collect()
    }

    /// Whether all replicas work.
    pub fn check(&self) -> Result<(), String> {
        match self.replicas.iter().find_map(Replica::failure) {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }

    /// That an image has done nothing for longer than `limit` with something to do, in words.
    fn stuck(&self, limit: Duration) -> Option<String> {
        self.replicas.iter().find_map(|replica| replica.stuck(limit))
    }

    /// Lets the replicas go whose images do not answer, without waiting for them.
    pub fn abandon_stuck(&mut self, limit: Duration) -> Vec<Remains> {
        let mut remains = Vec::new();
        for replica in std::mem::take(&mut self.replicas) {
            match replica.stuck(limit) {
                Some(reason) => remains.push(replica.abandon(&reason)),
                None => self.replicas.push(replica),
            }
        }
        remains
    }

    fn is_full(&self) -> bool {
        self.replicas.iter().any(Replica::is_full)
    }

    fn barrier(&mut self, barrier: Barrier) {
        self.unreached = (0..self.replicas.len()).collect();
        self.replicas.iter().for_each(|replica| replica.barrier(barrier));
    }

    fn mark_targets(&mut self, plans: &[CopyDisk]) -> anyhow::Result<()> {
        if plans.len() != self.images.len() {
            bail!(
                "the primary copies {} disks, not {}",
                plans.len(),
                self.images.len()
            );
        }
        for (image, plan) in self.images.iter().zip(plans) {
            step(format_args!("mark the image of {}", image.disk()), || {
                image.become_target(plan)
            })?;
        }
        self.are_targets = true;
        Ok(())
    }

    /// Gives the replicas what a commit releases, in order.
    fn apply(&mut self, machine: &Machine, states: &[kemari_vmm::state::StateBlob]) -> Result<(), String> {
        let mut place_of = vec![None; self.disks];
        for (index, place) in self.places.iter().enumerate() {
            place_of[*place] = Some(index);
        }
        // Other disks are not this side's business: all of their outputs count as applied.
        let applied = |disk: usize| match place_of[disk] {
            Some(index) => self.applied[index],
            None => Some(u64::MAX),
        };
        let operations = machine
            .disk_operations(states, applied)
            .map_err(|error| explain(&error))?;
        let mut outputs: Vec<Vec<(u64, Operation)>> = self.replicas.iter().map(|_| Vec::new()).collect();
        for operation in operations {
            if let Some(index) = place_of[operation.disk] {
                self.applied[index] = Some(operation.id);
                outputs[index].push((operation.id, operation.operation));
            }
        }
        for (replica, outputs) in self.replicas.iter().zip(outputs) {
            if !outputs.is_empty() {
                replica.apply(outputs);
            }
        }
        self.commits += 1;
        if self.commits == 2 {
            // The first one's output was released, so the pair is recorded.
            self.replicas.iter().for_each(Replica::note_recorded);
        }
        Ok(())
    }

    /// Waits until the replicas have carried out what they were given, and closes their images; which of them finish nothing
    /// for longer than `limit` are let go.
    pub fn finish(&mut self, limit: Duration) -> Vec<Remains> {
        let replicas = self.replicas.drain(..);
        replicas
            .filter_map(|replica| replica.finish_within(limit).err())
            .map(|(_, remains)| remains)
            .collect()
    }

    /// Everything was carried out: closes the images, for the machine.
    pub fn close(&mut self) {
        self.replicas.drain(..).for_each(|replica| drop(replica.finish()));
    }

    /// The images, in the order of the configuration.
    pub fn images(&self) -> &[Arc<Image>] {
        &self.images
    }

    /// Lets the machine know what the images have already, and who watches them.
    pub fn watched(&self, machine: &Machine, config: &Config) -> anyhow::Result<Vec<Arc<Tracker>>> {
        for (image, applied) in self.images.iter().zip(&self.applied) {
            if let Some(applied) = applied {
                machine.note_applied(image.disk(), *applied)?;
            }
        }
        assembly::watch_disks(machine, config, &self.images)
    }

    /// The VM was stopped: everything is made durable, and the records say so, if the last commit was the stop. An image
    /// that does nothing for longer than `limit` is not waited for.
    fn stop(&mut self, limit: Duration) {
        if self.is_stop {
            self.replicas
                .iter()
                .for_each(|replica| replica.barrier(Barrier::Stop));
        }
        for replica in self.replicas.drain(..) {
            if let Err((reason, _)) = replica.finish_within(limit) {
                tracing::error!("{reason}; it is left as it is");
            }
        }
    }
}

impl SecondarySide {
    /// Whether a replica has so much to do that nothing more is to be read for it.
    pub(super) fn disks_are_full(&self) -> bool {
        self.standby
            .as_ref()
            .is_some_and(|standby| standby.disks.is_full())
    }

    /// Tells the primary which extents may differ.
    pub(super) fn send_maps(&mut self, session: SessionId) {
        let Some(standby) = &self.standby else { return };
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
        self.send_frames(session, frames);
    }

    fn send_frames(&mut self, session: SessionId, frames: Vec<u8>) {
        if let Some(session) = self.sessions.iter_mut().find(|other| other.id == session) {
            session.main.send(frames);
        }
    }

    pub(super) fn mark_targets(&mut self, session: SessionId, plans: &[CopyDisk]) {
        let result = match &mut self.standby {
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
    pub(super) fn take_blocks(
        &mut self,
        session: SessionId,
        header: &FrameHeader,
        body: &[u8],
    ) -> Result<(), LinkError> {
        let copying = self.copying == Some(session);
        let Some(standby) = self
            .standby
            .as_ref()
            .filter(|standby| copying && standby.disks.are_targets)
        else {
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
        self.counters.wire_bytes += body.len() as u64;
        match header.kind {
            FrameKind::DiskSums => replica.compare(frame.place, frame.bytes),
            _ => replica.write_blocks(frame.place, frame.count.into(), frame.bytes),
        }
        Ok(())
    }

    /// The check of the first sync of a pair passes when the images are whole, and durably so. Returns whether it waits.
    pub(super) fn wait_for_whole_disks(&mut self, epoch: u64) -> bool {
        let term = self.begun_term;
        let Some(standby) = &mut self.standby else {
            return false;
        };
        if standby.disks.replicas.is_empty() {
            return false;
        }
        standby.disks.barrier(Barrier::Whole(term));
        self.waits_for_disks = Some(Wait::Check(epoch));
        true
    }

    /// The check that may be under way will not be needed.
    pub(super) fn forget_check(&mut self) {
        self.waits_for_disks
            .take_if(|wait| matches!(wait, Wait::Check(_)));
    }

    /// The pages of a commit are in memory: now the disks.
    pub(super) fn apply_outputs(&mut self, epoch: u64) {
        if let Some(standby) = &mut self.standby {
            let machine = standby.seat.machine.clone();
            if let Err(reason) = standby.disks.apply(&machine, &standby.states) {
                self.events.push_back(SecondaryEvent::ReplicaFailed { reason });
            }
        }
        if self.disks_are_full() {
            self.applying = Some(epoch);
        } else {
            self.events.push_back(SecondaryEvent::Applied { epoch });
        }
    }

    /// All that was committed is carried out and durable before the machine takes the disks over.
    pub(super) fn finish_disks_and_restore(&mut self) {
        if let Some(standby) = &mut self.standby
            && !standby.disks.replicas.is_empty()
        {
            standby.disks.replicas.iter().for_each(Replica::retry);
            standby.disks.barrier(Barrier::Flush);
            self.waits_for_disks = Some(Wait::Restore);
            return;
        }
        let result = self.restore();
        self.events.push_back(SecondaryEvent::Restored { result });
    }

    /// An image that does not answer is given up, and what is held with it: a guest's flush may wait for it, and a takeover
    /// would. Not while the VM may depend on it.
    pub(super) fn check_disks(&mut self) {
        let limit = self.config.protection.replica_timeout();
        let stuck = self
            .standby
            .as_ref()
            .and_then(|standby| standby.disks.stuck(limit));
        let Some(reason) = stuck.filter(|_| !self.sessions.is_empty()) else {
            return;
        };
        let protection = self.core.status(self.clock.now_ms()).protection;
        if matches!(protection, Stage::Protected | Stage::Copying) {
            self.on_replica_failed(reason);
        }
    }

    /// Gives a standby up, without waiting for images that do not answer.
    pub(super) fn let_go(&mut self, standby: &mut Standby) {
        let limit = self.config.protection.replica_timeout();
        self.remains.extend(standby.disks.abandon_stuck(limit));
    }

    /// An image that was given up and has not answered yet, in words: nothing can follow with it.
    pub(super) fn image_in_use(&mut self) -> Option<String> {
        self.remains.retain(|remains| remains.reason().is_some());
        self.remains.first().and_then(Remains::reason)
    }

    /// Makes the image of a replicated disk larger, on the thread that writes it. That is all: it counts when the next
    /// standby VM opens it, or a takeover.
    pub(super) fn enlarge(&self, disk: &str, bytes: u64, answer: SyncSender<Result<String, String>>) {
        let standby = self.standby.as_ref().or(self.leaving.as_ref());
        let replica = standby.and_then(|standby| {
            let mut replicas = standby.disks.replicas.iter();
            replicas.find(|replica| replica.image().disk() == disk)
        });
        if let Some(replica) = replica {
            let disk = disk.to_owned();
            return replica.enlarge(bytes, move |result| {
                let said = |()| format!("the image of disk {disk} has {bytes} bytes here, which counts when the primary's has them, too");
                // Whoever asked may have gone.
                let _ = answer.send(result.map(said));
            });
        }
        let reason = match (&self.build, standby) {
            (Some(_), _) => "a standby VM is being made ready: say it again when that is done".to_owned(),
            (None, None) => format!(
                "no image of disk {disk} is in use here: make it larger as any file, with `truncate -s` or `qemu-img resize`"
            ),
            (None, Some(_)) => format!("there is no replicated disk {disk}"),
        };
        // As above.
        let _ = answer.send(Err(reason));
    }

    /// For humans.
    pub(super) fn disks_shown(&mut self, stage: Stage) -> Vec<DiskStatus> {
        if let Some(standby) = self.standby.as_ref().or(self.leaving.as_ref()) {
            self.views = standby
                .disks
                .images
                .iter()
                .map(|image| Ok(image.view()))
                .collect();
        }
        let is_copied = self
            .copying
            .is_some_and(|copying| self.sessions.iter().any(|session| session.id == copying));
        let unanswered = self.image_in_use();
        let config = self.config.clone();
        let mut place = 0;
        let shown = config.disks.iter().map(|disk| {
            let mut shown = DiskStatus::of(&config, disk);
            if !config.replicates(disk) {
                return shown;
            }
            let replica = self
                .standby
                .as_ref()
                .and_then(|standby| standby.disks.replicas.get(place));
            let failure = match replica {
                Some(replica) => {
                    (shown.queued_requests, shown.queued_bytes) = replica.queued();
                    replica.failure()
                }
                None => unanswered.clone(),
            };
            let view = self.views.get(place).cloned().unwrap_or(Ok(ImageView::default()));
            let view = failure.map_or(view, Err);
            shown.state = match &view {
                Err(_) => DiskState::Failed,
                Ok(view) => {
                    shown.changed_bytes = view.changed_bytes;
                    match view.state {
                        Some(State::Target) if is_copied => DiskState::Copying,
                        Some(State::Target) => DiskState::Inconsistent,
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

    pub(super) fn settle_disk(&mut self, mark: DiskMark) {
        if let Some(standby) = &self.standby
            && let Some(replica) = standby.disks.replicas.get(usize::from(mark.disk))
        {
            replica.settle(mark.request);
        }
    }

    /// The VM was stopped.
    pub(super) fn stop_disks(&mut self) {
        let limit = self.config.protection.replica_timeout();
        for mut standby in self.standby.take().into_iter().chain(self.leaving.take()) {
            standby.disks.stop(limit);
        }
    }

    /// A replica of the standby of this build says something.
    pub(super) fn on_replica(&mut self, build: BuildId, index: usize, report: Report) {
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

    fn on_replica_failed(&mut self, reason: String) {
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
}
