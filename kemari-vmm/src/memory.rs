//! Guest memory, and which of its pages the VMM itself has written.

/// Guest memory with a bitmap of the pages that the VMM wrote (KVM's log does not see those).
pub type Memory = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;
