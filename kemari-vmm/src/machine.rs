//! The machine: what can be paused, captured, restored and resumed.
//!
//! # The contract of a pause
//!
//! - *Pause* stops every vCPU; the guest takes no part in it. Devices go on: a paused machine still finishes requests
//!   and takes packets in, it only produces no new output.
//! - *Freeze* (only while paused) stops the devices at a known point: each request is wholly finished (data, used
//!   ring, interrupt, dirty marks) or on its list. A capture happens under one freeze: first the devices, then KVM's
//!   state (devices can raise interrupts), last the dirty pages (saving state may write memory).
//! - *Resume* lets the vCPUs run again. A thaw without a resume is what lockstep does until the ack.
//! - Output is *held* or leaves at once, machine-wide. Held output is captured, then released by its epoch's ack.
//! - *Load* puts a captured state into a machine that has not run; *wake* then works through all rings as if kicked.
//!
//! The machine knows nothing of secondaries.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLockWriteGuard};

use kvm_bindings::CpuId;
use kvm_ioctls::VmFd;

use crate::arch::layout::{self, abi};
use crate::arch::preflight::PreflightError;
use crate::arch::vcpu::{
    RareRegisters, VCPU_IDENTITY_VERSION, VCPU_STATE_VERSION, VcpuAccess, VcpuIdentity, VcpuState,
};
use crate::arch::vm::{VM_STATE_VERSION, VmState};
use crate::arch::{self, ArchError};
use crate::boot::{BootError, Kernel, MmioDevice};
use crate::devices::Device;
use crate::devices::hub::Hub;
use crate::devices::ports::{KEYBOARD_PORT, Ports, PowerEvent};
use crate::devices::serial::Console;
use crate::dirty::DirtyLog;
use crate::disk::{Disk, DiskConfig, DiskError};
use crate::event::EventChannel;
use crate::memory::{self, Memory, MemoryError};
use crate::state::{StateBlob, StateError, StateKind};
use crate::vcpu::{Bus, ParkedHook, Vcpus};
use crate::virtio::block::Block;
use crate::virtio::device::VirtioDevice;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::tap::TapError;

/// Most vCPUs of a machine.
pub const VCPUS_MAX: u8 = 8;

/// A network card of a machine.
#[derive(Clone, Debug)]
pub struct NetSpec {
    /// Names the card and its event channels, as `net0`.
    pub id: String,
    /// Its address.
    pub mac: [u8; 6],
    /// Whether checksums and segmentation are offered to the guest.
    pub offload: bool,
}

/// A disk of a machine.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// Names the disk and its event channels, as `blk0`.
    pub id: String,
    /// What the guest reads as its serial number, up to 20 bytes.
    pub serial: String,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// What a machine is made of. Both hosts' machines are made from equal ones.
#[derive(Clone)]
pub struct MachineSpec {
    /// Guest memory in bytes, in whole MiB.
    pub memory_bytes: u64,
    /// Number of vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// What is booted, now and after each reset.
    pub kernel: Arc<Kernel>,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<DiskSpec>,
    /// Network cards, in the order in which the guest sees them.
    pub nets: Vec<NetSpec>,
    /// Whether there is an entropy device.
    pub rng: bool,
}

/// Something that whoever runs the machine must act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest's power-off leaves now: the machine is to be stopped.
    PowerOff,
    /// The guest wants a reset: call [`Machine::reset`] when no capture waits for its ack.
    Reset,
    /// KVM failed: this host cannot go on with the machine.
    Failed(String),
}

/// Takes the machine's events; it must not block, and it may be called by any thread.
pub type EventSink = Arc<dyn Fn(MachineEvent) + Send + Sync>;

