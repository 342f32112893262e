//! A machine that goes on from a captured state.

use std::sync::Arc;

use super::{Machine, MachineError};
use crate::arch::vcpu::{VcpuIdentity, VcpuState};
use crate::arch::vm::VmState;
use crate::devices::Device;
use crate::state::{StateBlob, StateError, StateKind};

/// A captured state, decoded.
struct Loading<'a> {
    vcpus: Vec<(VcpuIdentity, VcpuState)>,
    vm: VmState,
    devices: Vec<(Arc<dyn Device>, &'a StateBlob)>,
}

impl Machine {
    /// Continues from a captured state whose pages are in memory. The machine must never have run.
    /// `wall_clock_jump`: whether the guest's clocks go on from the host's time, or from where they stopped.
    ///
    /// # Errors
    /// Nothing has run, and the machine may be loaded again.
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

    /// Looks at these parts of a state, of which `whole` was loaded or tried: a device takes its part, those
    /// of KVM are only decoded. What KVM says is found out by [`Machine::try_on`], which costs more.
    ///
    /// # Errors
    /// This host cannot continue from such a state.
    pub fn check_parts(&self, parts: &[StateBlob], whole: &[StateBlob]) -> Result<(), MachineError> {
        let _freeze = self.parts.hub.freeze();
        for part in parts {
            let (kind, instance) = (part.kind, part.instance);
            if !whole
                .iter()
                .any(|other| (other.kind, other.instance) == (kind, instance))
            {
                let why = format!("{kind:?} {instance} was not in it before");
                return Err(StateError::Mismatch(why).into());
            }
            match kind {
                StateKind::VcpuIdentity => drop(part.decode::<VcpuIdentity>()?),
                StateKind::Vcpu => drop(part.decode::<VcpuState>()?),
                StateKind::Vm => drop(part.decode::<VmState>()?),
                StateKind::Serial
                | StateKind::Power
                | StateKind::Virtio
                | StateKind::FirmwareConfiguration
                | StateKind::AcpiRegisters => {
                    let device = self
                        .parts
                        .devices()
                        .find(|device| device.identity() == (kind, instance));
                    let why =
                        || StateError::Mismatch(format!("{kind:?} {instance} is no device of this machine"));
                    // The machine has never run: taking a state does nothing else.
                    device.ok_or_else(why)?.load(part)?;
                }
            }
        }
        Ok(())
    }

    /// Tries whether [`Machine::load`] would succeed, by doing what it does, but for what moves time or
    /// writes guest memory. The machine must never have run; it still must be loaded, and may be, also if
    /// this fails.
    ///
    /// # Errors
    /// This host cannot continue from such a state.
    pub fn try_on(&self, states: &[StateBlob]) -> Result<(), MachineError> {
        let _freeze = self.parts.hub.freeze();
        let loading = self.decode(states)?;
        for (device, blob) in &loading.devices {
            device.load(blob)?;
        }
        let mut access = self.access();
        for (index, (identity, state)) in loading.vcpus.iter().enumerate() {
            let fd = self.vcpus.fd(index);
            identity.restore(&fd, &self.cpuid)?;
            access.vcpus[index].try_on(&fd, state)?;
        }
        Ok(loading.vm.restore(&self.vm, 0)?)
    }

    /// After a load, before the resume: works through all rings as if kicked, and interrupts once a queue.
    pub fn wake(&self) {
        self.parts.devices().for_each(|device| device.wake());
    }

    fn decode<'a>(&self, states: &'a [StateBlob]) -> Result<Loading<'a>, MachineError> {
        let vcpus = (0..u16::from(self.spec.vcpus))
            .map(|index| {
                let identity = StateBlob::find_state(states, index)?;
                Ok((identity, StateBlob::find_state(states, index)?))
            })
            .collect::<Result<Vec<_>, StateError>>()?;
        let vm = StateBlob::find_state(states, 0)?;
        let mut devices = Vec::new();
        for device in self.parts.devices() {
            let (kind, instance) = device.identity();
            devices.push((device, StateBlob::find(states, kind, instance)?));
        }
        let expected = devices.len() + 2 * vcpus.len() + 1;
        if states.len() != expected {
            let why = format!("{} parts instead of {expected}", states.len());
            return Err(StateError::Mismatch(why).into());
        }
        Ok(Loading { vcpus, vm, devices })
    }
}
