//! The machine: what can be paused, captured, restored and resumed.
//!
//! # The contract of a pause
//!
//! - *Pause* stops every vCPU; the guest takes no part in it. Devices go on: a paused machine still finishes
//!   requests and takes packets in, it only produces no new output.
//! - *Freeze* (only while paused) stops the devices at a known point: each request is wholly finished (data,
//!   used ring, interrupt, dirty marks) or on its list. A capture happens under one freeze: first the
//!   devices, then KVM's state (devices can raise interrupts), last the dirty pages (saving state may write
//!   memory).
//! - *Resume* lets the vCPUs run again. A thaw without a resume is what lockstep does until the ack.
//! - Output is *held* or leaves at once, machine-wide. Held output is captured,
//!   then released by its epoch's ack.
//! - *Load* puts a captured state into a machine that has not run; *wake* then works through all rings as if
//!   kicked.
//!
//! The machine knows nothing of secondaries.

mod disks;
mod error;
mod frozen;
mod load;
mod parts;
mod rom;
mod signs;
mod spec;

pub use disks::DiskOperation;
pub use error::MachineError;
pub use frozen::Frozen;
pub use signs::{VcpuDue, VcpuWatch};
pub use spec::{DiskSpec, MachineEvent, MachineSpec, NetSpec};
pub(crate) use spec::{EventSink, VCPUS_MAX};

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_bindings::CpuId;
use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryBackend;

use crate::arch;
use crate::arch::vcpu::{RareRegisters, VcpuAccess, VcpuIdentity};
use crate::arch::vm::VmState;
use crate::devices::hub::Hub;
use crate::dirty::DirtyLog;
use crate::event::EventChannel;
use crate::memory::{self, Memory};
use crate::vcpu::{Bus, ParkedHook, Vcpus};
use crate::virtio::net::Net;
use crate::virtio::tap::TapDevice;

use error::kvm;
use parts::{Parts, find};
use rom::Rom;

/// A machine.
pub struct Machine {
    vcpus: Vcpus,
    _rom: Option<Rom>,
    parts: Arc<Parts>,
    vm: Arc<VmFd>,
    dirty: Arc<DirtyLog>,
    spec: MachineSpec,
    /// The processor that the guest sees.
    cpuid: CpuId,
    /// What of each vCPU never changes.
    identities: Vec<VcpuIdentity>,
    /// How KVM's state is read and written, with buffers kept between captures.
    access: Mutex<KvmAccess>,
}

/// What reads and writes KVM's states.
struct KvmAccess {
    vcpus: Vec<VcpuAccess>,
    vm: VmState,
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
        let vm = Arc::new(arch::create_vm(&kvm_fd)?);
        arch::create_irqchip(&vm)?;
        let memory = memory::create(spec.memory_bytes)?;
        let dirty = DirtyLog::new(vm.clone(), memory.clone(), spec.dirty_source)
            .map(Arc::new)
            .map_err(kvm("take the guest's memory"))?;
        let rom = spec.kernel.rom();
        let rom = rom
            .map(|bytes| Rom::new(&vm, memory.num_regions() as u32, bytes))
            .transpose()?;
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
            dirty.add_vcpu(&fd).map_err(kvm("give a vCPU its dirty ring"))?;
            arch::setup_vcpu(&fd, &cpuid, index, None)?;
            identities.push(VcpuIdentity::save(&fd)?);
            accesses.push(VcpuAccess::new(&kvm_fd, &vm, &mut fd, rare)?);
            fds.push(fd);
        }
        let access = Mutex::new(KvmAccess {
            vcpus: accesses,
            vm: VmState::save(&vm)?,
        });
        let hub = Hub::new(memory, vm.clone());
        let parts = Parts::new(&spec, hub, console, events, dirty.clone())?;
        let mut vcpus = Vcpus::new(fds);
        let bus: Arc<dyn Bus> = parts.clone();
        vcpus.start(&Arc::downgrade(&bus)).map_err(MachineError::Thread)?;
        Ok(Self {
            vcpus,
            _rom: rom,
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

    /// Resets the machine and boots it again. It must be paused, and nothing captured may wait for its ack:
    /// the reset waits until everything captured or released is finished.
    pub fn reset(&self) -> Result<(), MachineError> {
        for device in self.parts.devices() {
            device.reset();
        }
        let _freeze = self.parts.hub.freeze();
        arch::reset_vm(&self.vm)?;
        self.boot()
    }

    /// Plugs a network card into a TAP; also while the machine runs, instead of one that was deleted.
    ///
    /// # Errors
    /// If there is no such card, or the TAP cannot be watched.
    pub fn attach_net(&self, id: &str, tap: TapDevice) -> Result<(), MachineError> {
        let _working = self.parts.hub.working();
        find(&self.parts.nets, id)?
            .with_backend(|net| net.attach(tap))
            .map_err(MachineError::Thread)
    }

    /// Whether a network card is plugged in.
    pub fn has_cable(&self, id: &str) -> Result<bool, MachineError> {
        Ok(find(&self.parts.nets, id)?.with_backend(|net| net.is_attached()))
    }

    /// The network cards whose TAPs were deleted under them: what they send is lost, and nothing comes in.
    pub fn cut_nets(&self) -> Vec<&str> {
        let cut = self
            .parts
            .nets
            .iter()
            .filter(|(_, net)| net.with_backend(|net| net.is_cut()));
        cut.map(|(id, _)| id.as_str()).collect()
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

    /// The disk whose oldest released request has been unfinished for longest, and for how long.
    pub fn oldest_disk_io(&self) -> Option<(&str, Duration)> {
        let disks = self.parts.disks.iter();
        disks
            .filter_map(|(id, disk)| Some((id.as_str(), disk.oldest_unfinished()?)))
            .max_by_key(|(_, age)| *age)
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

    /// Stops every vCPU, and waits for so long at most until each has stopped; returns whether that is so.
    /// One that resets a device stops only when what was asked of that is finished.
    pub fn pause_within(&self, limit: Duration) -> bool {
        self.vcpus.pause_within(limit)
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

    /// The capture of `epoch` will never be acked: its output waits for a capture again.
    pub fn give_back(&self, epoch: u64) {
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

    fn access(&self) -> MutexGuard<'_, KvmAccess> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
