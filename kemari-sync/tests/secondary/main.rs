//! The secondary's transitions, one by one.

mod session;
mod stop;
mod support;
mod syncs;
mod takeover;
