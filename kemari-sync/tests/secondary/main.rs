//! The secondary's transitions, one by one.

mod disks;
mod leave;
mod session;
mod stop;
mod support;
mod syncs;
mod takeover;
