//! Hosts, clients and the guest, as the scenarios need them.

mod breaches;
mod cluster;
mod guest;
mod hang;
mod pair;
mod plan;
mod scene;

pub(crate) use cluster::Cluster;
pub(crate) use guest::ask;
pub(crate) use hang::stop_threads;
pub(crate) use plan::{FENCE_WORKS, Fence, LINK_PORT, Plan};
pub(crate) use scene::{Host, Scene, play, written_blocks};
pub(crate) use xtask::proof::clients::{Clients, PATIENCE};
pub(crate) use xtask::tools::wait_for;
