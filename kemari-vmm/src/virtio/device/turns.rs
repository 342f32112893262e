//! Whose turn it is: queues that wait for room in the device's budget have it one after the other, and nobody
//! has it for so long that others wait for ever.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::thread;

use super::super::{Backend, QueueRole};
use super::VirtioDevice;
use super::core::{Core, Left};
use crate::confine::{self, COMMON, Calls, DEVICES, OPEN_FILES};

/// What the thread that is made for queues that wait asks of the kernel.
pub const CALLS: Calls = Calls {
    of: "refill",
    parts: &[COMMON, DEVICES, OPEN_FILES],
};

impl<B: Backend> VirtioDevice<B> {
    /// Takes what the guest made available in one queue. Requests have to wait for their turn if others wait
    /// for room; input takes no room.
    pub(super) fn work<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core<B>>,
        index: usize,
    ) -> MutexGuard<'a, Core<B>> {
        let is_input = core.backend.queues()[index].role == QueueRole::Supply;
        loop {
            if !is_input && !core.waiting.is_empty() {
                core.wait_for_room(index);
                return core;
            }
            match self.turn(&mut core, index) {
                Left::Nothing | Left::Paced(_) => return core,
                Left::More => core = self.give_way(core),
                Left::Waits { .. } => core.wait_for_room(index),
            }
        }
    }

    /// Something left the list: what waits for room in the budget has its turns, one queue after the other.
    /// If more is left than a turn takes, the guest refills that ring meanwhile, and may do so for ever: no
    /// thread of the host's waits for that but one that is made for it. Without one it goes on here, for
    /// nobody else would come.
    pub(super) fn refill<'a>(&'a self, mut core: MutexGuard<'a, Core<B>>) -> MutexGuard<'a, Core<B>> {
        while !core.is_refilled_apart
            && let Some(left) = self.next_turn(&mut core)
        {
            match left {
                Left::Nothing | Left::Paced(_) => {}
                Left::More => {
                    core.is_refilled_apart = self.refill_apart();
                    if !core.is_refilled_apart {
                        core = self.give_way(core);
                    }
                }
                // The next one begins when there is room again.
                Left::Waits { .. } => break,
            }
        }
        core
    }

    /// The same, and tells of output that came into the list by it.
    pub(super) fn refill_and_tell(&self, core: MutexGuard<'_, Core<B>>) {
        let had_held = core.requests.has_held();
        self.tell_found(self.refill(core), had_held);
    }

    /// The turn of the first queue that waits, if one does.
    fn next_turn(&self, core: &mut Core<B>) -> Option<Left> {
        let index = core.waiting.pop_front()?;
        let left = self.turn(core, index);
        match left {
            Left::Nothing | Left::Paced(_) => {}
            Left::More | Left::Waits { served: true } => core.waiting.push_back(index),
            // It keeps its turn: others, with smaller requests, would take what room there is for ever.
            Left::Waits { served: false } => core.waiting.push_front(index),
        }
        Some(left)
    }

    /// Starts a thread that has the turns of the queues that wait. Returns whether there is one.
    fn refill_apart(&self) -> bool {
        let device = self.itself.clone();
        let turns = move || {
            confine::thread(&CALLS);
            while device.upgrade().is_some_and(|device| device.turn_apart()) {}
        };
        let started = thread::Builder::new().name("refill".into()).spawn(turns);
        started.is_ok()
    }

    /// One turn on the thread made for it. Returns whether another one is to follow.
    fn turn_apart(&self) -> bool {
        let _working = self.hub.working();
        let mut core = self.lock();
        let had_held = core.requests.has_held();
        let left = self.next_turn(&mut core);
        let goes_on = matches!(left, Some(Left::Nothing | Left::More | Left::Paced(_)));
        core.is_refilled_apart = goes_on;
        self.tell_found(self.give_way(core), had_held);
        goes_on
    }

    /// Tells of output that came into the list without a kick.
    fn tell_found(&self, core: MutexGuard<'_, Core<B>>, had_held: bool) {
        let found = core.requests.has_held() && !had_held;
        drop(core);
        if found {
            self.channels[0].found_output();
        }
    }

    /// Takes what the guest made available in one queue, for so long as a turn may take, and interrupts if
    /// something was finished at once.
    fn turn(&self, core: &mut Core<B>, index: usize) -> Left {
        if !core.takes_from(index) {
            return Left::Nothing;
        }
        let (result, left) = core.take(index, &self.hub);
        self.settle(core, index, result);
        if let (Left::Paced(until), Some(resumer)) = (left, self.resumer.get()) {
            resumer.resume_at(until);
        }
        left
    }

    /// The rate may let something go on. Each time another queue is the first: it may take all that there is.
    pub(super) fn go_on(&self) {
        let _working = self.hub.working();
        let mut core = self.lock();
        let had_held = core.requests.has_held();
        let (queues, first) = (core.queues.len(), core.resumed_first);
        core.resumed_first = (first + 1) % queues;
        for index in (first..queues).chain(0..first) {
            core = self.work(core, index);
        }
        self.tell_found(core, had_held);
    }

    /// Lets everybody else have the lock who waits for it.
    fn give_way<'a>(&'a self, core: MutexGuard<'a, Core<B>>) -> MutexGuard<'a, Core<B>> {
        drop(core);
        while self.wanted.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        self.lock()
    }
}
