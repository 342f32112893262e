//! Drivers for virtio over MMIO (virtio 1.2). Written here and not taken from a crate since they must do what
//! tests of output commit need: many requests in flight that complete in any order and late, indexes beyond
//! 65,535, suppressed interrupts and notifications, and a reset of the device while requests are in flight.

pub mod block;
pub mod memory;
pub mod mmio;
pub mod net;
pub mod queue;
