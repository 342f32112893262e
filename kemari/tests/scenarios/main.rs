//! The program as operators run it, with the bare guest on this machine's KVM: two hosts as network
//! namespaces, real processes, clients that never reconnect and record every answer, and a checker that
//! judges what they saw.
//!
//! Needs root (for namespaces) and /dev/kvm. Each scenario makes its own hosts and ends them.

mod after_win;
mod arbiter;
mod bad_input;
mod check;
mod clocks;
mod copy;
mod diagnostics;
mod disk_errors;
mod disk_kinds;
mod disk_status;
mod drill;
#[cfg(feature = "faults")]
mod faults;
mod frozen;
mod guest_life;
mod health;
mod hooks;
mod hostile;
mod large_frames;
mod no_arbiter;
mod pace;
mod partition;
mod peers;
mod rates;
mod readiness;
mod replica;
mod sandbox;
mod signals;
mod smp;
mod start;
#[cfg(feature = "faults")]
mod steps;
mod stop;
mod support;
mod switchover;
mod takeover;
mod tap;
mod third;
mod tls;
mod up;
mod user;
