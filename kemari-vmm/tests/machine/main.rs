//! The machine on real KVM: with the bare guest, and its devices driven directly.
//!
//! Each test with a guest lives in a network namespace of its own; nothing of them outlives the process.

mod budgets;
mod cards;
mod dirty;
mod disks;
mod faults;
mod firmware;
mod fuzz;
mod gate;
mod golden;
mod large;
mod moment;
mod pause;
mod rates;
mod reattach;
mod replicas;
mod resets;
mod rings;
mod state;
mod support;
mod taps;
mod trial;
mod turns;
