//! Replicated disks in the simulation: what the drivers do with the image on each host, and with its record.

use rand::Rng;

use crate::faults::Fault;
use crate::marks::{Marks, ReplicaMarks};
use crate::primary::{PrimaryEvent, SessionId};
use crate::record::Term;
use crate::replica::{CopyDisk, DiskOffer, ImageHistory};
use crate::secondary::SecondaryEvent;

use super::client::Reply;
use super::events::ToProcess;
use super::flushes::FlushMode;
use super::growth::below;
use super::invariants::replica::{self, Blocks};
use super::invariants::{Invariant, flush, marks};
use super::net::{Frame, PRIMARY, SECONDARY};
use super::vm::{Output, Vm};
use super::world::World;

/// How likely a commit is followed by a flush of the secondary's own.
const OWN_FLUSH: f64 = 0.2;

/// A secondary's image.
#[derive(Clone, Default)]
pub(super) struct ImageSide {
    /// Blocks may come, and may still be missing.
    pub(super) is_copying: bool,
    commits: u64,
    /// Which standby this is, counted over all hosts: flushes of older ones are void.
    pub(super) generation: u64,
    pub(super) marks: ReplicaMarks,
    /// When the flush that began last is done, in microseconds.
    pub(super) flushed_us: u64,
    /// The image could not be written, and nothing more is carried out on it; its machine knows.
    pub(super) has_failed: bool,
    pub(super) is_known_failed: bool,
}

impl World {
    pub(super) fn image_offers(&self, host: usize) -> Vec<DiskOffer> {
        match self.setup.replicated {
            true => vec![self.hosts[host].image.offer()],
            false => Vec::new(),
        }
    }

    /// A process ends: what is left of a copy into its image says what it is.
    pub(super) fn leave_image(&mut self, host: usize) {
        let is_copying = self.hosts[host]
            .secondary()
            .is_some_and(|side| side.image.is_copying);
        let verdict = replica::admits_copy(is_copying, self.hosts[host].image.word());
        self.judge(Invariant::Replica, verdict);
    }

    /// A cold boot: the guest makes a new file system.
    pub(super) fn format_image(&mut self, host: usize, term: Term, was_stopped: bool) {
        if !self.setup.replicated {
            return;
        }
        let unique = self.hosts[host].me.nonce;
        let image = &mut self.hosts[host].image;
        image
            .history
            .get_or_insert_with(|| ImageHistory::first(unique, unique, term));
        let verdict = replica::runs(image.word(), &image.blocks, &image.blocks);
        let promised = match was_stopped {
            true => self.checks.last_blocks,
            false => self.checks.promised,
        };
        let kept = flush::keeps(&promised, &image.blocks);
        image.format();
        image.marks = below(image.recorded);
        image.change(|history| history.rule(term, false));
        (self.checks.promised, self.checks.last_blocks) = (Blocks::default(), Blocks::default());
        self.judge(Invariant::Replica, verdict);
        self.judge(Invariant::Flush, kept);
    }

    /// The next reign is noted before it is asked for. False: the record cannot be written.
    pub(super) fn announce_reign(&mut self, host: usize, term: Term) -> bool {
        if !self.setup.replicated {
            return true;
        }
        if self.disk_fails(host) {
            return false;
        }
        let unique = self.hosts[host].me.nonce;
        let image = &mut self.hosts[host].image;
        let fresh = || ImageHistory::first(unique, unique, 0);
        image.history.get_or_insert_with(fresh).announce(term);
        true
    }

    /// A takeover: all that was committed is durable. False: it cannot be.
    pub(super) fn finish_replica(&mut self, host: usize) -> bool {
        if !self.setup.replicated {
            return true;
        }
        let has_failed = self.hosts[host]
            .secondary()
            .is_none_or(|side| side.image.has_failed);
        if has_failed || !self.flush_target(host) {
            self.replica_fails(host);
            return false;
        }
        true
    }

    /// Nothing is carried out on it any more, as a replica: flushes of its own that are under way mean
    /// nothing. False: it has failed.
    pub(super) fn close_replica(&mut self, host: usize) -> bool {
        let Some(side) = self.hosts[host].secondary() else {
            return false;
        };
        let is_well = !self.setup.replicated || !side.image.has_failed;
        if is_well {
            side.image.generation = 0;
        }
        is_well
    }

    /// The record says whose the image is. False: it cannot be written.
    pub(super) fn rule_record(&mut self, host: usize, term: Term) -> bool {
        if !self.setup.replicated {
            return true;
        }
        if self.disk_fails(host) {
            return false;
        }
        self.hosts[host].image.change(|history| history.rule(term, false));
        true
    }

    /// Whether the record of a host's image says that it is written in this term.
    pub(super) fn is_ruled(&self, host: usize, term: Term) -> bool {
        let word = self.hosts[host].image.word();
        !self.setup.replicated || word.is_some_and(|word| word.term == term)
    }

