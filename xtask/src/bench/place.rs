//! Where the measured VMs live: one network namespace, in which both sides of each pair speak over loopback.
//!
//! A side of a pair has one core, as if it were a host: the primary (and an unprotected VM) runs and polls on
//! [`CORE_OF_A`], the secondary on [`CORE_OF_B`]. Clients run wherever the kernel puts them.

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use anyhow::{Context, Result, ensure};
use lab::{NETMASK_BITS, Netns, OUTSIDE_GUESTS};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

/// The core of a primary.
pub const CORE_OF_A: usize = 0;
/// The core of a secondary.
pub const CORE_OF_B: usize = 1;
/// Where the file system lies in memory: images and state there cost no disk.
const TMPFS: &str = "/dev/shm";
/// Most VMs at a time: each has two TAPs.
pub const VMS_MAX: usize = 8;

/// The namespace and a directory in memory.
#[derive(Debug)]
pub struct Place {
    netns: Netns,
    directory: TempDir,
    guest: PathBuf,
}

impl Place {
    /// Makes both. `guest` is the bare guest's file.
    pub fn new(guest: PathBuf) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root: run the bench as root (for example with sudo)"
        );
        let cores = available_parallelism().map_or(1, usize::from);
        ensure!(
            cores > CORE_OF_B,
            "the bench needs two cores: primary and secondary poll on one each"
        );
        let netns = Netns::new("bench")?;
        netns.ip(&format!(
            "link add guests type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
             addr add {OUTSIDE_GUESTS}/{NETMASK_BITS} dev guests\nlink set guests up"
        ))?;
        for vm in 0..VMS_MAX {
            for side in ["a", "b"] {
                let tap = tap(vm, side);
                netns.ip(&format!(
                    "tuntap add dev {tap} mode tap vnet_hdr\nlink set {tap} master guests up"
                ))?;
            }
        }
        let directory = TempDir::with_prefix_in("kemari-bench-", TMPFS)
            .with_context(|| format!("a directory in {TMPFS} cannot be made"))?;
        Ok(Self {
            netns,
            directory,
            guest,
        })
    }

    /// Where everything is.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A directory in memory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The bare guest's file.
    pub fn guest(&self) -> &Path {
        &self.guest
    }
}

/// Name of a VM's TAP on a side.
pub fn tap(vm: usize, side: &str) -> String {
    format!("vm{vm}{side}")
}

/// A thread on one core, until this is dropped.
pub struct Pinned(CpuSet);

/// Keeps this thread on one core.
pub fn pin_this_thread(core: usize) -> Result<Pinned> {
    let before = sched_getaffinity(None).context("this thread's cores are not known")?;
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one).with_context(|| format!("this thread cannot be kept on core {core}"))?;
    Ok(Pinned(before))
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Where it was allowed before it is allowed again.
        let _ = sched_setaffinity(None, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_kept_on_one_core_and_let_go() {
        let before = sched_getaffinity(None).unwrap();
        let core = (0..CpuSet::MAX_CPU).find(|&core| before.is_set(core)).unwrap();
        let pinned = pin_this_thread(core).unwrap();
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        drop(pinned);
        assert_eq!(sched_getaffinity(None).unwrap().count(), before.count());
    }
}
