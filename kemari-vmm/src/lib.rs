//! The machine of Kemari: a small virtual machine monitor on KVM that can be paused, captured, restored and
//! resumed, and whose output can be held until it is released.
//!
//! Start at [`machine`]: it has the contract of a pause. [`event`] is where notifications between guest and
//! back ends pass, [`virtio`] the mechanism under all devices.

pub mod arch;
pub mod boot;
pub mod confine;
pub mod devices;
pub mod dirty;
pub mod disk;
pub mod event;
pub mod machine;
pub mod memory;
pub(crate) mod pageset;
pub mod release;
mod signals;
pub mod state;
pub mod threads;
pub mod vcpu;
pub mod virtio;
