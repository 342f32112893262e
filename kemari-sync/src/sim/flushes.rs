//! Flushes of a replicated disk in the simulation, when the guest is told of them, and the marks that go when both images
//! have durably what was written.

use rand::Rng;

use crate::faults::{Fault, fault};
use crate::replica::ImageState;
use crate::secondary::SecondaryEvent;
use crate::wire::{DiskMark, Message};

use super::host::Process;
use super::invariants::replica::Blocks;
use super::invariants::{Invariant, flush};
use super::net::{Frame, PRIMARY};
use super::vm::{Output, PAGES, Phase};
use super::world::{ToProcess, World};

/// How often marks are looked at, in microseconds.
pub(super) const SETTLE_US: u64 = 5_000;
/// A block keeps its mark for so long after it was last written, in microseconds.
const MARK_AGE_US: u64 = 4_000;
/// Longest flush of a secondary, in microseconds: most are short, some are not.
const REPLICA_FLUSH_US: [u64; 4] = [2_000, 6_000, 6_000, 90_000];

/// By block: number of the last request that wrote it, and when, in microseconds.
pub(super) type LastWrites = [Option<(u64, u64)>; PAGES];

/// When a flush of a replicated disk is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushMode {
    /// When the primary's disk has it.
    Memory,
    /// When both disks have it.
    Both,
}

/// What a primary knows of its marks, and of flushes.
#[derive(Clone, Default)]
pub(super) struct PrimaryMarks {
    pub(super) last: LastWrites,
    /// Up to this request everything is durable here; on the other host.
    durable: Option<u64>,
    peer_durable: Option<u64>,
    is_paired: bool,
    /// The last request up to which the secondary was told that everything is durable on both.
    settled: Option<u64>,
    /// Flushes that are done here and wait for the other host, with what they cover.
    waiting: Vec<(u64, Blocks)>,
    /// By block: the first write that failed, of which nobody knows what it has left. Only a copy ends that.
    doubtful: [Option<u64>; PAGES],
}

impl PrimaryMarks {
    pub(super) fn begin_pair(&mut self) {
        // What the other host has flushed since the first sync may be what a flush here waits for.
        (self.is_paired, self.durable, self.settled) = (true, None, None);
    }

    /// A write has failed for good.
    pub(super) fn doubt(&mut self, page: usize, number: u64) {
        self.doubtful[page].get_or_insert(number);
    }

    fn doubtful_blocks(&self) -> u32 {
        let doubtful = self.doubtful.iter().enumerate();
        doubtful.fold(0, |blocks, (page, doubtful)| {
            blocks | u32::from(doubtful.is_some()) << page
        })
    }

    /// The first write that failed on a block which is not marked, since that failed too.
    fn first_unmarked_doubt(&self, marks: u32) -> Option<u64> {
        let doubtful = self.doubtful.iter().enumerate();
        let unmarked = doubtful.filter(|(page, _)| marks & 1 << page == 0);
        unmarked.filter_map(|(_, doubtful)| *doubtful).min()
    }

    /// Blocks that were not touched since they were copied are equal on both images.
    pub(super) fn trust_copied(&mut self, touched: u32) {
        for (page, doubtful) in self.doubtful.iter_mut().enumerate() {
            doubtful.take_if(|_| touched & 1 << page == 0);
        }
    }
}

impl World {
    /// Where a flush is done when the primary's disk has it, it waits for no sync: the disk gets it as soon as no write
    /// before it waits for one.
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
                (Output::Flush(_), Phase::Held) => {
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

    /// A flush is given to the primary's disk: it covers what has ended, and was requested before it. (One that is tried
    /// again may come after later writes.)
    pub(super) fn flush_image(&mut self, host: usize, number: u64, delay_us: u64) {
        let (mut blocks, durable) = (self.hosts[host].image.blocks, self.hosts[host].image.durable);
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
        for (page, last) in side.copy.marks.last.iter().enumerate() {
            let is_later = last.is_some_and(|(last, _)| last > number);
            if is_later || side.failed.iter().any(|failed| side.writes(*failed, page)) {
                blocks[page] = durable[page];
            }
        }
        let what = ToProcess::ImageFlushed {
            number,
            ended,
            blocks: Box::new(blocks),
        };
        self.tell_after(delay_us, host, what);
    }

    /// The primary's disk has carried a flush out.
    pub(super) fn image_flushed(&mut self, host: usize, number: u64, ended: u64, blocks: &Blocks) {
        if self.disk_fails(host) {
            return self.request_failed(host, number);
        }
        harden(&mut self.hosts[host].image.durable, blocks);
        let waits_for_both = self.setup.flush == FlushMode::Both && !fault(Fault::FlushWithoutPeer);
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let marks = &mut side.copy.marks;
        marks.durable = marks.durable.max(Some(ended));
        match waits_for_both && marks.is_paired && marks.peer_durable < Some(number) {
            true => marks.waiting.push((number, *blocks)),
            false => self.tell_flush(host, number, blocks),
        }
    }

    /// The secondary's disk has everything up to this request.
    pub(super) fn peer_flushed(&mut self, host: usize, request: u64) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let marks = &mut side.copy.marks;
        marks.peer_durable = marks.peer_durable.max(Some(request));
        let done: Vec<_> = marks
            .waiting
            .extract_if(.., |(number, _)| *number <= request)
            .collect();
        for (number, blocks) in done {
            self.tell_flush(host, number, &blocks);
        }
    }

