//! The mechanism under all virtio devices: transport, queues, request list, event channels.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use super::request::{RequestList, SavedRequest, Stage};
use super::saved::{STATE_VERSION, SavedDevice, SavedQueue};
use super::transport::{self as regs, Transport};
use super::{Backend, Completion, Completions, GuestFault, Nature, QueueRole, Submission};
use crate::devices::Device;
use crate::devices::hub::Hub;
use crate::event::{Direction, EventChannel};
use crate::state::{StateBlob, StateError, StateKind};

/// One virtio-mmio device.
pub struct VirtioDevice<B: Backend> {
    hub: Arc<Hub>,
    instance: u16,
    gsi: u32,
    channels: Vec<Arc<EventChannel>>,
    core: Mutex<Core<B>>,
    /// Told whenever a request finishes or is given back; a reset waits for it.
    finished: Condvar,
}

struct Core<B: Backend> {
    transport: Transport,
    queues: Vec<Queue>,
    requests: RequestList<B::Request>,
    backend: B,
}

/// The requests that a saved state lists, and that of the back end.
pub type SavedList<B> = (Vec<SavedRequest<<B as Backend>::Request>>, <B as Backend>::State);

impl<B: Backend> VirtioDevice<B> {
    /// A device in the state after a reset. `id` names it and its event channels, as `net0`.
    pub fn new(hub: Arc<Hub>, id: &str, instance: u16, gsi: u32, backend: B) -> Arc<Self> {
        let channels = backend
            .queues()
            .iter()
            .map(|spec| EventChannel::new(format!("{id}{}", spec.suffix)))
            .collect();
        let queues = fresh_queues(&backend);
        let core = Core {
            transport: Transport::default(),
            queues,
            requests: RequestList::default(),
            backend,
        };
        let device = Arc::new(Self {
            hub,
            instance,
            gsi,
            channels,
            core: Mutex::new(core),
            finished: Condvar::new(),
        });
        let weak = Arc::downgrade(&device);
        device.lock().backend.connect(weak);
        device
    }

    /// Calls a function with the back end, as for opening its file or TAP.
    pub fn with_backend<T>(&self, function: impl FnOnce(&mut B) -> T) -> T {
        let mut core = self.lock();
        let result = function(&mut core.backend);
        self.tell_config_change(&mut core);
        result
    }

    /// The requests that a saved state of this device lists, in order, and what it says of the back end.
    pub fn saved_requests(&self, blob: &StateBlob) -> Result<SavedList<B>, StateError> {
        let saved: SavedDevice<B::Request, B::State> = blob.decode(STATE_VERSION)?;
        Ok((saved.requests, saved.backend))
    }

