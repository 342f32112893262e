//! The program around the mechanism: configuration, arbiters, control socket, announcements and preflight.
//!
//! `kemari-sync` decides, `kemari-vmm` executes; this crate owns all that touches the operating system.

mod announce;
pub mod arbiter;
pub mod certs;
mod cgroup;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
mod files;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod image;
pub mod import;
pub mod limits;
pub mod link;
pub mod links;
pub mod log;
mod magic;
pub mod ports;
mod replica;
mod rest;
pub mod sandbox;
// What its parts show is for the whole of it: `pub` says no more there.
#[allow(unreachable_pub)]
pub mod side;
pub mod steward;
mod threads;

/// Version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The same, with the commit that it was built from.
pub const VERSION_AND_COMMIT: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("KEMARI_COMMIT"), ")");