    /// No other host is waited for any more.
    pub(super) fn end_image_pair(&mut self, host: usize) {
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        (side.copy.marks.is_paired, side.copy.marks.peer_durable) = (false, None);
        for (number, blocks) in std::mem::take(&mut side.copy.marks.waiting) {
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
        if self.setup.flush == FlushMode::Both && side.copy.marks.is_paired {
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
        let now_us = self.now_us;
        self.tell_after(SETTLE_US, host, ToProcess::Settle);
        let own_marks = self.hosts[host].image.marks;
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let marks = &mut side.copy.marks;
        let both = match fault(Fault::UnmarkEarly) {
            true => marks.durable,
            false => marks.durable.min(marks.peer_durable),
        };
        let Some(settled) = both.filter(|_| marks.is_paired) else {
            return;
        };
        // The secondary has carried out what could not be marked here: it keeps its marks from there on.
        let first_unmarked = marks.first_unmarked_doubt(own_marks);
        let settled = first_unmarked.map_or(settled, |doubtful| settled.min(doubtful - 1));
        let mut cleared = take_settled(&mut marks.last, settled, now_us) & !marks.doubtful_blocks();
        for entry in &side.vm.list {
            if let (Output::Write(reply), Phase::Released) = (&entry.output, entry.phase) {
                cleared &= !(1 << reply.page);
            }
        }
        let tells = side.copy.marks.settled.replace(settled) != Some(settled);
        let session = side.copy.session.filter(|_| tells);
        self.hosts[host].image.marks &= !cleared;
        if let Some(session) = session {
            let mark = DiskMark {
                disk: 0,
                request: settled,
            };
            self.transmit(session, PRIMARY, Frame::Message(Message::Settled(mark)));
        }
    }

    /// So does the secondary, when it is told.
    pub(super) fn settle_replica(&mut self, host: usize, request: u64) {
        let now_us = self.now_us;
        if let Some(side) = self.hosts[host].secondary() {
            let cleared = take_settled(&mut side.image.last, request, now_us);
            self.hosts[host].image.marks &= !cleared;
        }
    }

    /// A flush is given to the secondary's disk, in the order of the commits: one of the guest, or one of its own.
    pub(super) fn flush_replica(&mut self, host: usize, number: u64) {
        let most_us = REPLICA_FLUSH_US[self.rng.random_range(0..REPLICA_FLUSH_US.len())];
        let due_us = self.now_us + self.some_us(most_us);
        let blocks = self.hosts[host].image.blocks;
        let Some(side) = self.hosts[host].secondary() else {
            return;
        };
        side.image.flushed_us = side.image.flushed_us.max(due_us);
        let (at_us, generation) = (side.image.flushed_us, side.image.generation);
        let what = ToProcess::ReplicaFlushed {
            generation,
            number,
            blocks: Box::new(blocks),
        };
        self.tell_at(at_us, host, what);
        if fault(Fault::FlushedEarly) {
            self.tell_after(0, host, flushed(number));
        }
    }

    /// The secondary's disk has carried a flush out.
    pub(super) fn replica_flushed(&mut self, host: usize, generation: u64, number: u64, blocks: &Blocks) {
        let is_current = self.hosts[host]
            .secondary()
            .is_some_and(|side| side.image.generation == generation && !side.image.has_failed);
        if is_current && self.disk_fails(host) {
            self.replica_fails(host);
        } else if is_current {
            harden(&mut self.hosts[host].image.durable, blocks);
            self.tell_after(0, host, flushed(number));
        }
    }

    /// A primary whose I/O is finished for good has all of it durably, and its record says so: the VM ends, or it goes
    /// on elsewhere.
    pub(super) fn stop_image(&mut self, host: usize) {
        if !self.setup.replicated {
            return;
        }
        self.checks.last_blocks = self.hosts[host].image.blocks;
        if !self.disk_fails(host) {
            let image = &mut self.hosts[host].image;
            image.flush();
            if let Some(word) = &mut image.word {
                word.state = ImageState::Stopped;
            }
        }
        if let Process::Primary(side) = &mut self.hosts[host].process {
            side.copy.ruled = 0;
        }
    }

    /// A secondary learns that the VM was stopped.
    pub(super) fn stop_replica(&mut self, host: usize) {
        let side = self.hosts[host].secondary();
        let is_stop = side.is_some_and(|side| side.is_stop && !side.image.has_failed);
        if !is_stop || self.disk_fails(host) {
            return;
        }
        let image = &mut self.hosts[host].image;
        if let Some(word) = &mut image.word {
            word.state = ImageState::Stopped;
            image.flush();
        }
    }
}

fn flushed(request: u64) -> ToProcess {
    ToProcess::Secondary(SecondaryEvent::DiskFlushed(DiskMark { disk: 0, request }))
}

/// The blocks that were last written up to `settled`, and not for a while; they are forgotten.
fn take_settled(last: &mut LastWrites, settled: u64, now_us: u64) -> u32 {
    let mut cleared = 0;
    for (block, entry) in last.iter_mut().enumerate() {
        let is_old = |(number, at_us): &mut (u64, u64)| *number <= settled && now_us >= *at_us + MARK_AGE_US;
        if entry.take_if(is_old).is_some() {
            cleared |= 1 << block;
        }
    }
    cleared
}

/// What is durable from now on: of one life of the VM, so later writes have higher numbers.
fn harden(durable: &mut Blocks, blocks: &Blocks) {
    for (durable, block) in durable.iter_mut().zip(blocks) {
        if block.0 > durable.0 {
            *durable = *block;
        }
    }
}
