//! What can go wrong with a machine.

use crate::arch::ArchError;
use crate::arch::preflight::PreflightError;
use crate::boot::BootError;
use crate::disk::DiskError;
use crate::memory::MemoryError;
use crate::state::StateError;

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
}

/// KVM refused to do `step`.
pub(super) fn kvm(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { step, source }
}
