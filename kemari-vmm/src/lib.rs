//! The machine of Kemari: a small virtual machine monitor on KVM that can be paused, captured, restored and
//! resumed, and whose output can be held until it is released.

pub mod arch;
pub mod boot;
pub mod memory;
pub mod state;
