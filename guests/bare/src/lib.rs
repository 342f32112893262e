//! The parts of the bare guest: a bare-metal program in ring 3 with a TCP key-value service, a disk behind
//! it, and checks of its own invariants. It exists to test and measure the machine that runs it.
//!
//! All that serves runs on one vCPU, in one thread: `guest::run` is the loop, and nothing ever waits for a
//! device without serving the rest. Interrupt handlers only count (`traps`). Further vCPUs work for
//! themselves (`worker`).

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod abi;
pub mod abuse;
pub mod apic;
pub mod block_test;
pub mod boot;
pub mod check;
pub mod clock;
pub mod commands;
pub mod commit;
pub mod console;
pub mod cpu;
pub mod disk_load;
pub mod fpu;
pub mod guest;
pub mod jobs;
pub mod net;
pub mod pattern;
pub mod probe;
pub mod resp;
pub mod server;
mod service;
pub mod setup;
pub mod store;
pub mod traps;
pub mod virtio;
pub mod worker;