    pub(super) fn takes_over_image(&mut self, host: usize, vm: &mut Vm, epoch: u64) {
        if !self.setup.replicated {
            return;
        }
        let has_failed = self.hosts[host]
            .secondary()
            .is_some_and(|side| side.image.has_failed);
        let image = &mut self.hosts[host].image;
        let runs = replica::is_usable(has_failed, "the VM runs").and_then(|()| {
            let (blocks, durable) = (&image.blocks, &image.durable);
            replica::runs(image.word(), blocks, durable)
        });
        let verdict = runs.and_then(|()| replica::follows(image, vm, epoch));
        let kept = flush::keeps(&self.checks.promised, &image.blocks);
        // Who takes over may find that it has grown.
        image.note_size();
        vm.grow(image.recorded, &image.blocks);
        self.judge(Invariant::Flush, kept);
        self.judge(Invariant::Replica, verdict);
    }

    pub(super) fn mark_sources(&mut self, host: usize, session: SessionId, plans: &[CopyDisk]) {
        let Some(plan) = plans.first() else { return };
        let delay_us = self.some_us(2_000);
        if self.disk_fails(host) {
            let result = Err("the record cannot be written".to_owned());
            let event = PrimaryEvent::SourcesMarked { session, result };
            return self.tell_after(delay_us, host, ToProcess::Primary(event));
        }
        let target = self.connections[session as usize].ends[SECONDARY].host;
        let peer_marks = self.hosts[host].primary().map_or(0, |side| side.copy.peer_marks);
        let other = self.hosts[target].image.clone();
        let image = &mut self.hosts[host].image;
        image.marks |= if plan.only_marked {
            peer_marks
        } else {
            below(image.recorded)
        };
        let verdict = replica::leaves_out(image, &other);
        image.change(|history| history.become_source(plan));
        self.judge(Invariant::Replica, verdict);
        let result = Ok(());
        let event = PrimaryEvent::SourcesMarked { session, result };
        self.tell_after(delay_us, host, ToProcess::Primary(event));
    }

    /// Before the first sync: what has changed since, and, in the record, the reign that may begin. False:
    /// that failed.
    pub(super) fn finish_image_copy(&mut self, host: usize, session: SessionId, term: Term) -> bool {
        if !self.setup.replicated {
            return true;
        }
        if !self.announce_reign(host, term) || !self.flush_source(host, Fault::ForgetFailedFlush) {
            self.copy_fails(host, session);
            return false;
        }
        let image = self.hosts[host].image.blocks;
        let Some(side) = self.hosts[host].primary() else {
            return false;
        };
        let changed = side.copy.finish();
        self.transmit(session, PRIMARY, Frame::Blocks(blocks_of(&image, changed)));
        true
    }

    /// Before anything is written in a new reign the record says so. False: it cannot. A pair goes on on the
    /// other host then, or parts; a side alone ends.
    pub(super) fn rule_image(&mut self, host: usize, paired: bool) -> bool {
        let Some(side) = self.hosts[host].primary() else {
            return false;
        };
        let term = side.machine.record().term;
        if !self.setup.replicated || !side.copy.ruled.lacks(term) {
            return true;
        }
        if self.disk_fails(host) {
            match paired {
                true => self.fail_protection(host),
                false => self.fail_host(host),
            }
            return false;
        }
        let image = &mut self.hosts[host].image;
        image.change(|history| history.rule(term, paired));
        let marked = image.marked();
        let copied = self.hosts[host].primary().map(|side| {
            side.copy.ruled.note(term);
            match paired {
                true => side.copy.marks.begin_pair(marked),
                false => Vec::new(),
            }
        });
        if paired {
            let image = &mut self.hosts[host].image;
            image.unmark(&copied.unwrap_or_default());
        }
        true
    }

    /// A write is about to be issued. False: the record cannot be written, so it must not be.
    pub(super) fn mark_write(&mut self, host: usize, number: u64, page: usize) -> bool {
        if !self.setup.replicated {
            return true;
        }
        let marks = self.hosts[host].image.marks;
        if let Some(side) = self.hosts[host].primary() {
            side.copy.marks.begin_write(number, page);
            if Marks::may_change([page as u64], |extent| marks & 1 << extent != 0) {
                return true;
            }
        }
        if self.disk_fails(host) {
            return false;
        }
        self.hosts[host].image.marks |= 1 << page;
        true
    }

    /// A write has reached the primary's own image.
    pub(super) fn image_written(&mut self, host: usize, page: usize, value: (u64, u64)) {
        self.hosts[host].image.write(page, value);
        self.note_changed(host, page);
    }

    fn note_changed(&mut self, host: usize, page: usize) {
        if let Some(side) = self.hosts[host].primary()
            && let Some(changed) = &mut side.copy.changed
        {
            *changed |= 1 << page;
        }
    }

    /// A write has ended, well or not: of one that failed nobody knows what it has left.
    pub(super) fn write_ended(&mut self, host: usize, number: u64, page: usize, is_done: bool) {
        let now_ms = self.now_ms();
        if self.setup.replicated {
            self.note_changed(host, page);
            if let Some(side) = self.hosts[host].primary() {
                side.copy.marks.end_write(number, page, is_done, now_ms);
            }
        }
    }

