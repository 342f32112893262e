//! x86_64: the memory map, CPUID, vCPU and interrupt controller state, ACPI.
//!
//! | file | concern |
//! |---|---|
//! | `layout` | where memory, devices, ports and boot structures lie |
//! | `acpi` | the tables by which a guest finds its devices |
//! | `cpuid` | which processor the guest sees |
//! | `entry` | the ways by which a vCPU enters a guest, and the tables that it needs |
//! | `reset`, `registers` | vCPUs and interrupt controllers after power-on; registers of each way of entry |
//! | `vcpu`, `vm`, `msr`, `xsave` | their state, saved and restored; why in this order: `vcpu` |
//! | `stats` | what KVM counts of a vCPU |
//! | `preflight` | what this host's KVM can do, by measuring |

pub(crate) mod acpi;
pub(crate) mod cpuid;
pub mod entry;
pub mod layout;
mod msr;
pub mod preflight;
mod registers;
mod reset;
pub mod stats;
pub mod vcpu;
pub mod vm;
mod xsave;

#[cfg(test)]
mod on_kvm_test;

pub use reset::{create_irqchip, create_vm};
pub(crate) use reset::{reset_vm, setup_vcpu};

/// KVM did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ArchError {
    /// An ioctl failed.
    #[error("KVM refused {ioctl}; `kemari check` shows what this host's KVM lacks")]
    Ioctl {
        /// The ioctl's name in the kernel's documentation.
        ioctl: &'static str,
        /// The kernel's error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A list of model-specific registers was read or written only in part,
    /// which would tear the vCPU's state.
    #[error(
        "KVM stopped {ioctl} at register {msr:#x} ({done} of {count} done); both hosts need a KVM that has \
         the same registers"
    )]
    MsrsPartly {
        /// `KVM_GET_MSRS` or `KVM_SET_MSRS`.
        ioctl: &'static str,
        /// How many were done.
        done: usize,
        /// How many were asked for.
        count: usize,
        /// The first that was not done.
        msr: u32,
    },
    /// A state does not fit this host's KVM or processor.
    #[error("the processor state does not fit this host: {0}")]
    Unfit(String),
}

/// Names the ioctl in its error.
fn named(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ArchError {
    move |source| ArchError::Ioctl { ioctl, source }
}
