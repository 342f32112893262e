//! The copy of an image to a secondary, in many steps: what is marked is compared and sent, then what has
//! changed meanwhile, and marks go of what is durable on both.

use rand::Rng;

use crate::faults::Fault;
use crate::marks::Carried;
use crate::primary::{PrimaryEvent, SessionId};
use crate::record::Term;
use crate::replica::Ruled;

use super::events::ToProcess;
use super::flushes::PrimaryMarks;
use super::image::Flush;
use super::net::{Frame, PRIMARY, SECONDARY};
use super::vm::PAGES;
use super::world::World;

/// Longest flush, and longest step of a copy, in microseconds.
const FLUSH_US: u64 = 3_000;
const STEP_US: u64 = 1_200;
/// Blocks of a step.
const STEP_BLOCKS: usize = 2;
/// So many changed blocks may be left for the first sync.
const LEFT_BLOCKS: u32 = 2;
/// Rounds over what has changed, after which it must do.
const ROUNDS_MAX: u32 = 8;
/// Frames of the copy after which the secondary makes durable what came.
const STORED_FRAMES: u64 = 2;

/// A primary's copy of its image to a secondary.
#[derive(Clone, Default)]
pub(super) struct ImageCopy {
    /// What the secondary of the session has marked.
    pub(super) peer_marks: u32,
    /// Blocks that have changed since they were sent; none while there is no copy.
    pub(super) changed: Option<u32>,
    /// The session of the copy under way.
    copies_to: Option<SessionId>,
    has_begun: bool,
    /// Marked blocks that were not compared yet, and those that were,
    /// with the frame after which the secondary has them.
    todo: u32,
    complete: Vec<(u64, u64)>,
    frames: u64,
    rounds: u32,
    /// The reign that the record knows.
    pub(super) ruled: Ruled,
    /// Where the last sync was sent.
    pub(super) session: Option<SessionId>,
    pub(super) marks: PrimaryMarks,
}

impl ImageCopy {
    /// Of a side that begins in this term.
    pub(super) fn of(term: Term) -> Self {
        Self {
            ruled: Ruled::of(term),
            ..Self::default()
        }
    }

    fn begin(&mut self, session: SessionId) {
        self.changed = Some(0);
        self.copies_to = Some(session);
        (self.has_begun, self.todo, self.frames, self.rounds) = (false, 0, 0, 0);
        self.complete.clear();
        self.marks.rules.begin_copy();
    }

    /// The last of it is being sent: returned are the blocks that have changed.
    pub(super) fn finish(&mut self) -> u32 {
        self.copies_to = None;
        self.marks.rules.note_copied();
        self.changed.take().unwrap_or(0)
    }

    /// Blocks of the next step, which are to be read after this, and whether they are compared first; none:
    /// few are left.
    fn take_step(&mut self) -> Option<(u32, bool)> {
        let compares = self.todo != 0;
        let changed = self.changed.unwrap_or(0);
        let left = match compares {
            true => self.todo,
            false if changed.count_ones() <= LEFT_BLOCKS || self.rounds == ROUNDS_MAX => return None,
            false => changed,
        };
        let blocks = (0..PAGES).filter(|block| left & 1 << block != 0);
        let step = blocks.take(STEP_BLOCKS).fold(0, |step, block| step | 1 << block);
        self.frames += 1;
        match compares {
            true => {
                self.todo &= !step;
                let blocks = (0..PAGES as u64).filter(|block| step & 1 << block != 0);
                self.complete.extend(blocks.map(|block| (block, self.frames)));
            }
            false => {
                self.rounds += 1;
                self.changed = Some(changed & !step);
            }
        }
        Some((step, compares))
    }
}

impl World {
    pub(super) fn copy_image(&mut self, host: usize, session: SessionId) {
        if let Some(side) = self.hosts[host].primary() {
            side.copy.begin(session);
        }
        // No mark goes before the image here has durably what the other one is given.
        self.rewrite_lost(host, Fault::ForgetFailedFlush);
        let flush = self.hosts[host].image.begin_flush();
        let delay_us = self.some_us(FLUSH_US);
        self.tell_after(delay_us, host, ToProcess::CopyFlushed { session, flush });
        // A driver that does not wait for that loses nothing but what it has copied in vain.
        if self.rng.random_bool(0.3) {
            self.begin_steps(host, session);
        }
    }

