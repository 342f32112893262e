//! Firmware below 4 GiB: memory that a guest reads and executes, and whose writes go nowhere. It is no part
//! of the guest's memory that is captured: both hosts have the same.

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{MmapRegion, VolatileMemory};

use super::MachineError;
use super::error::kvm;
use crate::arch::layout;

/// The firmware of one machine. It lives longer than the machine's vCPUs run.
pub(super) struct Rom(#[expect(dead_code, reason = "KVM reads it")] MmapRegion<()>);

impl Rom {
    /// Gives a VM firmware of whole pages, in a slot of KVM's that memory does not use.
    pub(super) fn new(vm: &VmFd, slot: u32, bytes: &[u8]) -> Result<Self, MachineError> {
        let limit =
            |what| MachineError::Limit(format!("no memory for {} bytes of firmware: {what}", bytes.len()));
        let region = MmapRegion::<()>::new(bytes.len()).map_err(|error| limit(error.to_string()))?;
        let whole = region.get_slice(0, bytes.len());
        whole.map_err(|error| limit(error.to_string()))?.copy_from(bytes);
        let slot = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::HIGH_MEMORY_START - bytes.len() as u64,
            memory_size: bytes.len() as u64,
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping lives as long as `region`, which the machine drops after its vCPUs have
        // stopped; no other slot lies there.
        unsafe { vm.set_user_memory_region(slot) }.map_err(kvm("take the firmware as read-only memory"))?;
        Ok(Self(region))
    }
}
