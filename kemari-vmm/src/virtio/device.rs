//! The mechanism under all virtio devices: transport, queues, request list, event channels. Here a guest's
//! kick arrives.

mod core;
mod registers;
mod turns;

pub use turns::CALLS;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::time::Duration;

use virtio_queue::{Queue, QueueT};

use self::core::Core;
use super::rate::Resumer;
use super::request::{RequestList, SavedRequest};
use super::saved::{SavedDevice, SavedQueue};
use super::transport as regs;
use super::{Backend, Completion, Completions, GuestFault, QueueRole};
use crate::devices::Device;
use crate::devices::hub::Hub;
use crate::event::{Direction, EventChannel};
use crate::release::Releasable;
use crate::state::{StateBlob, StateError, StateKind};

/// One virtio-mmio device.
pub struct VirtioDevice<B: Backend> {
    itself: Weak<Self>,
    hub: Arc<Hub>,
    instance: u16,
    gsi: u32,
    channels: Vec<Arc<EventChannel>>,
    core: Mutex<Core<B>>,
    /// How many threads wait for the lock.
    wanted: AtomicUsize,
    /// Told whenever a request finishes or is given back; a reset waits for it.
    finished: Condvar,
    /// Goes on with what a rate has left, where there is one.
    resumer: OnceLock<Resumer>,
}

/// The requests that a saved state lists, and that of the back end.
pub(crate) type SavedList<B> = (Vec<SavedRequest<<B as Backend>::Request>>, <B as Backend>::State);

