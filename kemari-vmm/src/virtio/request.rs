//! The request list: per device, in order, every request that the back end has parsed and not finished.
//!
//! The list is device state. A request is parsed once, in ring order, and from then on only the list is
//! worked on, never the ring again: a later read may finish before an earlier held write, and the guest may
//! then reuse ring slots and indirect tables. A takeover re-issues exactly what is on the list.

use std::collections::VecDeque;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::GuestFault;
use super::budget::{Budget, Cost, QUEUE_ENTRIES_MAX};
use crate::release::{Releasable, Stage};

/// Highest number of a next request that is loaded: beyond what any device comes to, and so far from the end
/// of all numbers that none comes there.
const NEXT_ID_MAX: u64 = u64::MAX / 2;

/// One request on the list. `B` is what the device's driver asked for.
#[derive(Clone, Debug)]
pub(crate) struct ListedRequest<B> {
    /// Number of the request in this device's life, rising.
    pub id: u64,
    /// Index of its virtqueue.
    pub queue: u16,
    /// Head of its descriptor chain, which names it in the used ring.
    pub head: u16,
    /// How far it has come.
    pub stage: Stage,
    /// What is asked for.
    pub body: B,
    /// The output's bytes as they were at the capture. None where it is carried out as soon as it is parsed.
    pub data: Option<Vec<u8>>,
    /// What it takes of the device's budget.
    cost: Cost,
    /// Since when it may be carried out.
    released_at: Option<Instant>,
}

/// A request in saved state. All of them are re-issued by whoever continues from that state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SavedRequest<B> {
    id: u64,
    queue: u16,
    head: u16,
    body: B,
}

impl<B> SavedRequest<B> {
    /// Number of the request in its device's life: it rises along the list, and from machine to machine.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// What is asked for.
    pub(crate) fn body(&self) -> &B {
        &self.body
    }

    /// Index of its virtqueue.
    pub(crate) fn queue(&self) -> u16 {
        self.queue
    }
}

/// Which chains of a queue are on the list, by their heads.
#[derive(Clone, Copy, Debug, Default)]
struct Heads([u64; QUEUE_ENTRIES_MAX as usize / 64]);