    /// For how long the oldest released request has been unfinished, if there is one and it waits for no operator. While somebody works on the
    /// device nothing is said.
    pub fn oldest_unfinished(&self) -> Option<Duration> {
        let core = self.core.try_lock().ok()?;
        if core.backend.waits_for_operator() {
            return None;
        }
        core.requests.oldest_released().map(|since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Core<B>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u64) -> u32 {
        let core = self.lock();
        let transport = &core.transport;
        let queue = core.queues.get(transport.queue_sel as usize);
        match offset {
            regs::MAGIC => regs::MAGIC_VALUE,
            regs::VERSION => regs::VERSION_VALUE,
            regs::DEVICE_ID => core.backend.device_id(),
            regs::VENDOR_ID => regs::VENDOR_VALUE,
            regs::DEVICE_FEATURES => {
                Transport::select_half(core.offered_features(), transport.device_features_sel)
            }
            regs::QUEUE_NUM_MAX => queue.map_or(0, |queue| u32::from(queue.max_size())),
            regs::QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready())),
            regs::INTERRUPT_STATUS => transport.interrupt_status,
            regs::STATUS => transport.status,
            regs::CONFIG_GENERATION => transport.config_generation,
            // No shared memory regions: their length and base read as all ones.
            regs::SHM_LEN_LOW..=regs::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            regs::QUEUE_NOTIFY => return self.notified(value as usize),
            regs::STATUS if value == 0 => return self.reset(),
            regs::QUEUE_READY if value == 0 => return self.retire_queue(),
            _ => {}
        }
        let mut core = self.lock();
        let offered = core.offered_features();
        let Core {
            transport,
            queues,
            backend,
            ..
        } = &mut *core;
        match offset {
            regs::DEVICE_FEATURES_SEL => transport.device_features_sel = value,
            regs::DRIVER_FEATURES_SEL => transport.driver_features_sel = value,
            regs::DRIVER_FEATURES => transport.write_driver_features(value, offered),
            regs::QUEUE_SEL => transport.queue_sel = value,
            regs::INTERRUPT_ACK => transport.interrupt_status &= !value,
            regs::STATUS => {
                let was_ok = transport.driver_ok();
                transport.write_status(value);
                if !was_ok && transport.driver_ok() {
                    backend.activate(transport.driver_features);
                }
            }
            _ => {
                let event_idx = transport.has(VIRTIO_RING_F_EVENT_IDX);
                let Some(queue) = queues.get_mut(transport.queue_sel as usize) else {
                    return;
                };
                set_up_queue(queue, offset, value, event_idx);
                // A ready queue does not move any more: this is the one place to look.
                if queue.ready() && !queue.is_valid(&self.hub.memory) {
                    self.break_down(
                        &mut core,
                        &GuestFault("a virtqueue lies outside the guest's memory".into()),
                    );
                }
            }
        }
    }

    /// The guest kicked a queue.
    fn notified(&self, index: usize) {
        let Some(channel) = self.channels.get(index) else {
            return;
        };
        let mut core = self.lock();
        self.work(&mut core, index);
        let held = core.requests.has_held();
        drop(core);
        channel.notify(Direction::Out, held);
    }

    /// Takes what the guest made available in one queue, and interrupts if something was finished at once.
    fn work(&self, core: &mut Core<B>, index: usize) {
        if !core.transport.driver_ok() || !core.queues[index].ready() {
            return;
        }
        let result = match core.backend.queues()[index].role {
            QueueRole::Requests => {
                core.backend.batch_begins();
                let result = core.take_requests(index, &self.hub);
                core.backend.batch_ends();
                result
            }
            QueueRole::Supply => core.backend.input(&mut core.queues[index], &self.hub.memory),
        };
        self.settle(core, index, result);
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
        core.requests.drop_held();
        core.transport.interrupt_status |= regs::INTERRUPT_CONFIG;
        self.hub.pulse(self.gsi);
    }

    /// Carries out all requests that `next` releases, then interrupts once a queue.
    fn start_released(&self, mut next: impl FnMut(&mut RequestList<B::Request>) -> Option<Started<B>>) {
        let mut core = self.lock();
        let mut used = vec![false; core.queues.len()];
        core.backend.batch_begins();
        while let Some(started) = next(&mut core.requests) {
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
    }

    /// Waits until nothing that was captured or released is unfinished, and drops what no capture has: also what a
    /// capture that fails meanwhile gives back.
    fn finish_started(&self) -> MutexGuard<'_, Core<B>> {
        let mut core = self.lock();
        core.backend.winding_up(true);
        loop {
            core.requests.drop_held();
            if !core.requests.has_started() {
                core.backend.winding_up(false);
                return core;
            }
            core = self.finished.wait(core).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn retire_queue(&self) {
        let mut core = self.finish_started();
        let selected = core.transport.queue_sel as usize;
        if let Some(queue) = core.queues.get_mut(selected) {
            queue.reset();
        }
    }
}

/// A request on its way to the back end.
struct Started<B: Backend> {
    id: u64,
    queue: u16,
    body: B::Request,
    data: Option<Vec<u8>>,
}

impl<B: Backend> Started<B> {
    fn from(request: &mut super::request::Request<B::Request>) -> Self {
        Self {
            id: request.id,
            queue: request.queue,
            body: request.body.clone(),
            data: request.data.take(),
        }
    }
}

impl<B: Backend> Core<B> {
    fn offered_features(&self) -> u64 {
        regs::TRANSPORT_FEATURES | self.backend.features()
    }

    /// Parses everything that is available, once, in ring order. Returns whether something was finished at once.
    fn take_requests(&mut self, index: usize, hub: &Hub) -> Result<bool, GuestFault> {
        let mut used = false;
        loop {
            while let Some(chain) = self.queues[index].iter(&hub.memory).map_err(ring_fault)?.next() {
                let head = chain.head_index();
                let (body, nature) = self.backend.parse(index, chain, &hub.memory)?;
                // Output does not overtake output: also not while a gate is being opened, device by device.
                let hold = match nature {
                    Nature::Output => hub.output_is_held() || self.requests.has_unreleased(),
                    Nature::Barrier => self.requests.has_unreleased(),
                    Nature::Input => false,
                };
                let stage = if hold { Stage::Held } else { Stage::Released };
                let id = self.requests.push(index as u16, head, stage, body.clone())?;
                if !hold {
                    used |= self.submit(
                        Started {
                            id,
                            queue: index as u16,
                            body,
                            data: None,
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

    /// Hands a released request to the back end. Returns whether it is finished already.
    fn submit(&mut self, started: Started<B>, hub: &Hub) -> Result<bool, GuestFault> {
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

    /// Puts a finished request into the used ring and takes it off the list: both or neither are in a capture.
    fn finish(&mut self, id: u64, written: u32, hub: &Hub) -> Result<(), GuestFault> {
        let Some(request) = self.requests.finish(id) else {
            return Ok(());
        };
        let queue = &mut self.queues[usize::from(request.queue)];
        queue
            .add_used(&hub.memory, request.head, written)
            .map_err(ring_fault)
    }
}

impl<B: Backend> Completions for VirtioDevice<B> {
    fn complete(&self, id: u64, completion: Completion) {
        self.complete_all(vec![(id, completion)]);
    }

    fn complete_all(&self, completions: Vec<(u64, Completion)>) {
        let _working = self.hub.working();
        let mut core = self.lock();
        let mut used = vec![false; core.queues.len()];
        for (id, completion) in completions {
            let Some(request) = core.requests.iter().find(|request| request.id == id) else {
                continue;
            };
            let (index, body) = (usize::from(request.queue), request.body.clone());
            let finished = core
                .backend
                .finish(&body, completion, &self.hub.memory)
                .and_then(|written| core.finish(id, written, &self.hub));
            core.requests.finish(id);
            match finished {
                Ok(()) => used[index] = true,
                Err(fault) => self.break_down(&mut core, &fault),
            }
        }
        for (index, used) in used.into_iter().enumerate() {
            self.settle(&mut core, index, Ok(used));
        }
        self.finished.notify_all();
    }

    fn input_ready(&self) {
        let _working = self.hub.working();
        let mut core = self.lock();
        for index in 0..core.queues.len() {
            if core.backend.queues()[index].role == QueueRole::Supply {
                self.work(&mut core, index);
            }
        }
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
        while core.requests.has_started() {
            core = self.finished.wait(core).unwrap_or_else(PoisonError::into_inner);
        }
        core.backend.flush();
    }

    fn abandon(&self) {
        self.lock().requests.clear();
        self.finished.notify_all();
    }

    fn release(&self, epoch: u64) {
        self.start_released(|requests| requests.release_next(epoch).map(Started::from));
    }

    fn release_all(&self) {
        self.start_released(|requests| requests.release_any().map(Started::from));
    }

    fn reset(&self) {
        let mut core = self.finish_started();
        core.transport = Transport::default();
        core.queues = fresh_queues(&core.backend);
        core.backend.reset();
    }

    fn wake(&self) {
        let mut core = self.lock();
        for index in 0..core.queues.len() {
            self.work(&mut core, index);
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
        StateBlob::encode(StateKind::Virtio, self.instance, STATE_VERSION, &saved)
    }

    fn identity(&self) -> (StateKind, u16) {
        (StateKind::Virtio, self.instance)
    }

    fn load(&self, blob: &StateBlob) -> Result<(), StateError> {
        let saved: SavedDevice<B::Request, B::State> = blob.decode(STATE_VERSION)?;
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
        let requests =
            RequestList::load(saved.requests, saved.next_request).map_err(|fault| unfit(fault.0))?;
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

fn fresh_queues<B: Backend>(backend: &B) -> Vec<Queue> {
    backend
        .queues()
        .iter()
        .map(|spec| Queue::new(spec.entries_max).expect("queue sizes are powers of two"))
        .collect()
}

/// The driver describes a queue: its size, its three parts, and that it is ready.
fn set_up_queue(queue: &mut Queue, offset: u64, value: u32, event_idx: bool) {
    if queue.ready() {
        return;
    }
    match offset {
        regs::QUEUE_NUM => queue.set_size(value as u16),
        regs::QUEUE_READY if value == 1 => {
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
        }
        regs::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
        regs::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
        regs::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
        regs::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
        regs::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
        regs::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
        _ => {}
    }
}

fn ring_fault(error: virtio_queue::Error) -> GuestFault {
    GuestFault(format!("a virtqueue is not usable: {error}"))
}

/// Whether a range of guest memory exists.
pub fn check_range(memory: &crate::memory::Memory, address: u64, length: u64) -> Result<(), GuestFault> {
    use vm_memory::GuestMemoryBackend;
    if length == 0 || memory.check_range(GuestAddress(address), length as usize) {
        Ok(())
    } else {
        Err(GuestFault(format!(
            "a buffer of {length} bytes at {address:#x} lies outside the guest's memory"
        )))
    }
}