/// A machine that cannot be built, or an operation on it that failed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM is missing, or lacks what Kemari needs.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// KVM refused.
    #[error("KVM cannot {step}")]
    Kvm {
        /// What was tried.
        step: &'static str,
        /// Why not.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Registers or interrupt controllers could not be read or written.
    #[error("the processor state cannot be saved or restored")]
    Arch(#[from] ArchError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel could not be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A saved state does not fit.
    #[error(transparent)]
    State(#[from] StateError),
    /// A thread could not be started.
    #[error("cannot start the machine's threads")]
    Thread(#[source] std::io::Error),
    /// More than there can be.
    #[error("{0}")]
    Limit(String),
    /// There is no such device.
    #[error("the machine has no device {0}")]
    NoDevice(String),
    /// An image.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
}

fn kvm(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { step, source }
}

/// A machine.
pub struct Machine {
    vcpus: Vcpus,
    parts: Arc<Parts>,
    vm: Arc<VmFd>,
    dirty: DirtyLog,
    spec: MachineSpec,
    /// The processor that the guest sees.
    cpuid: CpuId,
    /// What of each vCPU never changes.
    identities: Vec<VcpuIdentity>,
    /// How KVM's state is read and written, with buffers kept between captures.
    access: Mutex<Access>,
}

struct Access {
    vcpus: Vec<VcpuAccess>,
    vm: VmState,
}

/// The machine's devices, as the vCPU threads reach them.
struct Parts {
    hub: Arc<Hub>,
    console: Arc<Console>,
    ports: Arc<Ports>,
    virtio: Vec<Arc<dyn Device>>,
    nets: Vec<(String, Arc<VirtioDevice<Net>>)>,
    disks: Vec<(String, Arc<VirtioDevice<Block>>)>,
    mmio: Vec<MmioDevice>,
    events: EventSink,
}

impl Machine {
    /// Builds a machine, paused, with its disks and network cards unplugged and no kernel in its memory.
    pub fn new(
        spec: MachineSpec,
        console: Box<dyn Write + Send>,
        events: EventSink,
    ) -> Result<Self, MachineError> {
        if !(1..=VCPUS_MAX).contains(&spec.vcpus) {
            return Err(MachineError::Limit(format!(
                "a machine has 1 to {VCPUS_MAX} vCPUs, not {}",
                spec.vcpus
            )));
        }
        let kvm_fd = arch::preflight::open()?;
        let vm = Arc::new(kvm_fd.create_vm().map_err(kvm("create a virtual machine"))?);
        arch::create_irqchip(&vm)?;
        let memory = memory::create(spec.memory_bytes)?;
        let dirty = DirtyLog::new(vm.clone(), memory.clone()).map_err(kvm("take the guest's memory"))?;
        let cpuid = arch::cpuid::template(&kvm_fd, spec.vcpus)?;
        // A bare guest is known to leave XCR0 and the debug registers alone.
        let rare = if spec.kernel.is_bare() {
            RareRegisters::Keep
        } else {
            RareRegisters::Read
        };
        let (mut fds, mut identities, mut accesses) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..spec.vcpus {
            let mut fd = vm.create_vcpu(u64::from(index)).map_err(kvm("create a vCPU"))?;
            arch::setup_vcpu(&fd, &cpuid, index, None)?;
            identities.push(VcpuIdentity::save(&fd)?);
            accesses.push(VcpuAccess::new(&kvm_fd, &vm, &mut fd, rare)?);
            fds.push(fd);
        }
        let access = Mutex::new(Access {
            vcpus: accesses,
            vm: VmState::save(&vm)?,
        });
        let hub = Hub::new(memory, vm.clone());
        let parts = Parts::new(&spec, hub, console, events)?;
        let mut vcpus = Vcpus::new(fds);
        let bus: Arc<dyn Bus> = parts.clone();
        vcpus.start(&Arc::downgrade(&bus)).map_err(MachineError::Thread)?;
        Ok(Self {
            vcpus,
            parts,
            vm,
            dirty,
            spec,
            cpuid,
            identities,
            access,
        })
    }

    /// Loads the kernel and points the boot vCPU at it. The machine must be paused.
    pub fn boot(&self) -> Result<(), MachineError> {
        let tsc_khz = self.identities[0].tsc_khz;
        let Parts { hub, mmio, .. } = &*self.parts;
        let entry = self
            .spec
            .kernel
            .load(&hub.memory, mmio, self.spec.vcpus, tsc_khz)?;
        for index in 0..self.spec.vcpus {
            let fd = self.vcpus.fd(usize::from(index));
            arch::setup_vcpu(&fd, &self.cpuid, index, Some(&entry))?;
            self.vcpus.forget_access(usize::from(index));
        }
        Ok(())
    }

    /// Resets the machine and boots it again. It must be paused, and nothing captured may wait for its ack: the reset
    /// waits until everything captured or released is finished.
    pub fn reset(&self) -> Result<(), MachineError> {
        for device in self.parts.devices() {
            device.reset();
        }
        let _freeze = self.parts.hub.freeze();
        arch::reset_vm(&self.vm)?;
        self.boot()
    }

    /// Opens a disk's image. See [`Block::attach`].
    pub fn attach_disk(&self, id: &str, config: &DiskConfig) -> Result<(), MachineError> {
        let disk = Disk::open(config)?;
        Ok(find(&self.parts.disks, id)?.with_backend(|block| block.attach(disk))?)
    }

    /// Plugs a network card into a TAP.
    pub fn attach_net(&self, id: &str, tap: &str) -> Result<(), MachineError> {
        Ok(find(&self.parts.nets, id)?.with_backend(|net| net.attach(tap))?)
    }

    /// Pulls out all network cables: nothing leaves from here on.
    pub fn detach_nets(&self) {
        for (_, net) in &self.parts.nets {
            net.with_backend(Net::detach);
        }
    }

    /// Announces each card's address: `frames` makes the Ethernet frames for an address.
    pub fn announce(&self, frames: impl Fn([u8; 6]) -> Vec<Vec<u8>>) {
        for (_, net) in &self.parts.nets {
            let _working = self.parts.hub.working();
            net.with_backend(|net| {
                let frames = frames(net.mac());
                net.announce(&frames);
            });
        }
    }

    /// Gives the guest what was typed at its console; returns how many bytes it took.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        self.parts.console.type_in(bytes)
    }

    /// All event channels.
    pub fn channels(&self) -> Vec<Arc<EventChannel>> {
        self.parts
            .devices()
            .flat_map(|device| device.channels())
            .collect()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.parts.hub.memory
    }

    /// The dirty log.
    pub fn dirty(&self) -> &DirtyLog {
        &self.dirty
    }

    /// Whether some output waits for a capture.
    pub fn output_held(&self) -> bool {
        self.parts.devices().any(|device| device.output_held())
    }

    /// Whether the guest's power-off waits for its release.
    pub fn power_off_wanted(&self) -> bool {
        self.parts.ports.power_off_wanted()
    }

    /// Whether output waits for releases at all.
    pub fn holds_output(&self) -> bool {
        self.parts.hub.output_is_held()
    }

    /// Stops every vCPU and waits for it.
    pub fn pause(&self) {
        self.vcpus.pause();
    }

    /// Stops every vCPU without waiting for it: one may itself wait for a release.
    pub fn begin_pause(&self) {
        self.vcpus.begin_pause();
    }

    /// A function by which any thread, a tap too, can ask for a pause without waiting for it.
    pub fn pause_requester(&self) -> impl Fn() + Send + Sync + 'static {
        let pauser = self.vcpus.pauser();
        move || pauser.request_pause()
    }

    /// See [`Vcpus::on_parked`].
    pub fn on_parked(&self, hook: Option<ParkedHook>) {
        self.vcpus.on_parked(hook);
    }

    /// Lets the vCPUs run.
    pub fn resume(&self) {
        self.vcpus.resume();
    }

    /// Stops the devices of a paused machine at a known point, for a capture.
    pub fn freeze(&self) -> Frozen<'_> {
        assert!(self.vcpus.are_parked(), "only a paused machine can be frozen");
        Frozen {
            machine: self,
            _guard: self.parts.hub.freeze(),
        }
    }

    /// The capture of `epoch` is acked: its output leaves.
    pub fn release(&self, epoch: u64) {
        self.parts.devices().for_each(|device| device.release(epoch));
    }

    /// The capture of `epoch` will never be acked: `pages` are dirty again, its output waits for a capture again.
    pub fn give_back(&self, epoch: u64, pages: &[u64]) {
        self.dirty.give_back(pages);
        self.parts.devices().for_each(|device| device.uncapture(epoch));
    }

    /// Pauses, finishes everything captured or released, and makes it durable. What is held stays held.
    pub fn drain(&self) {
        self.pause();
        self.parts.devices().for_each(|device| device.drain());
    }

    /// This machine never runs again, and nothing more leaves it: another one goes on.
    pub fn halt(&self) {
        self.vcpus.pauser().request_pause();
        self.detach_nets();
        self.parts.devices().for_each(|device| device.abandon());
        self.pause();
    }

    /// The right to act alone: all output leaves, and none waits from now on.
    pub fn open_gate(&self) {
        self.parts.hub.hold_output(false);
        self.parts.devices().for_each(|device| device.release_all());
    }

    /// Continues from a captured state whose pages are in memory. The machine must never have run. `wall_clock_jump`:
    /// whether the guest's clocks go on from the host's time, or from where they stopped.
    ///
    /// # Errors
    /// The machine is then of no use; nothing has run.
    pub fn load(&self, states: &[StateBlob], wall_clock_jump: bool) -> Result<(), MachineError> {
        let _freeze = self.parts.hub.freeze();
        let loading = self.decode(states)?;
        for (device, blob) in &loading.devices {
            device.load(blob)?;
        }
        let elapsed_ns = if wall_clock_jump {
            loading.vm.wall_clock_elapsed_ns()
        } else {
            0
        };
        let mut access = self.access();
        for (index, (identity, state)) in loading.vcpus.iter().enumerate() {
            let fd = self.vcpus.fd(index);
            identity.restore(&fd, &self.cpuid)?;
            access.vcpus[index].restore(&fd, state, identity.tsc_ticks(elapsed_ns))?;
            self.vcpus.forget_access(index);
        }
        loading.vm.restore(&self.vm, elapsed_ns)?;
        for (index, access) in access.vcpus.iter().enumerate() {
            access.resume_clock(&self.vcpus.fd(index))?;
        }
        Ok(())
    }

    /// Checks that a captured state could be loaded, without touching anything.
    pub fn check_state(&self, states: &[StateBlob]) -> Result<(), MachineError> {
        self.decode(states).map(|_| ())
    }

    /// Tries what of a load depends on this host and on how the machine was made: whether the processor can be the
    /// guest's, and whether the devices take their state. The machine must never have run; it still must be loaded.
    ///
    /// # Errors
    /// This host cannot continue from such a state.
    pub fn try_on(&self, states: &[StateBlob]) -> Result<(), MachineError> {
        let _freeze = self.parts.hub.freeze();
        let loading = self.decode(states)?;
        for (device, blob) in &loading.devices {
            device.load(blob)?;
        }
        for (index, (identity, _)) in loading.vcpus.iter().enumerate() {
            identity.restore(&self.vcpus.fd(index), &self.cpuid)?;
        }
        Ok(())
    }

    /// After a load, before the resume: works through all rings as if kicked, and interrupts once a queue.
    pub fn wake(&self) {
        self.parts.devices().for_each(|device| device.wake());
    }

    fn access(&self) -> MutexGuard<'_, Access> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decode<'a>(&self, states: &'a [StateBlob]) -> Result<Loading<'a>, MachineError> {
        let find = |kind: StateKind, instance: u16| {
            states
                .iter()
                .find(|blob| (blob.kind, blob.instance) == (kind, instance))
                .ok_or_else(|| StateError::Mismatch(format!("{kind:?} {instance} is missing")))
        };
        let vcpus = (0..u16::from(self.spec.vcpus))
            .map(|index| {
                let identity = find(StateKind::VcpuIdentity, index)?.decode(VCPU_IDENTITY_VERSION)?;
                let state = find(StateKind::Vcpu, index)?.decode(VCPU_STATE_VERSION)?;
                Ok((identity, state))
            })
            .collect::<Result<Vec<_>, StateError>>()?;
        let vm = find(StateKind::Vm, 0)?.decode(VM_STATE_VERSION)?;
        let mut devices = Vec::new();
        for device in self.parts.devices() {
            // A device's own state says what it is.
            let own = device.save();
            devices.push((device, find(own.kind, own.instance)?));
        }
        let expected = devices.len() + 2 * vcpus.len() + 1;
        if states.len() != expected {
            let why = format!("{} parts instead of {expected}", states.len());
            return Err(StateError::Mismatch(why).into());
        }
        Ok(Loading { vcpus, vm, devices })
    }
}

/// A captured state, decoded.
struct Loading<'a> {
    vcpus: Vec<(VcpuIdentity, VcpuState)>,
    vm: VmState,
    devices: Vec<(Arc<dyn Device>, &'a StateBlob)>,
}

/// A machine whose vCPUs and devices stand still. Devices go on when it is dropped.
pub struct Frozen<'a> {
    machine: &'a Machine,
    _guard: RwLockWriteGuard<'a, ()>,
}

