//! The toy machine: pages with dirty marks, a service that answers requests, a list of output requests.
//!
//! Every request it serves gets the next number and is folded into a hash: two executions that differ
//! anywhere differ in it from then on.
//!
//! Three faults are asked here alone: what devices do with their request lists is `kemari-vmm`'s, which does
//! not know the mechanism, so these have no code in common.

use std::convert::Infallible;

use crate::faults::{Fault, fault};

use super::client::{CLIENTS, Reply, Request};
use super::invariants::replica::Blocks;

/// Pages of memory.
pub(super) const PAGES: usize = 16;

/// What leaves the machine.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Output {
    Packet(Reply),
    /// A write of the reply's number and hash to the block named by its page;
    /// the reply leaves when it is done.
    Write(Reply),
    /// A flush of the disk, which follows a write that is to be durable; the reply leaves when it is done.
    /// And of each block the last write that the guest knew to be done.
    Flush(Reply, Box<Blocks>),
}

impl Output {
    /// Whether the disk carries it out.
    pub(super) fn is_disk(&self) -> bool {
        !matches!(self, Self::Packet(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Held,
    Captured(u64),
    Released,
}

/// One entry of the request list: device state.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) output: Output,
    pub(super) phase: Phase,
    /// Place in the disk's queue, of a write.
    at: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Vm {
    /// Counts cold boots.
    pub(super) life: u64,
    pub(super) seq: u64,
    pub(super) hash: u64,
    pub(super) pages: [u64; PAGES],
    /// Dirty marks: not part of the state.
    dirty: u32,
    pub(super) list: Vec<Entry>,
    pub(super) powered_off: bool,
    /// Per block: number and hash of the last write that was ever requested.
    pub(super) blocks: Blocks,
    /// Per block: the last write that the disk is known to have done.
    pub(super) done: Blocks,
    /// Blocks whose last write has failed: until the next one they have that, or what they had before.
    pub(super) doubtful: u32,
    /// Blocks of its disk, as far as the guest knows; 0: it has none.
    pub(super) capacity: usize,
    /// Some writes are flushed before they are answered.
    flushes: bool,
    next_number: u64,
    ticks: u64,
    /// Per client: the last request, and its reply once there is one.
    served: [(u64, Option<Reply>); CLIENTS],
    /// Requests that wait for the disk, or for a reset.
    backlog: Vec<Request>,
    /// Requests that the back end has parsed from the disk's queue, and those that it has finished.
    parsed: u64,
    finished: u64,
    /// The guest resets its queues, and waits until what it has requested is finished.
    resetting: bool,
    /// A rule taken out: what comes after the reset counts as captured with what came before.
    stale_epoch: Option<u64>,
}

/// One in so many writes of a client is flushed.
const FLUSHED_WRITES: u64 = 3;
/// Every so many ticks the guest resets its queues.
const RESET_TICKS: u64 = 32;

impl Vm {
    pub(super) fn boot(life: u64, capacity: usize, flushes: bool) -> Self {
        Self {
            life,
            seq: 0,
            hash: life,
            pages: [0; PAGES],
            dirty: 0,
            list: Vec::new(),
            powered_off: false,
            blocks: [(0, 0); PAGES],
            done: [(0, 0); PAGES],
            doubtful: 0,
            capacity,
            flushes,
            next_number: 1,
            ticks: 0,
            served: [(0, None); CLIENTS],
            backlog: Vec::new(),
            parsed: 0,
            finished: 0,
            resetting: false,
            stale_epoch: None,
        }
    }

    /// Appends the pages that are dirty, which then are not any more.
    pub(super) fn tell_dirty(&mut self, pages: &mut Vec<u64>) -> Result<(), Infallible> {
        let dirty = std::mem::take(&mut self.dirty);
        pages.extend((0..PAGES as u64).filter(|page| dirty & 1 << page != 0));
        Ok(())
    }

    fn write_page(&mut self, page: usize, value: u64) {
        self.pages[page] = value;
        self.dirty |= 1 << page;
    }

    /// Background work: memory gets dirty without output.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        self.write_page(PAGES - 1 - (self.ticks % 4) as usize, self.ticks);
        self.resetting |= self.ticks % RESET_TICKS == RESET_TICKS / 4;
        self.try_reset();
    }

    /// A reset completes when what was captured or released is finished. What was never captured is dropped;
    /// the guest submits such writes anew, and clients ask again.
    fn try_reset(&mut self) {
        let captured = self.list.iter().find_map(|entry| match entry.phase {
            Phase::Captured(epoch) => Some(epoch),
            _ => None,
        });
        let is_busy = self.list.iter().any(|entry| entry.phase != Phase::Held);
        if !self.resetting || (is_busy && !fault(Fault::AckAcrossReset)) {
            return;
        }
        (self.resetting, self.stale_epoch) = (false, captured);
        (self.parsed, self.finished) = (0, 0);
        for entry in std::mem::take(&mut self.list) {
            if entry.output.is_disk() {
                self.push(entry.output);
            }
        }
        for request in std::mem::take(&mut self.backlog) {
            self.serve(request);
        }
    }

    /// The memory and state of a capture are read.
    pub(super) fn capture(&mut self, epoch: u64) {
        self.stale_epoch = None;
        for entry in &mut self.list {
            if entry.phase != Phase::Released {
                entry.phase = Phase::Captured(epoch);
            }
        }
    }

    /// Another back end is attached to the queues: what was unfinished is issued again.
    pub(super) fn reissue(&mut self) {
        if fault(Fault::ForgetRequest) {
            self.list.retain(|entry| entry.phase != Phase::Released);
        }
        if fault(Fault::ReadRingAgain) {
            // As many as were finished, from the beginning of the ring: but those were later ones.
            let finished = self.finished;
            self.list
                .retain(|entry| matches!(entry.output, Output::Packet(_)) || entry.at >= finished);
        }
        self.list.iter_mut().for_each(|entry| entry.phase = Phase::Held);
    }

    pub(super) fn serve(&mut self, request: Request) {
        let (last, reply) = self.served[request.client];
        if request.id < last || (request.id == last && reply.is_none()) || self.powered_off {
            return;
        }
        if let Some(reply) = reply.filter(|_| request.id == last) {
            return self.push(Output::Packet(reply));
        }
        if self
            .list
            .iter()
            .any(|entry| matches!(entry.output, Output::Write(reply) if reply.page == request.page))
            || self.resetting
        {
            if !self.backlog.contains(&request) {
                self.backlog.push(request);
            }
            return;
        }
        self.seq += 1;
        if let Some(value) = request.put {
            self.write_page(request.page, value);
        }
        let value = self.pages[request.page];
        self.hash = mix(mix(mix(self.hash, request.id), request.client as u64), value);
        self.served[request.client] = (request.id, None);
        let Request {
            client,
            id,
            page,
            put,
        } = request;
        let reply = Reply {
            client,
            id,
            page,
            is_put: put.is_some(),
            failed: false,
            value,
            seq: self.seq,
            hash: self.hash,
            life: self.life,
        };
        if put.is_some() && page < self.capacity {
            self.push(Output::Write(reply));
        } else {
            // A read: it is finished at once, past the writes that are held.
            (self.parsed, self.finished) = (self.parsed + 1, self.finished + 1);
            self.reply(reply);
        }
    }

    fn reply(&mut self, reply: Reply) {
        self.served[reply.client] = (reply.id, Some(reply));
        self.push(Output::Packet(reply));
    }

    /// The service answers that the disk could not do it: another execution, in which it could,
    /// is not this one.
    fn refuse(&mut self, reply: Reply) {
        self.seq += 1;
        self.hash = mix(self.hash, self.seq);
        self.reply(Reply {
            failed: true,
            seq: self.seq,
            hash: self.hash,
            ..reply
        });
    }

    fn push(&mut self, output: Output) {
        let at = self.parsed;
        if let Output::Write(reply) = &output {
            self.blocks[reply.page] = (reply.seq, reply.hash);
            self.doubtful &= !(1 << reply.page);
        }
        self.parsed += u64::from(output.is_disk());
        let phase = self.stale_epoch.map_or(Phase::Held, Phase::Captured);
        self.list.push(Entry {
            number: self.next_number,
            output,
            phase,
            at,
        });
        self.next_number += 1;
    }

    /// A write or a flush has ended: its reply may leave, and requests that waited for the block are served.
    pub(super) fn complete(&mut self, number: u64, done: bool) {
        let Some(at) = self.list.iter().position(|entry| entry.number == number) else {
            return;
        };
        let output = self.list.remove(at).output;
        self.finished += u64::from(output.is_disk());
        if let Output::Write(reply) = &output {
            match done {
                true => self.done[reply.page] = (reply.seq, reply.hash),
                false => self.doubtful |= 1 << reply.page,
            }
        }
        match output {
            Output::Write(reply) | Output::Flush(reply, _) if !done => self.refuse(reply),
            Output::Write(reply) if self.flushes && reply.id.is_multiple_of(FLUSHED_WRITES) => {
                self.push(Output::Flush(reply, Box::new(self.done)));
            }
            Output::Write(reply) | Output::Flush(reply, _) => self.reply(reply),
            Output::Packet(_) => {}
        }
        self.try_reset();
        for request in std::mem::take(&mut self.backlog) {
            self.serve(request);
        }
    }

    /// Whether the guest waits until what it has requested is finished.
    pub(super) fn is_resetting(&self) -> bool {
        self.resetting
    }

    pub(super) fn has_held(&self) -> bool {
        self.list.iter().any(|entry| entry.phase == Phase::Held)
    }
}

/// The state of the machine in parts.
impl Vm {
    pub(super) fn has_same_service(&self, other: &Self) -> bool {
        self.life == other.life
            && self.seq == other.seq
            && self.hash == other.hash
            && self.powered_off == other.powered_off
            && self.blocks == other.blocks
            && self.done == other.done
            && self.doubtful == other.doubtful
            && self.capacity == other.capacity
            && self.flushes == other.flushes
            && self.served == other.served
    }

    pub(super) fn take_service(&mut self, from: &Self) {
        self.life = from.life;
        self.seq = from.seq;
        self.hash = from.hash;
        self.powered_off = from.powered_off;
        self.blocks = from.blocks;
        self.done = from.done;
        self.doubtful = from.doubtful;
        self.capacity = from.capacity;
        self.flushes = from.flushes;
        self.served = from.served;
    }

    pub(super) fn has_same_queues(&self, other: &Self) -> bool {
        self.list == other.list
            && self.next_number == other.next_number
            && self.backlog == other.backlog
            && self.parsed == other.parsed
            && self.finished == other.finished
            && self.resetting == other.resetting
            && self.stale_epoch == other.stale_epoch
    }

    pub(super) fn take_queues(&mut self, from: &Self) {
        self.list.clone_from(&from.list);
        self.next_number = from.next_number;
        self.backlog.clone_from(&from.backlog);
        self.parsed = from.parsed;
        self.finished = from.finished;
        self.resetting = from.resetting;
        self.stale_epoch = from.stale_epoch;
    }

    pub(super) fn has_same_clock(&self, other: &Self) -> bool {
        self.ticks == other.ticks
    }

    pub(super) fn take_clock(&mut self, from: &Self) {
        self.ticks = from.ticks;
    }

    /// Of all parts of the state.
    pub(super) fn digest(&self) -> u64 {
        let numbers = [
            self.life,
            self.seq,
            self.ticks,
            self.next_number,
            self.parsed,
            self.finished,
            self.list.len() as u64,
            self.backlog.len() as u64,
        ];
        numbers.into_iter().fold(self.hash, mix)
    }
}

/// Folds a number into a hash.
pub(super) fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}
