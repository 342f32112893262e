//! Flushes of a replicated disk in the simulation, when the guest is told of them, and the marks that go when
//! both images have durably what was written.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;

use crate::faults::{Fault, fault};
use crate::marks::{Carried, Marks};
use crate::replica::ImageHistory;
use crate::secondary::SecondaryEvent;
use crate::wire::{DiskMark, Message};

use super::events::ToProcess;
use super::host::Process;
use super::image::Flush;
use super::invariants::replica::Blocks;
use super::invariants::{Invariant, flush};
use super::net::{Frame, PRIMARY};
use super::vm::{Output, PAGES, Phase};
use super::world::World;

/// How often marks are looked at, in microseconds.
pub(super) const SETTLE_US: u64 = 5_000;
/// A block keeps its mark for so long after it was last written, in milliseconds.
const MARK_AGE_MS: u64 = 4;
/// Longest flush of a secondary, in microseconds: most are short, some are not.
const REPLICA_FLUSH_US: [u64; 4] = [2_000, 6_000, 6_000, 90_000];

/// When a flush of a replicated disk is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushMode {
    /// When the primary's disk has it.
    Memory,
    /// When both disks have it.
    Both,
}

/// What a primary's driver keeps for the marks of its image, and for flushes.
#[derive(Clone, Default)]
pub(super) struct PrimaryMarks {
    pub(super) rules: Marks,
    /// Writes that have begun, and not ended for good.
    writes: BTreeSet<u64>,
    /// The last request up to which the secondary was told that everything is durable on both.
    settled: Option<u64>,
    /// Flushes of which the guest is not told yet, with what they cover.
    untold: BTreeMap<u64, Blocks>,
}

impl PrimaryMarks {
    /// Returns the blocks whose marks may go.
    pub(super) fn begin_pair(&mut self, marked: impl Iterator<Item = u64>) -> Vec<u64> {
        self.settled = None;
        let cleared = self.rules.begin_pair(marked);
        self.rules.forget(&cleared);
        cleared
    }

    /// A write is issued, for the first time or again.
    pub(super) fn begin_write(&mut self, number: u64, page: usize) {
        if self.writes.insert(number) {
            self.rules.begin([page as u64]);
        }
    }

    pub(super) fn end_write(&mut self, number: u64, page: usize, is_done: bool, now_ms: u64) {
        if self.writes.remove(&number) {
            self.rules.end(number, [page as u64], is_done, now_ms);
        }
    }
}

impl World {
    /// Where a flush is done when the primary's disk has it, it waits for no sync: the disk gets it as soon
    /// as no write before it waits for one.
    pub(super) fn start_free_flushes(&mut self, host: usize) {
        if self.setup.flush == FlushMode::Both {
            return;
        }
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let mut started = Vec::new();
        for entry in side.vm.list.iter_mut().filter(|entry| entry.output.is_disk()) {
            match (&entry.output, entry.phase) {
                (_, Phase::Released) => {}
                (Output::Flush(..), Phase::Held) => {
                    entry.phase = Phase::Released;
                    started.push(entry.clone());
                }
                _ => break,
            }
        }
        side.writes_in_flight += started.len() as u32;
        for entry in started {
            self.issue(host, &entry);
        }
    }

    /// A flush is given to the primary's disk: the guest is promised what has ended, and was requested before
    /// it. (One that is tried again may come after later writes.) Of each block it is at least what was
    /// `known` to be done.
    pub(super) fn flush_image(&mut self, host: usize, number: u64, known: &Blocks, delay_us: u64) {
        self.rewrite_lost(host, Fault::ForgetFailedFlush);
        let flush = self.hosts[host].image.begin_flush();
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let is_open = |entry: &&super::vm::Entry| {
            matches!(entry.output, Output::Write(_))
                && entry.phase == Phase::Released
                && entry.number < number
        };
        let first_open = side
            .vm
            .list
            .iter()
            .filter(is_open)
            .map(|entry| entry.number)
            .min();
        let ended = first_open.map_or(number, |open| open - 1);
        side.copy.marks.rules.flush_begins(number, Some(ended));
        let mut covered = flush.blocks.clone();
        for page in 0..PAGES {
            let is_later = side.copy.marks.rules.last_change(page as u64) > Some(number);
            // A later write that has failed, and is tried again now, may have left what it is for: that was
            // not asked of this flush, and the other image may have it in a cache still.
            let is_later = is_later || side.is_of_later(number, page, flush.blocks[page]);
            if is_later || side.failed.iter().any(|failed| side.writes(*failed, page)) {
                covered[page] = known[page];
            }
        }
        let what = ToProcess::ImageFlushed {
            number,
            flush,
            covered,
        };
        self.tell_after(delay_us, host, what);
    }

    /// The primary's disk has carried a flush out.
    pub(super) fn image_flushed(&mut self, host: usize, number: u64, flush: &Flush, covered: Blocks) {
        if !self.end_flush(host, flush, Fault::ForgetFailedFlush) {
            return self.request_failed(host, number);
        }
        let waits = self.setup.flush == FlushMode::Both;
        self.tell_flushes(host, |marks| {
            marks.untold.insert(number, covered);
            marks.rules.flushed(number, waits)
        });
    }

    /// The secondary's disk has everything up to this request.
    pub(super) fn peer_flushed(&mut self, host: usize, request: u64) {
        self.tell_flushes(host, |marks| marks.rules.peer_flushed(request));
    }

    /// No other host is waited for any more.
    pub(super) fn end_image_pair(&mut self, host: usize) {
        self.tell_flushes(host, |marks| marks.rules.end_pair());
    }