impl Frozen<'_> {
    /// Lets output wait from this capture on.
    pub fn hold_output(&self) {
        self.machine.parts.hub.hold_output(true);
    }

    /// All output held now belongs to the capture of `epoch`; its bytes are those of this moment.
    pub fn capture_output(&self, epoch: u64) {
        self.machine
            .parts
            .devices()
            .for_each(|device| device.capture(epoch));
    }

    /// Appends the state of every component.
    pub fn save_state(&self, states: &mut Vec<StateBlob>) -> Result<(), MachineError> {
        let machine = self.machine;
        states.extend(machine.parts.devices().map(|device| device.save()));
        let mut guard = machine.access();
        let Access { vcpus, vm } = &mut *guard;
        for (index, access) in vcpus.iter_mut().enumerate() {
            let instance = index as u16;
            let identity = &machine.identities[index];
            states.push(StateBlob::encode(
                StateKind::VcpuIdentity,
                instance,
                VCPU_IDENTITY_VERSION,
                identity,
            ));
            let fd = machine.vcpus.fd(index);
            let at_access = machine.vcpus.is_at_access(index);
            let state = if at_access {
                access.save_after_exit(&fd, machine.vcpus.count() == 1)?
            } else {
                access.save(&fd)?
            };
            states.push(StateBlob::encode(
                StateKind::Vcpu,
                instance,
                VCPU_STATE_VERSION,
                state,
            ));
        }
        vm.save_into(&machine.vm)?;
        states.push(StateBlob::encode(StateKind::Vm, 0, VM_STATE_VERSION, vm));
        Ok(())
    }

    /// Appends the page frame numbers dirtied since the last collection. Comes last: saving state may write memory.
    pub fn collect_dirty(&self, pages: &mut Vec<u64>) -> Result<(), MachineError> {
        self.machine
            .dirty
            .collect(pages)
            .map_err(kvm("read the dirty log"))
    }
}