    fn begin_steps(&mut self, host: usize, session: SessionId) {
        let marks = self.hosts[host].image.marks;
        if let Some(side) = self.hosts[host].primary()
            && !std::mem::replace(&mut side.copy.has_begun, true)
        {
            side.copy.todo = marks;
            self.tell_after(0, host, ToProcess::CopyStep(session));
        }
    }

    fn is_copying_to(&mut self, host: usize, session: SessionId) -> bool {
        let side = self.hosts[host].primary();
        side.is_some_and(|side| side.copy.copies_to == Some(session))
    }

    pub(super) fn copy_flushed(&mut self, host: usize, session: SessionId, flush: &Flush) {
        if !self.is_copying_to(host, session) {
            return;
        }
        if !self.end_flush(host, flush, Fault::ForgetFailedFlush) {
            return self.copy_fails(host, session);
        }
        if let Some(side) = self.hosts[host].primary() {
            side.copy.marks.rules.note_flushed();
        }
        self.begin_steps(host, session);
    }

    pub(super) fn copy_step(&mut self, host: usize, session: SessionId) {
        if !self.is_copying_to(host, session) {
            return;
        }
        if self.disk_fails(host) {
            return self.copy_fails(host, session);
        }
        let step = self.hosts[host].primary().and_then(|side| side.copy.take_step());
        let Some((step, compares)) = step else {
            let event = PrimaryEvent::DisksCopied {
                session,
                result: Ok(()),
            };
            return self.feed_primary(host, event);
        };
        let target = self.connections[session as usize].ends[SECONDARY].host;
        let (here, there) = (&self.hosts[host].image.blocks, &self.hosts[target].image.blocks);
        let blocks = (0..PAGES).filter(|block| step & 1 << block != 0);
        // What is equal is not sent. What has changed since it was compared is sent unseen: an older block,
        // still on its way, may be about to go over what the other image has now.
        let differing = blocks.filter(|&block| !compares || here[block] != there[block]);
        let blocks = differing.map(|block| (block, here[block])).collect();
        self.transmit(session, PRIMARY, Frame::Blocks(blocks));
        let delay_us = self.some_us(STEP_US);
        self.tell_after(delay_us, host, ToProcess::CopyStep(session));
    }

    /// An image here cannot be read, or made durable, for the copy.
    pub(super) fn copy_fails(&mut self, host: usize, session: SessionId) {
        if let Some(side) = self.hosts[host].primary() {
            (side.copy.copies_to, side.copy.changed) = (None, None);
        }
        let result = Err("the image cannot be read".to_owned());
        let event = PrimaryEvent::DisksCopied { session, result };
        self.tell_after(0, host, ToProcess::Primary(event));
    }

    /// So many frames of the copy are durable on the secondary: what is durable on both is not marked any
    /// more, unless it has changed meanwhile.
    pub(super) fn copy_stored(&mut self, host: usize, session: SessionId, frames: u64) {
        if !self.is_copying_to(host, session) {
            return;
        }
        let Some(side) = self.hosts[host].primary() else {
            return;
        };
        let is_stored = |(_, frame): &mut (u64, u64)| *frame <= frames;
        let stored = side.copy.complete.extract_if(.., is_stored);
        let stored: Vec<u64> = stored.map(|(block, _)| block).collect();
        let cleared = side.copy.marks.rules.copied(&stored);
        side.copy.marks.rules.forget(&cleared);
        self.hosts[host].image.unmark(&cleared);
    }

    /// On the secondary: blocks have come, in one more frame.
    pub(super) fn blocks_taken(&mut self, host: usize) {
        let Some(side) = self.hosts[host].secondary() else {
            return;
        };
        side.image.marks.end_frame();
        let (carried, generation) = (side.image.marks.begin_flush(), side.image.generation);
        if !carried.frames.is_multiple_of(STORED_FRAMES) {
            return;
        }
        let flush = self.hosts[host].image.begin_flush();
        let delay_us = self.some_us(FLUSH_US);
        let what = ToProcess::ReplicaStored {
            generation,
            carried,
            flush,
        };
        self.tell_after(delay_us, host, what);
    }

    pub(super) fn replica_stored(&mut self, host: usize, generation: u64, carried: Carried, flush: &Flush) {
        let durable = self.end_replica_flush(host, generation, carried, flush);
        let session = self.hosts[host].secondary().and_then(|side| side.session);
        if let (Some(durable), Some(session)) = (durable, session) {
            self.transmit(session, SECONDARY, Frame::Stored(durable.frames));
        }
    }
}
