//! What happens, to whom, and when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::Rng;

use crate::consent::StartEvent;
use crate::marks::Carried;
use crate::primary::PrimaryEvent;
use crate::record::{ArbiterAnswer, ArbiterRequest};
use crate::secondary::SecondaryEvent;

use super::chaos::Blow;
use super::client::{Reply, Request};
use super::fences::Fence;
use super::image::Flush;
use super::invariants::replica::Blocks;
use super::world::World;

/// Events for a process; they reach it only while it lives, and wait while it is stopped.
#[derive(Clone, Debug)]
pub(super) enum ToProcess {
    Tick,
    Primary(PrimaryEvent),
    Secondary(SecondaryEvent),
    Start(StartEvent),
    Answer(u64, ArbiterAnswer),
    Dial,
    CopyRoundSent(u64),
    VmTick,
    Request(Request),
    WriteDone(u64, bool),
    RequestFailed(u64),
    RetryDisk,
    Resize,
    ReplicaFailed(u64),
    ImageFlushed {
        number: u64,
        flush: Flush,
        /// What the guest is promised with it.
        covered: Box<Blocks>,
    },
    ReplicaFlushed {
        generation: u64,
        carried: Carried,
        flush: Flush,
    },
    CopyFlushed {
        session: u64,
        flush: Flush,
    },
    CopyStep(u64),
    ReplicaStored {
        generation: u64,
        carried: Carried,
        flush: Flush,
    },
    Settle,
    /// The next part of a restore, the attempt of this number.
    Restore(u64),
    Look,
    LookIfReady,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    Process {
        host: usize,
        life: u64,
        what: ToProcess,
    },
    Pump {
        connection: usize,
        sender: usize,
        channel: usize,
    },
    Connect {
        from: usize,
        life: u64,
        to: usize,
    },
    Ask {
        host: usize,
        life: u64,
        ask: u64,
        request: ArbiterRequest,
        answered: bool,
    },
    WriteLands {
        host: usize,
        boot: u64,
        life: u64,
        number: u64,
        reply: Reply,
    },
    FenceEnds(Fence),
    Client {
        client: usize,
        alarm: u64,
    },
    Reply(Reply),
    Blow(Blow),
    Heal,
    Operator,
    CheckProgress,
    End,
}

struct Scheduled {
    at_us: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

/// What is to happen, in order.
#[derive(Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
}

impl Queue {
    fn add(&mut self, at_us: u64, event: Event) {
        self.order += 1;
        self.heap.push(Reverse(Scheduled {
            at_us,
            order: self.order,
            event,
        }));
    }

    /// What is next, and when, in microseconds.
    pub(super) fn take_next(&mut self) -> Option<(u64, Event)> {
        let Reverse(next) = self.heap.pop()?;
        Some((next.at_us, next.event))
    }
}

impl World {
    pub(super) fn at(&mut self, at_us: u64, event: Event) {
        self.queue.add(at_us.max(self.now_us), event);
    }

    pub(super) fn after(&mut self, delay_us: u64, event: Event) {
        self.at(self.now_us + delay_us, event);
    }

    pub(super) fn tell_at(&mut self, at_us: u64, host: usize, what: ToProcess) {
        let life = self.hosts[host].life;
        self.at(at_us, Event::Process { host, life, what });
    }

    /// Tells the process that now lives on a host, after so long.
    pub(super) fn tell_after(&mut self, delay_us: u64, host: usize, what: ToProcess) {
        self.tell_at(self.now_us + delay_us, host, what);
    }

    /// A delay up to `most_us`.
    pub(super) fn some_us(&mut self, most_us: u64) -> u64 {
        self.rng.random_range(1..=most_us)
    }
}
