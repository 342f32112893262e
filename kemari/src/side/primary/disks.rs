//! The replicated disks of a primary: their copy to a secondary, and the terms in their records. A guest's
//! write goes with its sync; `replica/writer.rs` carries it out there.

use std::sync::Arc;
use std::time::Instant;

use kemari_sync::wire::{BlockFrame, DiskMark, FrameHeader, FrameKind, Message};
use kemari_sync::{
    ArbiterAnswer, ArbiterRequest, CopyDisk, Epoch, Phase, PrimaryEvent, Protection, Ruled, SessionId,
    Status as CoreStatus, Term, announced_term,
};

use super::super::arbiter_thread::AskId;
use super::super::copy::QUEUED_BYTES_MAX;
use super::super::step::step;
use super::holds::Hold;
use super::stillness::Until;
use super::trouble::Standstill;
use super::{Input, PrimarySide};
use crate::config::Config;
use crate::control::{DiskState, DiskStatus};
use crate::link::LinkError;
use crate::replica::{CopiedDisk, Copier, CopyProgress, Image, MARK_AGE_MIN, Map, Tracker};
use crate::threads::helpers;

/// How often marks are looked at, in milliseconds.
const SETTLE_INTERVAL_MS: u64 = 1000;

/// What a primary knows of its replicated disks.
pub struct Disks {
    trackers: Vec<Arc<Tracker>>,
    /// What the secondary of this session has marked, of each disk.
    peer_maps: Vec<Option<Map>>,
    copier: Option<Copier>,
    /// Whether the core was told that the copy has converged.
    told: bool,
    /// The reign that the records know.
    pub(super) ruled: Ruled,
    /// What the last copy came to.
    progress: CopyProgress,
    /// Up to which request each disk is durable on both hosts, as was last told, and when to look again.
    settled: Vec<Option<u64>>,
    settle_ms: u64,
    /// Why the last session ended.
    pub trouble: Option<String>,
    /// Why the arbiter is not asked, if it is not.
    unready: Option<String>,
}

impl Disks {
    /// Disks whose records say that this reign is this side's, as each start and each restore leaves them.
    pub fn new(trackers: Vec<Arc<Tracker>>, term: Term) -> Self {
        Self {
            peer_maps: vec![None; trackers.len()],
            settled: vec![None; trackers.len()],
            settle_ms: 0,
            progress: CopyProgress::default(),
            trackers,
            copier: None,
            told: false,
            ruled: Ruled::of(term),
            trouble: None,
            unready: None,
        }
    }

    /// Takes what the secondary says about blocks; false: the frame is something else.
    pub fn take_frame(&mut self, header: &FrameHeader, body: &[u8]) -> Result<bool, LinkError> {
        if !matches!(
            header.kind,
            FrameKind::DiskMap | FrameKind::DiskWanted | FrameKind::DiskStored
        ) {
            return Ok(false);
        }
        let frame = BlockFrame::parse(header.kind, body)?;
        let index = usize::from(frame.disk);
        let Some(tracker) = self.trackers.get(index) else {
            return Err(LinkError::Refused(format!("there is no replicated disk {index}")));
        };
        match (header.kind, &self.copier) {
            (FrameKind::DiskMap, _) => {
                // Of an image of another size: it is refused by what is said next.
                self.peer_maps[index] = Map::from_bytes(tracker.image().bytes(), frame.bytes);
            }
            (FrameKind::DiskWanted, Some(copier)) => copier.wanted(&frame),
            (FrameKind::DiskStored, Some(copier)) => copier.stored(&frame),
            // The copy is over.
            _ => {}
        }
        Ok(true)
    }