impl Parts {
    fn new(
        spec: &MachineSpec,
        hub: Arc<Hub>,
        console: Box<dyn Write + Send>,
        events: EventSink,
    ) -> Result<Arc<Self>, MachineError> {
        let power_events = events.clone();
        let ports = Ports::new(
            hub.clone(),
            Box::new(move |event| {
                power_events(match event {
                    PowerEvent::PowerOff => MachineEvent::PowerOff,
                    PowerEvent::Reset => MachineEvent::Reset,
                });
            }),
        );
        let mut parts = Self {
            console: Console::new(hub.clone(), layout::COM1_GSI, console),
            hub: hub.clone(),
            ports,
            virtio: Vec::new(),
            nets: Vec::new(),
            disks: Vec::new(),
            mmio: Vec::new(),
            events,
        };
        for DiskSpec {
            id,
            serial,
            read_only,
        } in &spec.disks
        {
            let (instance, gsi) = parts.slot(2)?;
            let disk = VirtioDevice::new(hub.clone(), id, instance, gsi, Block::new(serial, *read_only));
            parts.virtio.push(disk.clone());
            parts.disks.push((id.clone(), disk));
        }
        for NetSpec { id, mac, offload } in &spec.nets {
            let (instance, gsi) = parts.slot(1)?;
            let net = VirtioDevice::new(hub.clone(), id, instance, gsi, Net::new(*mac, *offload));
            parts.virtio.push(net.clone());
            parts.nets.push((id.clone(), net));
        }
        if spec.rng {
            let (instance, gsi) = parts.slot(4)?;
            parts
                .virtio
                .push(VirtioDevice::new(hub, "rng0", instance, gsi, Rng));
        }
        Ok(Arc::new(parts))
    }

