//! KVM's dirty ring of one vCPU: the pages that it has written, as a list (Documentation/virt/kvm/api.rst,
//! "KVM_CAP_DIRTY_LOG_RING"). Reading it costs what it holds; the log costs what RAM there is.
//!
//! kvm-ioctls knows neither the mapping nor the reset; they are here.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_GFN_F_MASK, KVM_DIRTY_LOG_PAGE_OFFSET,
    kvm_dirty_gfn, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::memory::PAGE_BYTES;
use crate::signals::SignalsBlocked;

/// Most entries of a ring. When about that many pages are dirty (64 MiB), the vCPU comes out of the guest to
/// have them taken out, and whoever has to bound what is dirty can look at it, however fast the guest writes.
const ENTRIES_MAX: usize = 16_384;

/// `KVM_DIRTY_GFN_F_DIRTY`: KVM has filled the entry in.
const DIRTY: u32 = 1;
/// `KVM_DIRTY_GFN_F_RESET`: it was read, and KVM may have it back.
const RESET: u32 = 2;
const _: () = assert!(DIRTY | RESET == KVM_DIRTY_GFN_F_MASK);

/// A slot that no VM has, in an address space that no x86 VM has.
const NO_SLOT: u32 = u32::MAX;

/// `KVM_RESET_DIRTY_RINGS`, `_IO(KVMIO, 0xc7)`.
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;

/// Switches a VM without vCPUs from the log to rings, if its KVM has them. Returns the entries of each ring.
pub(crate) fn enable(vm: &VmFd) -> Option<usize> {
    // Either name will do on x86; which one there is depends on the kernel's age.
    [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING]
        .into_iter()
        .find_map(|cap| {
            let bytes_max = usize::try_from(vm.check_extension_raw(cap.into())).ok()?;
            let entries = (bytes_max / size_of::<kvm_dirty_gfn>()).min(ENTRIES_MAX);
            let mut request = kvm_enable_cap {
                cap,
                ..Default::default()
            };
            request.args[0] = (entries * size_of::<kvm_dirty_gfn>()) as u64;
            (entries > 0 && vm.enable_cap(&request).is_ok()).then_some(entries)
        })
}

/// Gives KVM back all `read` entries that were read, of all rings: the guest's next write to one of these
/// pages is seen again. Returns whether it took them all.
///
/// From Linux 6.16 on KVM stops when a signal comes, does not protect the pages of up to 64 entries that it
/// has taken by then, and says only how many it took (virt/kvm/dirty_ring.c, kvm_dirty_ring_reset). A vCPU's
/// thread is signalled often, so signals wait meanwhile.
pub(crate) fn reset(vm: &VmFd, read: usize) -> Result<bool, kvm_ioctls::Error> {
    let _blocked = SignalsBlocked::new();
    // SAFETY: the request takes no argument and touches no memory of ours but the rings,
    // as it is documented to.
    let taken = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS) };
    match usize::try_from(taken) {
        Ok(taken) => Ok(taken >= read),
        Err(_) => Err(kvm_ioctls::Error::last()),
    }
}

/// The ring of one vCPU, mapped.
pub(crate) struct Ring {
    entries: NonNull<kvm_dirty_gfn>,
    count: usize,
    /// The entry that is read next.
    next: usize,
}

// SAFETY: the mapping is no thread's own, and `read` needs `&mut`.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the ring of a vCPU whose VM was given rings of so many entries.
    pub(crate) fn map(vcpu: &VcpuFd, count: usize) -> Result<Self, kvm_ioctls::Error> {
        let offset = KVM_DIRTY_LOG_PAGE_OFFSET as usize * PAGE_BYTES;
        // SAFETY: a fresh shared mapping of the vCPU's file; the kernel refuses what is not there.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * size_of::<kvm_dirty_gfn>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if address == libc::MAP_FAILED {
            let errno = io::Error::last_os_error().raw_os_error();
            return Err(kvm_ioctls::Error::new(errno.unwrap_or(libc::EIO)));
        }
        let entries = NonNull::new(address.cast()).ok_or(kvm_ioctls::Error::new(libc::ENOMEM))?;
        Ok(Self {
            entries,
            count,
            next: 0,
        })
    }

    /// Reads what is new: (slot, page within it). KVM has the entries back at the next [`reset`], and then
    /// protects the pages that they name: `protect` says which one an entry is to name, if any. The vCPU may
    /// run.
    pub(crate) fn read(&mut self, mut protect: impl FnMut((u32, u64)) -> Option<(u32, u64)>) -> usize {
        let mut read = 0;
        // KVM fills no entry again before the reset: one round is the most there can be.
        while read < self.count {
            // SAFETY: `next` is within the mapping; KVM writes `slot` and `offset` before it sets the flag,
            // and leaves the entry alone until it sees the other flag.
            let (flags, entry) = unsafe {
                let entry = self.entries.add(self.next).as_ptr();
                (AtomicU32::from_ptr(&raw mut (*entry).flags), entry)
            };
            if flags.load(Ordering::Acquire) & KVM_DIRTY_GFN_F_MASK != DIRTY {
                break;
            }
            // SAFETY: as above.
            let (slot, offset) = unsafe { ((*entry).slot, (*entry).offset) };
            let named = protect((slot, offset)).unwrap_or((NO_SLOT, 0));
            if named != (slot, offset) {
                // SAFETY: as above: the entry is ours until the flag below is set. KVM takes what it then
                // says as it takes all from user space, and passes over a slot that does not exist
                // (virt/kvm/dirty_ring.c, kvm_reset_dirty_gfn).
                unsafe { ((*entry).slot, (*entry).offset) = named };
            }
            flags.store(RESET, Ordering::Release);
            read += 1;
            self.next = (self.next + 1) % self.count;
        }
        read
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing refers to it any more.
        unsafe {
            libc::munmap(
                self.entries.as_ptr().cast(),
                self.count * size_of::<kvm_dirty_gfn>(),
            )
        };
    }
}
