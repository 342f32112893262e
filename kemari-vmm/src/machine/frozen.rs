//! A machine that stands still, for a capture.

use std::sync::RwLockWriteGuard;

use super::error::kvm;
use super::{KvmAccess, Machine, MachineError};
use crate::state::StateBlob;

/// A machine whose vCPUs and devices stand still. Devices go on when it is dropped.
pub struct Frozen<'a> {
    pub(super) machine: &'a Machine,
    pub(super) _guard: RwLockWriteGuard<'a, ()>,
}

impl Frozen<'_> {
    /// Lets output wait from this capture on.
    pub fn hold_output(&self) {
        self.machine.parts.hub.hold_output(true);
    }

    /// All output held now belongs to the capture of `epoch`; its bytes are those of this moment. Returns how
    /// many outputs these are.
    pub fn capture_output(&self, epoch: u64) -> u64 {
        let devices = self.machine.parts.devices();
        devices.map(|device| device.capture(epoch)).sum()
    }

    /// Appends the state of every component.
    pub fn save_state(&self, states: &mut Vec<StateBlob>) -> Result<(), MachineError> {
        let machine = self.machine;
        states.extend(machine.parts.devices().map(|device| device.save()));
        let mut guard = machine.access();
        let KvmAccess { vcpus, vm } = &mut *guard;
        for (index, access) in vcpus.iter_mut().enumerate() {
            let instance = index as u16;
            let identity = &machine.identities[index];
            states.push(StateBlob::encode(instance, identity));
            let fd = machine.vcpus.fd(index);
            let at_access = machine.vcpus.is_at_access(index);
            let state = if at_access {
                access.save_after_exit(&fd, machine.vcpus.count() == 1)?
            } else {
                access.save(&fd)?
            };
            states.push(StateBlob::encode(instance, state));
        }
        vm.save_into(&machine.vm)?;
        states.push(StateBlob::encode(0, vm));
        Ok(())
    }

    /// Appends the page frame numbers dirtied since the last capture. Once in a capture; saving state may
    /// write memory, so after it, or see [`Self::collect_more_dirty`].
    pub fn collect_dirty(&self, pages: &mut Vec<u64>) -> Result<(), MachineError> {
        self.machine
            .dirty
            .collect_at_capture(pages)
            .map_err(kvm("read the dirty log"))
    }

    /// Appends the page frame numbers dirtied since the last collection in this capture.
    pub fn collect_more_dirty(&self, pages: &mut Vec<u64>) -> Result<(), MachineError> {
        self.machine
            .dirty
            .collect(pages)
            .map_err(kvm("read the dirty log"))
    }
}
