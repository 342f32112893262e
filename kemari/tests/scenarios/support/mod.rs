//! Hosts, clients and the guest, as the scenarios need them.

mod breaches;
mod cluster;
mod guest;
mod hang;
mod pair;
mod plan;
mod scene;

pub use cluster::Cluster;
pub use guest::ask;
pub use hang::stop_threads;
pub use plan::{FENCE_WORKS, Fence, LINK_PORT, Plan};
pub use scene::{Host, Scene, play, written_blocks};
pub use xtask::proof::clients::{Clients, PATIENCE};
pub use xtask::tools::wait_for;