    /// Something happens that may end what flushes of the guest wait for.
    fn tell_flushes(&mut self, host: usize, event: impl FnOnce(&mut PrimaryMarks) -> Vec<u64>) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let marks = &mut side.copy.marks;
        let told = event(marks).into_iter();
        let told: Vec<_> = told
            .filter_map(|number| Some((number, marks.untold.remove(&number)?)))
            .collect();
        for (number, blocks) in told {
            self.tell_flush(host, number, &blocks);
        }
    }

    /// The guest is told that a flush is done.
    fn tell_flush(&mut self, host: usize, number: u64, covered: &Blocks) {
        let own = flush::covers(covered, &self.hosts[host].image.durable, "the primary");
        self.judge(Invariant::Flush, own);
        flush::promise(&mut self.checks.promised, covered);
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        if self.setup.flush == FlushMode::Both && side.copy.marks.rules.is_paired() {
            let peer = side.machine.record().peer.clone();
            let peer = self.hosts.iter().position(|it| Some(&it.me) == peer.as_ref());
            let durable = peer.map(|peer| self.hosts[peer].image.durable);
            // One that has lost its power is judged when something starts from its image.
            if let Some(durable) = durable {
                let verdict = flush::covers(covered, &durable, "the secondary");
                self.judge(Invariant::Flush, verdict);
            }
        }
        // The driver's answer to its guest, as of any other request.
        self.tell_after(0, host, ToProcess::WriteDone(number, true));
    }

    /// The primary takes the marks of what is durable on both images and was not written for a while.
    pub(super) fn settle_image(&mut self, host: usize) {
        let now_ms = self.now_ms();
        self.tell_after(SETTLE_US, host, ToProcess::Settle);
        let own_marks = self.hosts[host].image.marks;
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let marks = &mut side.copy.marks;
        let is_marked = |block: u64| own_marks & 1 << block != 0;
        let Some(settled) = marks.rules.settle(now_ms, MARK_AGE_MS, is_marked) else {
            return;
        };
        marks.rules.forget(&settled.extents);
        let request = settled.request;
        let tells = marks.settled.replace(request) != Some(request);
        let session = side.copy.session.filter(|_| tells);
        self.hosts[host].image.unmark(&settled.extents);
        if let Some(session) = session {
            let mark = DiskMark { disk: 0, request };
            self.transmit(session, PRIMARY, Frame::Message(Message::Settled(mark)));
        }
    }

    /// So does the secondary, when it is told.
    pub(super) fn settle_replica(&mut self, host: usize, request: u64) {
        let now_ms = self.now_ms();
        if let Some(side) = self.hosts[host].secondary() {
            let cleared = side.image.marks.settle(request, now_ms, MARK_AGE_MS);
            self.hosts[host].image.unmark(&cleared);
        }
    }

    /// A flush is given to the secondary's disk, in the order of the commits: one of the guest,
    /// or one of its own.
    pub(super) fn flush_replica(&mut self, host: usize, number: Option<u64>) {
        let most_us = REPLICA_FLUSH_US[self.rng.random_range(0..REPLICA_FLUSH_US.len())];
        let due_us = self.now_us + self.some_us(most_us);
        let flush = self.hosts[host].image.begin_flush();
        let Some(side) = self.hosts[host].secondary() else {
            return;
        };
        side.image.flushed_us = side.image.flushed_us.max(due_us);
        let (at_us, generation) = (side.image.flushed_us, side.image.generation);
        let mut carried = side.image.marks.begin_flush();
        carried.request = number.or(carried.request);
        let what = ToProcess::ReplicaFlushed {
            generation,
            carried,
            flush,
        };
        self.tell_at(at_us, host, what);
    }

    /// The secondary's disk has carried a flush out.
    pub(super) fn replica_flushed(&mut self, host: usize, generation: u64, carried: Carried, flush: &Flush) {
        let durable = self.end_replica_flush(host, generation, carried, flush);
        if let Some(request) = durable.and_then(|durable| durable.request) {
            let mark = DiskMark { disk: 0, request };
            self.tell_after(0, host, ToProcess::Secondary(SecondaryEvent::DiskFlushed(mark)));
        }
    }

    /// Returns what is durable, if it is.
    pub(super) fn end_replica_flush(
        &mut self,
        host: usize,
        generation: u64,
        carried: Carried,
        flush: &Flush,
    ) -> Option<Carried> {
        let side = self.hosts[host].secondary()?;
        if side.image.generation != generation || side.image.has_failed {
            return None;
        }
        if !self.end_flush(host, flush, Fault::ForgetFailedReplicaFlush) {
            self.replica_flush_fails(host);
            return None;
        }
        let side = self.hosts[host].secondary()?;
        Some(side.image.marks.flushed(carried))
    }

    pub(super) fn replica_flush_fails(&mut self, host: usize) {
        if !fault(Fault::ForgetFailedReplicaFlush) {
            self.replica_fails(host);
        }
    }

    /// A primary whose I/O is finished for good has all of it durably, and its record says so: the VM ends,
    /// or it goes on elsewhere.
    pub(super) fn stop_image(&mut self, host: usize) {
        if !self.setup.replicated {
            return;
        }
        self.checks.last_blocks = self.hosts[host].image.blocks;
        if self.flush_source(host, Fault::ForgetFailedDrain) {
            self.hosts[host].image.change(ImageHistory::stop);
        }
        if let Process::Primary(side) = &mut self.hosts[host].process {
            side.copy.ruled.forget();
        }
    }

    /// A secondary learns that the VM was stopped.
    pub(super) fn stop_replica(&mut self, host: usize) {
        let side = self.hosts[host].secondary();
        let is_stop = side.is_some_and(|side| side.is_stop && !side.image.has_failed);
        if is_stop && self.flush_target(host) {
            self.hosts[host].image.change(ImageHistory::stop);
        }
    }
}