    /// The images, in the order of the configuration.
    pub fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.trackers.iter().map(|tracker| tracker.image())
    }

    /// The session is over, and the copy with it.
    pub fn end_session(&mut self) {
        self.copier = None;
        self.told = false;
        self.peer_maps.iter_mut().for_each(|map| *map = None);
    }

    /// Whether blocks must be copied before the copy of memory may go on.
    pub fn must_go_on(&self) -> bool {
        self.copier
            .as_ref()
            .is_some_and(|copier| !copier.is_converged() || copier.go_on_if_needed())
    }

    /// When marks are to be looked at, with a secondary there.
    pub fn settle_due_ms(&self) -> Option<u64> {
        (!self.trackers.is_empty()).then_some(self.settle_ms)
    }

    pub fn note_peer_flushed(&self, mark: DiskMark) {
        if let Some(tracker) = self.trackers.get(usize::from(mark.disk)) {
            tracker.note_peer_flushed(mark.request);
        }
    }

    /// For humans. `failing`: the disk that the guest stands still for, and why.
    pub fn shown(&self, config: &Config, core: &CoreStatus, failing: Option<&Standstill>) -> Vec<DiskStatus> {
        let progress = self.copier.as_ref().map_or(self.progress, Copier::progress);
        let shown = config.disks.iter().map(|disk| {
            let mut shown = DiskStatus {
                state: DiskState::InUse,
                ..DiskStatus::of(config, disk)
            };
            let tracker = self
                .trackers
                .iter()
                .find(|tracker| tracker.image().disk() == disk.id);
            if let Some(tracker) = tracker {
                shown.state = match core.protection {
                    Protection::Protected => DiskState::InSync,
                    _ if self.copier.is_some() => DiskState::Copying,
                    _ => DiskState::Alone,
                };
                (shown.total_bytes, shown.compared_bytes) = (progress.total_bytes, progress.compared_bytes);
                shown.sent_bytes = progress.sent_bytes;
                shown.changed_bytes = tracker.image().view().changed_bytes;
                shown.waiting_flushes = tracker.waiting_flushes();
            }
            if let Some(failing) = failing.filter(|failing| failing.disk == disk.id) {
                (shown.state, shown.failure) = (DiskState::Failed, Some(failing.reason.clone()));
            }
            shown
        });
        shown.collect()
    }
}

impl PrimarySide {
    /// What keeps the VM from being protected, as far as the last session has shown.
    pub(super) fn disk_trouble(&self) -> Option<String> {
        self.disks
            .trouble
            .clone()
            .filter(|_| !self.machine.holds_output())
    }

    /// Notes durably what the copy is to cover.
    pub(super) fn mark_sources(&mut self, session: SessionId, plans: &[CopyDisk]) {
        let result = self
            .disks
            .trackers
            .iter()
            .zip(plans)
            .zip(&self.disks.peer_maps)
            .try_for_each(|((tracker, plan), theirs)| match theirs {
                Some(theirs) => tracker.image().become_source(plan, theirs),
                None => anyhow::bail!("the secondary has not said what differs on disk {}", plan.disk),
            })
            .map_err(|error| format!("{error:#}"));
        self.events
            .push_back(PrimaryEvent::SourcesMarked { session, result });
    }

    pub(super) fn copy_disks(&mut self, session: SessionId) {
        let result = self.start_copier().map_err(|error| format!("{error:#}"));
        if result.is_err() {
            self.events
                .push_back(PrimaryEvent::DisksCopied { session, result });
        }
    }

    fn start_copier(&mut self) -> anyhow::Result<()> {
        let mut disks = Vec::new();
        for tracker in &self.disks.trackers {
            let id = tracker.image().disk();
            let Some(server) = self.machine.disk_server(id)? else {
                anyhow::bail!("disk {id} has no image");
            };
            disks.push(CopiedDisk {
                tracker: tracker.clone(),
                server,
            });
        }
        let mailbox = self.mailbox.clone();
        let bytes_per_s_max = self.config.protection.resync_bytes_per_s_max();
        self.disks.told = false;
        self.disks.copier = Some(Copier::start(disks, bytes_per_s_max, move || {
            mailbox.post(Input::Wake)
        })?);
        Ok(())
    }

