//! Hosts, clients and the guest, as the scenarios need them.

mod cluster;
mod descriptors;
mod guest;
mod hang;
mod plan;
mod scene;
mod tasks;

pub use cluster::Cluster;
pub use descriptors::{Descriptors, processor_ticks};
pub use guest::ask;
pub use hang::stop_threads;
pub use plan::{FENCE_WORKS, Fence, LINK_PORT, Plan};
pub use scene::{Host, Scene, play};
pub use tasks::Tasks;
pub use xtask::proof::clients::{Clients, PATIENCE};
pub use xtask::tools::wait_for;