    pub(super) fn mark_targets(&mut self, host: usize, session: SessionId, plans: &[CopyDisk]) {
        let Some(plan) = plans.first() else { return };
        let delay_us = self.some_us(2_000);
        if self.disk_fails(host) {
            let result = Err("the record cannot be written".to_owned());
            let event = SecondaryEvent::TargetsMarked { session, result };
            return self.tell_after(delay_us, host, ToProcess::Secondary(event));
        }
        let image = &mut self.hosts[host].image;
        let verdict = replica::overwrites(plan.term, image.word());
        (image.history, image.marks) = (Some(ImageHistory::target(plan)), 0);
        if let Some(side) = self.hosts[host].secondary() {
            side.image.is_copying = true;
        }
        self.judge(Invariant::Replica, verdict);
        let result = Ok(());
        let event = SecondaryEvent::TargetsMarked { session, result };
        self.tell_after(delay_us, host, ToProcess::Secondary(event));
    }

    pub(super) fn take_blocks(&mut self, host: usize, blocks: Vec<(usize, (u64, u64))>) {
        let is_taken = self.hosts[host]
            .secondary()
            .is_some_and(|side| side.image.is_copying && !side.image.has_failed);
        if !is_taken {
            return;
        }
        if !blocks.is_empty() && self.disk_fails(host) {
            self.replica_fails(host);
        } else {
            for (block, value) in blocks {
                self.hosts[host].image.write(block, value);
            }
            self.blocks_taken(host);
        }
    }

    /// The check of a sync: the first one ends the copy, unless the image cannot be made durable. False:
    /// it cannot.
    pub(super) fn check_image(&mut self, host: usize) -> bool {
        let Some(side) = self.hosts[host].secondary().filter(|side| side.image.is_copying) else {
            return true;
        };
        if side.image.has_failed || !self.flush_target(host) {
            self.replica_fails(host);
            return false;
        }
        let Some(side) = self.hosts[host].secondary() else {
            return false;
        };
        side.image.is_copying = false;
        let term = side.begun_term;
        let image = &mut self.hosts[host].image;
        image.change(|history| history.become_whole(term));
        true
    }

    /// What a commit releases is carried out, in the order of the list.
    pub(super) fn apply_outputs(&mut self, host: usize, vm: &Vm) {
        if !self.setup.replicated {
            return;
        }
        let Some(side) = self.hosts[host].secondary().filter(|side| !side.image.has_failed) else {
            return;
        };
        side.image.commits += 1;
        let is_recorded = side.image.commits == 2;
        let now_ms = self.now_ms();
        for entry in vm.list.iter().filter(|entry| entry.output.is_disk()) {
            let touched = match &entry.output {
                Output::Write(reply) => Some(reply),
                _ => None,
            };
            let extents = touched.map(|reply| reply.page as u64);
            let Some(side) = self.hosts[host].secondary() else {
                return;
            };
            if !side.image.marks.begin(entry.number, extents, now_ms) {
                continue;
            }
            match touched {
                Some(reply) => self.apply_write(host, reply),
                None => self.flush_replica(host, Some(entry.number)),
            }
            match self.hosts[host].secondary() {
                Some(side) if !side.image.has_failed => side.image.marks.end(entry.number),
                _ => return,
            }
        }
        // The guest's own come only where it waits for both.
        if self.setup.flush == FlushMode::Memory && self.rng.random_bool(OWN_FLUSH) {
            self.flush_replica(host, None);
        }
        if is_recorded {
            self.hosts[host].image.change(ImageHistory::note_recorded);
        }
    }

    fn apply_write(&mut self, host: usize, reply: &Reply) {
        self.hosts[host].image.marks |= 1 << reply.page;
        let is_beyond = reply.page >= self.hosts[host].image.recorded;
        if is_beyond || self.disk_fails(host) {
            return self.replica_fails(host);
        }
        let value = (reply.seq, reply.hash);
        self.hosts[host].image.write(reply.page, value);
    }

    pub(super) fn image_follows(&mut self, host: usize, vm: &Vm, epoch: u64) {
        if !self.setup.replicated {
            return;
        }
        let Some(side) = self.hosts[host].secondary() else {
            return;
        };
        let (has_failed, is_known) = (side.image.has_failed, side.image.is_known_failed);
        let verdict = match has_failed {
            true => replica::is_usable(is_known, "a sync is committed"),
            false => replica::follows(&self.hosts[host].image, vm, epoch),
        };
        self.judge(Invariant::Replica, verdict);
    }
}

impl World {
    /// After each event.
    pub(super) fn judge_marks(&mut self) {
        if !self.setup.replicated {
            return;
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let (a, b) = (&self.hosts[a].image, &self.hosts[b].image);
            if marks::have_common_base(a, b) {
                let verdict = marks::cover(a, b);
                self.judge(Invariant::Marks, verdict);
            }
        }
    }
}

fn blocks_of(blocks: &Blocks, mask: u32) -> Vec<(usize, (u64, u64))> {
    let blocks = blocks.iter().copied().enumerate();
    blocks.filter(|(block, _)| mask & 1 << block != 0).collect()
}