impl<B: Backend> VirtioDevice<B> {
    /// A device in the state after a reset. `id` names it and its event channels, as `net0`.
    pub fn new(hub: Arc<Hub>, id: &str, instance: u16, gsi: u32, backend: B) -> Arc<Self> {
        let channels = backend
            .queues()
            .iter()
            .map(|spec| EventChannel::new(format!("{id}{}", spec.suffix)))
            .collect();
        let device = Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            hub,
            instance,
            gsi,
            channels,
            core: Mutex::new(Core::new(backend)),
            wanted: AtomicUsize::new(0),
            finished: Condvar::new(),
            resumer: OnceLock::new(),
        });
        device.lock().backend.connect(device.itself.clone());
        device
    }

    /// Calls a function with the back end, as for opening its file or TAP.
    pub fn with_backend<T>(&self, function: impl FnOnce(&mut B) -> T) -> T {
        let mut core = self.lock();
        let result = function(&mut core.backend);
        self.tell_config_change(&mut core);
        result
    }

    /// Starts what goes on with requests that the back end's rate leaves in the rings.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start_resumer(&self) -> std::io::Result<()> {
        if self.resumer.get().is_none() {
            let resumer = Resumer::start(self.itself.clone())?;
            // There is one for the life of the device.
            let _ = self.resumer.set(resumer);
        }
        Ok(())
    }

    /// The requests that a saved state of this device lists, in order, and what it says of the back end.
    pub(crate) fn saved_requests(&self, blob: &StateBlob) -> Result<SavedList<B>, StateError> {
        let saved: SavedDevice<B::Request, B::State> = blob.decode()?;
        Ok((saved.requests, saved.backend))
    }

    /// For how long the oldest released request has been unfinished, if there is one and it waits for no
    /// operator. While somebody works on the device nothing is said.
    pub fn oldest_unfinished(&self) -> Option<Duration> {
        let core = self.core.try_lock().ok()?;
        if core.backend.waits_for_operator() {
            return None;
        }
        core.requests.oldest_released().map(|since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Core<B>> {
        match self.core.try_lock() {
            Ok(core) => core,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.wanted.fetch_add(1, Ordering::SeqCst);
                let core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
                self.wanted.fetch_sub(1, Ordering::SeqCst);
                core
            }
        }
    }

    /// The guest kicked a queue.
    fn notified(&self, index: usize) {
        let Some(channel) = self.channels.get(index) else {
            return;
        };
        let core = self.work(self.lock(), index);
        let held = core.requests.has_held();
        drop(core);
        channel.notify(Direction::Out, held);
    }

    /// Interrupts after used buffers; breaks the device down after a fault of the guest.
    fn settle(&self, core: &mut Core<B>, index: usize, result: Result<bool, GuestFault>) {
        match result.and_then(|used| {
            Ok(used
                && core.queues[index]
                    .needs_notification(&self.hub.memory)
                    .map_err(ring_fault)?)
        }) {
            Ok(true) => self.interrupt(core, index),
            Ok(false) => {}
            Err(fault) => self.break_down(core, &fault),
        }
        self.tell_config_change(core);
    }

    fn interrupt(&self, core: &mut Core<B>, index: usize) {
        core.transport.interrupt_status |= regs::INTERRUPT_USED;
        self.hub.pulse(self.gsi);
        self.channels[index].notify(Direction::In, core.requests.has_held());
    }

    fn tell_config_change(&self, core: &mut Core<B>) {
        if core.backend.take_config_change() {
            core.transport.config_generation = core.transport.config_generation.wrapping_add(1);
            if core.transport.driver_ok() {
                core.transport.interrupt_status |= regs::INTERRUPT_CONFIG;
                self.hub.pulse(self.gsi);
            }
        }
    }

    fn break_down(&self, core: &mut Core<B>, fault: &GuestFault) {
        tracing::warn!(
            device = self.channels.first().map_or("", |channel| channel.name()),
            "the guest's driver broke the rules, the device stops until it is reset: {fault}"
        );
        core.transport.break_down();
        core.requests.drop_held(None);
        core.transport.interrupt_status |= regs::INTERRUPT_CONFIG;
        self.hub.pulse(self.gsi);
    }

    /// Waits until nothing of this queue, or of any, that was captured or released is unfinished, and drops
    /// what no capture has: also what a capture that fails meanwhile gives back. Nothing more is taken in
    /// meanwhile, so that another vCPU's kicks cannot make it wait for ever.
    fn finish_started(&self, queue: Option<u16>) -> MutexGuard<'_, Core<B>> {
        let mut core = self.lock();
        core.close(queue, true);
        core.backend.winding_up(true);
        loop {
            core.requests.drop_held(queue);
            if !core.requests.has_started(queue) {
                core.close(queue, false);
                if !core.is_closing() {
                    core.backend.winding_up(false);
                }
                return core;
            }
            core = self.finished.wait(core).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn retire_queue(&self) {
        let Ok(selected) = u16::try_from(self.lock().transport.queue_sel) else {
            return;
        };
        let mut core = self.finish_started(Some(selected));
        if let Some(queue) = core.queues.get_mut(usize::from(selected)) {
            queue.reset();
        }
        self.refill_and_tell(core);
    }

    fn reset_device(&self) {
        self.finish_started(None).reset();
    }
}

impl<B: Backend> Completions for VirtioDevice<B> {
    fn complete(&self, completions: Vec<(u64, Completion)>) {
        let _working = self.hub.working();
        let mut core = self.lock();
        let mut used = vec![false; core.queues.len()];
        for (id, completion) in completions {
            let Some(request) = core.requests.finish(id) else {
                continue;
            };
            let finished = core
                .backend
                .finish(&request.body, completion, &self.hub.memory)
                .and_then(|written| core.put_used(&request, written, &self.hub));
            match finished {
                Ok(()) => used[usize::from(request.queue)] = true,
                Err(fault) => self.break_down(&mut core, &fault),
            }
        }
        for (index, used) in used.into_iter().enumerate() {
            self.settle(&mut core, index, Ok(used));
        }
        self.finished.notify_all();
        self.refill_and_tell(core);
    }

    fn input_ready(&self) {
        let _working = self.hub.working();
        let mut core = self.lock();
        for index in 0..core.queues.len() {
            if core.backend.queues()[index].role == QueueRole::Supply {
                core = self.work(core, index);
            }
        }
    }

    fn resume(&self) {
        self.go_on();
    }
}

impl<B: Backend> Device for VirtioDevice<B> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= regs::CONFIG {
            let config = self.lock().backend.config();
            let start = (offset - regs::CONFIG) as usize;
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = config.get(start + index).copied().unwrap_or(0);
            }
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // No device here has configuration fields that a driver may write.
        if let (true, Ok(word)) = (offset < regs::CONFIG, <[u8; 4]>::try_from(data)) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    fn channels(&self) -> Vec<Arc<EventChannel>> {
        self.channels.clone()
    }

    fn output_held(&self) -> bool {
        self.lock().requests.has_held()
    }

    fn capture(&self, epoch: u64) -> u64 {
        let mut core = self.lock();
        let Core {
            requests, backend, ..
        } = &mut *core;
        match requests.capture(epoch, |body| backend.copy_aside(body, &self.hub.memory)) {
            Ok(captured) => captured,
            Err(fault) => {
                self.break_down(&mut core, &fault);
                0
            }
        }
    }

    fn uncapture(&self, epoch: u64) {
        self.lock().requests.uncapture(epoch);
        // A reset of the guest may wait for what is now held again: it may drop it.
        self.finished.notify_all();
    }

    fn drain(&self) {
        let mut core = self.lock();
        // What is held stays: the machine may yet go on here.
        while core.requests.has_started(None) {
            core = self.finished.wait(core).unwrap_or_else(PoisonError::into_inner);
        }
        core.backend.flush();
    }

    fn abandon(&self) {
        let mut core = self.lock();
        core.requests.clear();
        core.waiting.clear();
        // A vCPU may still run for a moment: what it asks for now is nobody's.
        core.close(None, true);
        drop(core);
        self.finished.notify_all();
    }

    /// Carries out all requests that are let go, then interrupts once a queue.
    fn let_go(&self, which: Releasable) {
        let mut core = self.lock();
        if !core.requests.has_unreleased() {
            return;
        }
        let mut used = vec![false; core.queues.len()];
        let mut from = 0;
        core.backend.batch_begins();
        while let Some(started) = core.release_next(which, from) {
            from = started.id + 1;
            let queue = usize::from(started.queue);
            match core.submit(started, &self.hub) {
                Ok(done) => used[queue] |= done,
                Err(fault) => self.break_down(&mut core, &fault),
            }
        }
        core.backend.batch_ends();
        for (index, used) in used.into_iter().enumerate() {
            self.settle(&mut core, index, Ok(used));
        }
        self.finished.notify_all();
        // Whoever releases looks himself what is held then.
        drop(self.refill(core));
    }

    fn reset(&self) {
        self.reset_device();
    }

    fn wake(&self) {
        let mut core = self.lock();
        for index in 0..core.queues.len() {
            core = self.work(core, index);
            if core.transport.driver_ok() && core.queues[index].ready() {
                self.interrupt(&mut core, index);
            }
        }
        if core.requests.has_held() {
            drop(core);
            self.channels[0].found_output();
        }
    }

    fn save(&self) -> StateBlob {
        let core = self.lock();
        let saved = SavedDevice {
            transport: core.transport.clone(),
            queues: core
                .queues
                .iter()
                .map(|queue| SavedQueue::from(queue.state()))
                .collect(),
            requests: core.requests.save(),
            next_request: core.requests.next_id(),
            backend: core.backend.save(),
        };
        StateBlob::encode(self.instance, &saved)
    }

    fn is_broken(&self) -> bool {
        self.lock().transport.needs_reset()
    }

    fn identity(&self) -> (StateKind, u16) {
        (StateKind::Virtio, self.instance)
    }

    fn load(&self, blob: &StateBlob) -> Result<(), StateError> {
        let saved: SavedDevice<B::Request, B::State> = blob.decode()?;
        let mut core = self.lock();
        let unfit = |why: String| StateError::Mismatch(format!("{}: {why}", self.channels[0].name()));
        let maxima: Vec<u16> = core.queues.iter().map(|queue| queue.max_size()).collect();
        if saved.queues.len() != maxima.len() {
            return Err(unfit(format!(
                "{} queues instead of {}",
                saved.queues.len(),
                maxima.len()
            )));
        }
        let mut queues = Vec::with_capacity(maxima.len());
        for (queue, max_size) in saved.queues.iter().zip(maxima) {
            let queue = Queue::try_from(queue.with_max_size(max_size)).map_err(|e| unfit(e.to_string()))?;
            if queue.ready() && !queue.is_valid(&self.hub.memory) {
                return Err(unfit("a virtqueue lies outside the guest's memory".into()));
            }
            queues.push(queue);
        }
        if saved
            .requests
            .iter()
            .any(|request| usize::from(request.queue()) >= queues.len())
        {
            return Err(unfit("a request of a queue that does not exist".into()));
        }
        let requests = RequestList::load(saved.requests, saved.next_request, |body| core.backend.cost(body))
            .map_err(|fault| unfit(fault.0))?;
        core.backend.load(saved.backend).map_err(unfit)?;
        for request in requests.iter() {
            core.backend
                .check(&request.body, &self.hub.memory)
                .map_err(|fault| unfit(fault.0))?;
        }
        if saved.transport.driver_ok() {
            core.backend.activate(saved.transport.driver_features);
        }
        core.transport = saved.transport;
        core.queues = queues;
        core.requests = requests;
        Ok(())
    }
}

fn ring_fault(error: virtio_queue::Error) -> GuestFault {
    GuestFault(format!("a virtqueue is not usable: {error}"))
}