    /// Hands frames of the disks' copy to the link as long as it takes them.
    pub(super) fn pump_disks(&mut self) {
        let begin = Instant::now();
        while let (Some(copier), Some(session)) = (&self.disks.copier, self.peer.session()) {
            if self.ends_pumping(begin) {
                return;
            }
            let id = session.id;
            if let Some(reason) = copier.failure() {
                self.disks.copier = None;
                let result = Err(reason);
                self.events
                    .push_back(PrimaryEvent::DisksCopied { session: id, result });
                return;
            }
            if session.main.queued_bytes() > QUEUED_BYTES_MAX {
                return;
            }
            match copier.take_frame() {
                Some(frame) => {
                    self.stopwatch.counters.wire_bytes += frame.len() as u64;
                    self.peer.on_link(id, |session| session.main.send(frame));
                }
                None => {
                    if copier.is_converged() && !self.disks.told {
                        self.disks.told = true;
                        let result = Ok(());
                        self.events
                            .push_back(PrimaryEvent::DisksCopied { session: id, result });
                    }
                    return;
                }
            }
        }
    }

    /// At the first capture of a pair no write may be under way: the secondary could not know its bytes,
    /// which the guest may have changed since. Returns whether the capture waits for that.
    pub(super) fn await_still_disks(&mut self, epoch: Epoch) -> bool {
        if self.disks.trackers.is_empty() || self.machine.holds_output() {
            return false;
        }
        self.holds.add(Hold::Mechanism);
        self.note_inline_pause();
        self.stillness.want(epoch, true, self.clock.now_us());
        self.stillness.wait(Until::DisksAreStill(epoch));
        self.machine.begin_pause();
        let (machine, mailbox) = (self.machine.clone(), self.mailbox.clone());
        // Other threads finish the requests; the loop must go on meanwhile.
        helpers::run("still disks", move || {
            machine.pause();
            machine.drain_disks();
            mailbox.post(Input::DisksAreStill(epoch));
        });
        true
    }

    /// The first sync of a pair is about to be sent: before it the rest of the disks, and, in the records
    /// here, that the pair's term may begin. False: it failed, and the session is over.
    pub(super) fn finish_disk_copy(&mut self, session: SessionId, term: Term) -> bool {
        let announced = self
            .disks
            .trackers
            .iter()
            .try_for_each(|tracker| tracker.image().announce(term));
        let rest = announced.and_then(|()| match self.disks.copier.take() {
            Some(copier) => {
                self.disks.progress = copier.progress();
                let rest = copier.take_rest()?;
                self.check_flushed()?;
                self.disks
                    .trackers
                    .iter()
                    .for_each(|tracker| tracker.note_copied());
                Ok(rest)
            }
            None if self.disks.trackers.is_empty() => Ok(Vec::new()),
            None => anyhow::bail!("the copy of the disks has ended early"),
        });
        match rest {
            Ok(frames) => {
                let rest_bytes = frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
                self.stopwatch.counters.wire_bytes += rest_bytes;
                if !self.disks.trackers.is_empty() {
                    let CopyProgress {
                        compared_bytes,
                        sent_bytes,
                        ..
                    } = self.disks.progress;
                    tracing::info!(
                        "the disks are copied: {} KiB were compared, {} KiB sent, {} KiB of them while the \
                         guest stood still",
                        compared_bytes >> 10,
                        (sent_bytes + rest_bytes) >> 10,
                        rest_bytes >> 10
                    );
                }
                self.peer
                    .on_link(session, |session| session.main.send_all(frames));
                true
            }
            Err(error) => {
                let result = Err(format!("{error:#}"));
                self.events
                    .push_back(PrimaryEvent::DisksCopied { session, result });
                false
            }
        }
    }

    /// What the disks were drained of for the first capture of a pair is durable here, or no mark may go.
    fn check_flushed(&self) -> anyhow::Result<()> {
        for image in self.disks.images() {
            anyhow::ensure!(
                !self.machine.disk_may_lack(image.disk())?,
                "the disk {} could not be flushed before the first sync",
                image.disk()
            );
        }
        Ok(())
    }

