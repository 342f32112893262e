//! Hosts, clients and the guest, as the scenarios need them.

mod clients;
mod cluster;
mod guest;
mod hang;
mod plan;
mod scene;

use std::time::Duration;

pub use clients::Clients;
pub use cluster::Cluster;
pub use guest::ask;
pub use hang::stop_threads;
pub use plan::{FENCE_WORKS, Fence, LINK_PORT, Plan};
pub use scene::{Host, Scene, play};
pub use xtask::tools::wait_for;

/// Longest wait for anything that should take a second or two: generous, as the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);
