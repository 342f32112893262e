//! What of a device is under its lock: how requests are taken out of the rings, and put back finished.

use std::collections::VecDeque;
use std::time::Instant;

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::super::Chain;
use super::super::request::{ListedRequest, RequestList};
use super::super::transport::{self as regs, Transport};
use super::super::{Backend, GuestFault, Nature, QueueRole, Submission};
use super::ring_fault;
use crate::devices::hub::Hub;
use crate::release::{Releasable, Stage};

/// Most requests that are taken in one turn under the device's lock: a guest whose other vCPUs refill the
/// ring meanwhile keeps nobody else from the device. A kick without such help needs less than one turn.
const REQUESTS_AT_ONCE: usize = 2 * super::super::QUEUE_ENTRIES_MAX as usize;

pub(super) struct Core<B: Backend> {
    pub(super) transport: Transport,
    pub(super) queues: Vec<Queue>,
    pub(super) requests: RequestList<B::Request>,
    pub(super) backend: B,
    /// Queues with chains that the budget had no room for, in the order of their turns. While there are any,
    /// something is on the list, and whatever leaves it makes room.
    pub(super) waiting: VecDeque<usize>,
    /// A thread of its own has their turns.
    pub(super) is_refilled_apart: bool,
    /// The queue that goes on first when the rate lets something go on.
    pub(super) resumed_first: usize,
    /// By queue: how many resets wait for what it has under way. Meanwhile nothing more is taken out of it.
    pub(super) closing: Vec<u32>,
}

/// How a turn at a queue has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing is left that could be taken.
    Nothing,
    /// More may be there: another turn.
    More,
    /// What is left waits for room in the budget. `served`: something was taken before.
    Waits { served: bool },
    /// What is left waits for its time, which does not come before this.
    Paced(Instant),
}

/// A request on its way to the back end.
pub(super) struct Started<B: Backend> {
    pub(super) id: u64,
    pub(super) queue: u16,
    body: B::Request,
    data: Option<Vec<u8>>,
}

impl<B: Backend> Started<B> {
    fn from(request: &mut ListedRequest<B::Request>) -> Self {
        Self {
            id: request.id,
            queue: request.queue,
            body: request.body.clone(),
            data: request.data.take(),
        }
    }
}

impl<B: Backend> Core<B> {
    pub(super) fn new(backend: B) -> Self {
        let queues = fresh_queues(&backend);
        Self {
            transport: Transport::default(),
            closing: vec![0; queues.len()],
            queues,
            requests: RequestList::default(),
            backend,
            waiting: VecDeque::new(),
            is_refilled_apart: false,
            resumed_first: 0,
        }
    }

    pub(super) fn offered_features(&self) -> u64 {
        regs::TRANSPORT_FEATURES | self.backend.features()
    }

    /// Whether anything may be taken out of this queue now.
    pub(super) fn takes_from(&self, index: usize) -> bool {
        self.transport.driver_ok() && self.queues[index].ready() && self.closing[index] == 0
    }

    /// A reset of this queue, or of all, begins to wait, or has waited.
    pub(super) fn close(&mut self, queue: Option<u16>, begins: bool) {
        for (index, resets) in self.closing.iter_mut().enumerate() {
            if queue.is_none_or(|queue| usize::from(queue) == index) {
                *resets = if begins { *resets + 1 } else { *resets - 1 };
            }
        }
    }