    /// Asks the arbiter, once the records say what they must before. If they cannot nothing is asked: this
    /// host could write nothing under the term. The secondary goes on, if it can; or else it is tried again.
    pub(super) fn ask(&mut self, ask: AskId, request: ArbiterRequest) {
        let Err(error) = self.prepare_ask(&request) else {
            self.disks.unready = None;
            return self.arbiter.ask(ask, request);
        };
        let reason = format!("this host's disks are not ready: {error:#}");
        let is_pairing = matches!(&request, ArbiterRequest::Swap { new, .. }
            if new.phase == Phase::Acting && new.peer.is_some());
        if self.core.goes_on_there() && !is_pairing {
            return self.fail_host(reason);
        }
        if self.disks.unready.as_ref() != Some(&reason) {
            tracing::error!("the arbiter is not asked, for {reason}; it is tried again");
            self.disks.unready = Some(reason.clone());
        }
        let answer = ArbiterAnswer::Unavailable(reason);
        self.events.push_back(PrimaryEvent::Arbiter { ask, answer });
    }

    /// Before a term is asked for, the records say that it may begin: who loses its power when it has won,
    /// and before it knows, still has the last image. And before this side acts alone they say that the term
    /// is its own: afterwards nobody else could go on, so nothing may fail.
    fn prepare_ask(&mut self, request: &ArbiterRequest) -> anyhow::Result<()> {
        let ArbiterRequest::Swap { new, .. } = request else {
            return Ok(());
        };
        let acts_alone = new.phase == Phase::Acting && new.peer.is_none();
        for image in self.disks.images() {
            // One of which nobody can tell may lack anything.
            let lacks = || self.machine.disk_may_lack(image.disk()).unwrap_or(true);
            step(
                format_args!("note the term of {}", image.disk()),
                || match acts_alone {
                    true => image.rule(new.term, false),
                    false => image.announce(announced_term(new, lacks)),
                },
            )?;
        }
        if acts_alone {
            self.disks.ruled.note(new.term);
        }
        Ok(())
    }

    /// Before anything is written in a new term, the records say that it is this side's. False: they cannot.
    /// Then a pair goes on on the other host, or parts, and it is tried again; a side alone ends.
    pub(super) fn rule_disks(&mut self, paired: bool) -> bool {
        let term = self.core.record().term;
        if self.disks.trackers.is_empty() || !self.disks.ruled.lacks(term) {
            return true;
        }
        let result = self
            .disks
            .trackers
            .iter()
            .try_for_each(|tracker| tracker.image().rule(term, paired));
        match result {
            Ok(()) => {
                self.disks.ruled.note(term);
                if paired {
                    self.disks.trouble = None;
                    self.disks
                        .trackers
                        .iter()
                        .for_each(|tracker| tracker.begin_pair());
                }
                true
            }
            Err(error) => {
                let reason = format!("{error:#}");
                match paired {
                    true => self.fail_protection(reason),
                    false => self.fail_host(reason),
                }
                false
            }
        }
    }

    /// No other host's disk is waited for any more.
    pub(super) fn end_disk_pair(&self) {
        self.disks.trackers.iter().for_each(|tracker| tracker.end_pair());
    }

    /// Now and then marks are taken of what is durable on both hosts.
    pub(super) fn settle_disks(&mut self) {
        self.disks.settle_ms = self.clock.now_ms() + SETTLE_INTERVAL_MS;
        let Some(session) = self.peer.id() else {
            return;
        };
        for index in 0..self.disks.trackers.len() {
            let settled = self.disks.trackers[index].settle(MARK_AGE_MIN);
            if let Some(request) = settled.filter(|_| settled != self.disks.settled[index]) {
                self.disks.settled[index] = settled;
                let disk = index as u16;
                self.send(session, Message::Settled(DiskMark { disk, request }));
            }
        }
    }

    /// The VM ends here, or goes on elsewhere, and everything it wrote is durable: the records say so, but
    /// not of an image that could not be flushed.
    pub(super) fn note_stopped_disks(&mut self) {
        for image in self.disks.images() {
            let stopped = match self.machine.disk_may_lack(image.disk()) {
                Ok(true) => continue,
                Ok(false) => image.stop(),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = stopped {
                tracing::error!("{error:#}");
            }
        }
        self.disks.ruled.forget();
    }
}

#[cfg(test)]
#[path = "disks_test.rs"]
mod tests;
