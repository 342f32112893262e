//! What the devices of one machine share: its memory, whether output is held, and the freeze of a capture.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kvm_ioctls::VmFd;

use crate::memory::Memory;

/// Shared by all devices of one machine.
pub struct Hub {
    /// The guest's memory.
    pub memory: Memory,
    vm: Arc<VmFd>,
    held: AtomicBool,
    frozen: RwLock<()>,
}

impl Hub {
    /// For a machine whose output leaves at once.
    pub fn new(memory: Memory, vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self {
            memory,
            vm,
            held: AtomicBool::new(false),
            frozen: RwLock::new(()),
        })
    }

    /// Whether output waits for a release. Otherwise there is the right to act alone, and it leaves at once.
    pub fn output_is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Lets output wait from now on, or leave at once.
    pub fn hold_output(&self, hold: bool) {
        self.held.store(hold, Ordering::SeqCst);
    }

    /// Held by a back end's thread while it touches guest memory or a ring. A capture waits for it, and it
    /// for a capture, so that each request is wholly finished or on its list.
    pub fn working(&self) -> RwLockReadGuard<'_, ()> {
        self.frozen.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held during a capture. All vCPUs must be parked before:
    /// their device accesses do not take part in this lock.
    pub fn freeze(&self) -> RwLockWriteGuard<'_, ()> {
        self.frozen.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// An edge on an interrupt line. Synchronous, so that it is in the interrupt controller's state when a
    /// capture follows.
    pub(crate) fn pulse(&self, gsi: u32) {
        for level in [true, false] {
            if let Err(error) = self.vm.set_irq_line(gsi, level) {
                tracing::error!("cannot raise interrupt {gsi}: {error}");
            }
        }
    }
}