    /// Whether a reset waits.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.iter().any(|resets| *resets > 0)
    }

    /// As after the driver's reset.
    pub(super) fn reset(&mut self) {
        self.transport = Transport::default();
        self.queues = fresh_queues(&self.backend);
        self.waiting.clear();
        self.backend.reset();
    }

    /// This queue has its turn when there is room again, after those that wait already.
    pub(super) fn wait_for_room(&mut self, index: usize) {
        if !self.waiting.contains(&index) {
            self.waiting.push_back(index);
        }
    }

    /// One turn at a queue. Returns whether buffers were used, and what is left.
    pub(super) fn take(&mut self, index: usize, hub: &Hub) -> (Result<bool, GuestFault>, Left) {
        match self.backend.queues()[index].role {
            QueueRole::Requests => {
                self.backend.batch_begins();
                let mut left = Left::Nothing;
                let result = self.take_requests(index, hub, &mut left);
                self.backend.batch_ends();
                (result, left)
            }
            QueueRole::Supply => match self.backend.input(&mut self.queues[index], &hub.memory) {
                Ok(input) => match (input.paced, input.more) {
                    (Some(until), _) => (Ok(input.used), Left::Paced(until)),
                    (None, true) => (Ok(input.used), Left::More),
                    (None, false) => (Ok(input.used), Left::Nothing),
                },
                Err(fault) => (Err(fault), Left::Nothing),
            },
        }
    }

    /// Parses what is available, once, in ring order, as far as the budget has room for it. Returns whether
    /// something was finished at once.
    fn take_requests(&mut self, index: usize, hub: &Hub, left: &mut Left) -> Result<bool, GuestFault> {
        let (mut used, mut taken) = (false, 0);
        loop {
            while let Some(chain) = self.queues[index].iter(&hub.memory).map_err(ring_fault)?.next() {
                if taken == REQUESTS_AT_ONCE {
                    self.put_back(index);
                    *left = Left::More;
                    return Ok(used);
                }
                let chain = Chain::new(chain, self.queues[index].size());
                let head = chain.head_index();
                let (body, nature) = self.backend.parse(index, chain, &hub.memory)?;
                let cost = self.backend.cost(&body);
                if !self.requests.has_room_for(cost) {
                    self.put_back(index);
                    *left = Left::Waits { served: taken > 0 };
                    return Ok(used);
                }
                if let Err(until) = self.backend.admit(&body) {
                    self.put_back(index);
                    *left = Left::Paced(until);
                    return Ok(used);
                }
                taken += 1;
                // Output does not overtake output: also not while a gate is being opened, device by device.
                let hold = match nature {
                    Nature::Output => hub.output_is_held() || self.requests.has_unreleased(),
                    Nature::Barrier => self.requests.has_unreleased(),
                    Nature::Input => false,
                };
                let queue = index as u16;
                let id = self
                    .requests
                    .push((queue, head), Stage::of_new(hold), body.clone(), cost)?;
                if !hold {
                    let data = None;
                    used |= self.submit(
                        Started {
                            id,
                            queue,
                            body,
                            data,
                        },
                        hub,
                    )?;
                }
            }
            // Publishes the wish to be notified, with a full barrier, and looks again: nothing is overlooked.
            if !self.queues[index]
                .enable_notification(&hub.memory)
                .map_err(ring_fault)?
            {
                return Ok(used);
            }
        }
    }

    /// The chain that was last taken out of the ring is in it again.
    fn put_back(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        queue.set_next_avail(queue.next_avail().wrapping_sub(1));
    }

    /// The next request from `from` on that is let go, now released.
    pub(super) fn release_next(&mut self, which: Releasable, from: u64) -> Option<Started<B>> {
        self.requests.release_next(which, from).map(Started::from)
    }

    /// Hands a released request to the back end. Returns whether it is finished already.
    pub(super) fn submit(&mut self, started: Started<B>, hub: &Hub) -> Result<bool, GuestFault> {
        match self
            .backend
            .submit(started.id, &started.body, started.data, &hub.memory)
        {
            Ok(Submission::Done(written)) => self.finish(started.id, written, hub).map(|()| true),
            Ok(Submission::Pending) => Ok(false),
            Err(fault) => {
                self.requests.finish(started.id);
                Err(fault)
            }
        }
    }

    /// Takes a request off the list and puts it into the used ring: both or neither are in a capture.
    fn finish(&mut self, id: u64, written: u32, hub: &Hub) -> Result<(), GuestFault> {
        match self.requests.finish(id) {
            Some(request) => self.put_used(&request, written, hub),
            None => Ok(()),
        }
    }

    /// Puts a request that was just taken off the list into the used ring.
    pub(super) fn put_used(
        &mut self,
        request: &ListedRequest<B::Request>,
        written: u32,
        hub: &Hub,
    ) -> Result<(), GuestFault> {
        let queue = &mut self.queues[usize::from(request.queue)];
        queue
            .add_used(&hub.memory, request.head, written)
            .map_err(ring_fault)
    }
}

fn fresh_queues<B: Backend>(backend: &B) -> Vec<Queue> {
    backend
        .queues()
        .iter()
        .map(|spec| Queue::new(spec.entries_max).expect("queue sizes are powers of two"))
        .collect()
}