    /// The next free place for a virtio-mmio device: its instance number and interrupt line.
    fn slot(&mut self, device_id: u32) -> Result<(u16, u32), MachineError> {
        let index = self.mmio.len();
        if index >= layout::VIRTIO_MMIO_DEVICES_MAX {
            let max = layout::VIRTIO_MMIO_DEVICES_MAX;
            return Err(MachineError::Limit(format!(
                "a machine has at most {max} disks and network cards"
            )));
        }
        let base = layout::VIRTIO_MMIO_BASE + index as u64 * layout::VIRTIO_MMIO_BYTES;
        let gsi = layout::VIRTIO_MMIO_GSI + index as u32;
        self.mmio.push(MmioDevice { base, gsi, device_id });
        Ok((index as u16, gsi))
    }

    fn devices(&self) -> impl Iterator<Item = Arc<dyn Device>> + '_ {
        let console: Arc<dyn Device> = self.console.clone();
        let ports: Arc<dyn Device> = self.ports.clone();
        [console, ports].into_iter().chain(self.virtio.iter().cloned())
    }

    fn port_device(&self, port: u16) -> Option<(&dyn Device, u64)> {
        let com1 = layout::COM1_PORT..layout::COM1_PORT + layout::COM1_PORTS;
        match port {
            _ if com1.contains(&port) => Some((&*self.console, u64::from(port - layout::COM1_PORT))),
            abi::RESET_PORT..=abi::KICK_PORT | KEYBOARD_PORT => Some((&*self.ports, u64::from(port))),
            _ => None,
        }
    }

    fn mmio_device(&self, address: u64) -> Option<(&dyn Device, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_MMIO_BASE)?;
        let device = self
            .virtio
            .get(usize::try_from(offset / layout::VIRTIO_MMIO_BYTES).ok()?)?;
        Some((&**device, offset % layout::VIRTIO_MMIO_BYTES))
    }
}

impl Bus for Parts {
    fn port_in(&self, port: u16, data: &mut [u8]) {
        match self.port_device(port) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn port_out(&self, port: u16, data: &[u8]) {
        if let Some((device, offset)) = self.port_device(port) {
            device.write(offset, data);
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.mmio_device(address) {
            data.fill(0);
            device.read(offset, data);
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.mmio_device(address) {
            device.write(offset, data);
        }
    }

    fn shut_down(&self) {
        tracing::warn!("the guest's processor shut down (a triple fault): the machine is reset");
        self.ports.want_reset();
    }

    fn failed(&self, why: String) {
        (self.events)(MachineEvent::Failed(why));
    }
}

fn find<'a, T>(devices: &'a [(String, Arc<T>)], id: &str) -> Result<&'a Arc<T>, MachineError> {
    devices
        .iter()
        .find(|(name, _)| name == id)
        .map(|(_, device)| device)
        .ok_or_else(|| MachineError::NoDevice(id.into()))
}
