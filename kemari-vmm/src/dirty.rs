//! Which pages have changed: KVM's log of the guest's writes OR the bitmap of the VMM's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{Memory, PAGE_BYTES};

/// The dirty log of one machine. Reading clears it: whoever reads pages off the log owes them to the secondary, and
/// gives them back with [`DirtyLog::give_back`] if they do not arrive.
pub struct DirtyLog {
    vm: Arc<VmFd>,
    memory: Memory,
    tracking: AtomicBool,
}

impl DirtyLog {
    /// Gives the machine its memory, without tracking.
    pub fn new(vm: Arc<VmFd>, memory: Memory) -> Result<Self, kvm_ioctls::Error> {
        let log = Self {
            vm,
            memory,
            tracking: AtomicBool::new(false),
        };
        log.set_slots(0)?;
        Ok(log)
    }

    /// Starts to track, with nothing dirty.
    pub fn start(&self) -> Result<(), kvm_ioctls::Error> {
        if !self.tracking.swap(true, Ordering::SeqCst) {
            self.set_slots(KVM_MEM_LOG_DIRTY_PAGES)?;
        }
        self.collect(&mut Vec::new())
    }

    /// Stops tracking: the guest's writes cost nothing any more.
    pub fn stop(&self) -> Result<(), kvm_ioctls::Error> {
        if self.tracking.swap(false, Ordering::SeqCst) {
            self.set_slots(0)?;
        }
        Ok(())
    }

    /// Appends the page frame numbers that became dirty since the last call, in order within each region, and
    /// forgets them.
    pub fn collect(&self, pages: &mut Vec<u64>) -> Result<(), kvm_ioctls::Error> {
        for (slot, region) in self.memory.iter().enumerate() {
            let first = region.start_addr().0 / PAGE_BYTES as u64;
            let mut words = self.vm.get_dirty_log(slot as u32, region.len() as usize)?;
            let own = (**region).bitmap().get_and_reset();
            for (word, own) in words.iter_mut().zip(own) {
                *word |= own;
            }
            for (index, mut word) in words.into_iter().enumerate() {
                while word != 0 {
                    pages.push(first + index as u64 * 64 + u64::from(word.trailing_zeros()));
                    word &= word - 1;
                }
            }
        }
        Ok(())
    }

    /// Marks pages dirty again, as a sync that failed must.
    pub fn give_back(&self, pages: &[u64]) {
        for region in self.memory.iter() {
            let first = region.start_addr().0 / PAGE_BYTES as u64;
            let count = region.len() / PAGE_BYTES as u64;
            for &page in pages
                .iter()
                .filter(|&&page| (first..first + count).contains(&page))
            {
                (**region).bitmap().set_bit((page - first) as usize);
            }
        }
    }

    fn set_slots(&self, flags: u32) -> Result<(), kvm_ioctls::Error> {
        for (slot, region) in self.memory.iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping lives as long as `self.memory`, which lives at least as long as the machine that
            // this log belongs to; the regions do not overlap.
            unsafe { self.vm.set_user_memory_region(slot)? };
        }
        Ok(())
    }
}