impl Heads {
    /// Whether the head exists and was not there.
    fn insert(&mut self, head: u16) -> bool {
        let Some(word) = self.0.get_mut(usize::from(head) / 64) else {
            return false;
        };
        let bit = 1 << (head % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn remove(&mut self, head: u16) {
        self.0[usize::from(head) / 64] &= !(1 << (head % 64));
    }
}

/// The ordered list of unfinished requests of one device. Nothing that is asked of it for each request takes
/// longer the more requests there are.
#[derive(Debug)]
pub(crate) struct RequestList<B> {
    /// In the order of their numbers.
    requests: VecDeque<ListedRequest<B>>,
    next_id: u64,
    /// By queue.
    heads: Vec<Heads>,
    budget: Budget,
    /// How many are held.
    held: usize,
    /// How many are not released.
    unreleased: usize,
}

impl<B> Default for RequestList<B> {
    fn default() -> Self {
        Self {
            requests: VecDeque::new(),
            next_id: 0,
            heads: Vec::new(),
            budget: Budget::default(),
            held: 0,
            unreleased: 0,
        }
    }
}

impl<B: Clone> RequestList<B> {
    /// Whether the budget has room for one more request.
    pub(crate) fn has_room_for(&self, cost: Cost) -> bool {
        self.budget.has_room_for(cost)
    }

    /// Appends a parsed request.
    ///
    /// # Errors
    /// There is no room for it, or a guest made the same descriptor chain available twice: with that check
    /// the list is never longer than all queues together.
    pub(crate) fn push(
        &mut self,
        (queue, head): (u16, u16),
        stage: Stage,
        body: B,
        cost: Cost,
    ) -> Result<u64, GuestFault> {
        self.budget.take(cost)?;
        let place = usize::from(queue);
        if self.heads.len() <= place {
            self.heads.resize(place + 1, Heads::default());
        }
        if !self.heads[place].insert(head) {
            self.budget.give_back(cost);
            return Err(GuestFault(format!(
                "descriptor chain {head} of queue {queue} was made available again before it was used"
            )));
        }
        let id = self.next_id;
        self.next_id += 1;
        self.held += usize::from(stage == Stage::Held);
        self.unreleased += usize::from(stage != Stage::Released);
        self.requests.push_back(ListedRequest {
            id,
            queue,
            head,
            stage,
            body,
            data: None,
            cost,
            released_at: (stage == Stage::Released).then(Instant::now),
        });
        Ok(id)
    }

    /// Whether some output waits for a capture.
    pub(crate) fn has_held(&self) -> bool {
        self.held > 0
    }

    /// Whether something waits for its release, captured or not.
    pub(crate) fn has_unreleased(&self) -> bool {
        self.unreleased > 0
    }

    /// Whether something of this queue, or of any, was captured or released and is not finished:
    /// a reset waits for it.
    pub(crate) fn has_started(&self, queue: Option<u16>) -> bool {
        match queue {
            None => self.requests.len() > self.held,
            Some(queue) => self
                .requests
                .iter()
                .any(|request| request.queue == queue && request.stage != Stage::Held),
        }
    }

    /// Marks all held requests as part of the capture of `epoch`, with the bytes that `copy` takes from the
    /// guest's memory at this moment. Returns how many they are.
    pub(crate) fn capture(
        &mut self,
        epoch: u64,
        mut copy: impl FnMut(&B) -> Result<Vec<u8>, GuestFault>,
    ) -> Result<u64, GuestFault> {
        let mut captured = 0;
        for request in self.requests.iter_mut() {
            if request.stage == Stage::Held {
                request.data = Some(copy(&request.body)?);
                request.stage.capture(epoch);
                self.held -= 1;
                captured += 1;
            }
        }
        Ok(captured)
    }

    /// The capture of `epoch` will never be acked: what it contained is held again, and a later capture takes
    /// its bytes anew.
    pub(crate) fn uncapture(&mut self, epoch: u64) {
        for request in self.requests.iter_mut() {
            if request.stage.uncapture(epoch) {
                request.data = None;
                self.held += 1;
            }
        }
    }

    /// The next request, now released, whose number is `from` or higher: so a walk over all that a release
    /// lets go looks at each request once.
    pub(crate) fn release_next(&mut self, which: Releasable, from: u64) -> Option<&mut ListedRequest<B>> {
        if self.unreleased == 0 {
            return None;
        }
        let start = self.place_of(from);
        let request = self
            .requests
            .range_mut(start..)
            .find(|request| request.stage != Stage::Released && which.lets_go(request.stage))?;
        self.held -= usize::from(request.stage == Stage::Held);
        self.unreleased -= 1;
        request.stage = Stage::Released;
        request.released_at = Some(Instant::now());
        Some(request)
    }

    /// Since when the oldest request that was released is unfinished.
    pub(crate) fn oldest_released(&self) -> Option<Instant> {
        self.requests
            .iter()
            .filter_map(|request| request.released_at)
            .min()
    }

    /// Where the first request lies whose number is `id` or higher.
    fn place_of(&self, id: u64) -> usize {
        self.requests.partition_point(|request| request.id < id)
    }

    /// The request of this number.
    pub(crate) fn get(&self, id: u64) -> Option<&ListedRequest<B>> {
        self.requests
            .get(self.place_of(id))
            .filter(|request| request.id == id)
    }

    /// Takes a finished request off the list.
    pub(crate) fn finish(&mut self, id: u64) -> Option<ListedRequest<B>> {
        self.get(id)?;
        let request = self.requests.remove(self.place_of(id))?;
        self.forget(&request);
        Some(request)
    }

    /// A request is not on the list any more.
    fn forget(&mut self, request: &ListedRequest<B>) {
        self.heads[usize::from(request.queue)].remove(request.head);
        self.budget.give_back(request.cost);
        self.held -= usize::from(request.stage == Stage::Held);
        self.unreleased -= usize::from(request.stage != Stage::Released);
    }

    /// Forgets what of this queue, or of any, was never captured, as a reset does.
    pub(crate) fn drop_held(&mut self, queue: Option<u16>) {
        if !self.has_held() {
            return;
        }
        for request in std::mem::take(&mut self.requests) {
            let is_meant = queue.is_none_or(|queue| request.queue == queue);
            match is_meant && request.stage == Stage::Held {
                true => self.forget(&request),
                false => self.requests.push_back(request),
            }
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self {
            next_id: self.next_id,
            ..Self::default()
        };
    }

    /// The unfinished requests, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &ListedRequest<B>> {
        self.requests.iter()
    }

    /// The list as device state.
    pub(crate) fn save(&self) -> Vec<SavedRequest<B>> {
        self.requests
            .iter()
            .map(|request| SavedRequest {
                id: request.id,
                queue: request.queue,
                head: request.head,
                body: request.body.clone(),
            })
            .collect()
    }

    /// The number that the next request gets: device state too,
    /// for numbers rise over the device's whole life.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// The list of a captured state, whose next request gets the number `next_id`. Whoever continues from
    /// that state has consent for all of it, so each request waits only for its release. `cost`: what each
    /// takes of the budget.
    ///
    /// # Errors
    /// It is no list that a device can have had.
    pub(crate) fn load(
        saved: Vec<SavedRequest<B>>,
        next_id: u64,
        cost: impl Fn(&B) -> Cost,
    ) -> Result<Self, GuestFault> {
        if next_id > NEXT_ID_MAX {
            return Err(GuestFault(format!("{next_id} requests in a device's life")));
        }
        let mut list = Self::default();
        for SavedRequest {
            id,
            queue,
            head,
            body,
        } in saved
        {
            if id < list.next_id || id >= next_id {
                return Err(GuestFault(format!(
                    "request {id} is not in the order of its number"
                )));
            }
            list.next_id = id;
            let cost = cost(&body);
            list.push((queue, head), Stage::Captured(0), body, cost)?;
        }
        list.next_id = next_id;
        Ok(list)
    }
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
