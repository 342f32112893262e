//! The limits of this process, which a side that is started like it has as well: they count, not what the
//! machine has. A service manager or a container may set others: run the check where the VM is to run.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::cgroup::{Groups, MemoryLimit};
use crate::config::Config;

/// The bit of CAP_IPC_LOCK in a set of capabilities: who has it may lock any amount of memory.
const CAP_IPC_LOCK: u32 = 14;
/// Files that a side has open without the VM's own: sockets, clients of the control socket, connections,
/// logs.
const FILES_BASE: u64 = 96;
/// Files for each vCPU, disk and card at most: KVM's, those of its queues, their events and images.
const FILES_EACH: u64 = 12;

/// Looks at what this process may use, for a VM that needs `needed_mib` in all.
pub(super) fn check(config: &Config, name: &str, needed_mib: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(memory(Groups::own().memory_limit(), needed_mib));
    if config.protection.enabled && !may_lock_all() {
        findings.extend(locked(
            getrlimit(Resource::Memlock).current,
            config.machine.memory_mib.into(),
        ));
    }
    findings.extend(files(
        getrlimit(Resource::Nofile).current,
        files_needed(config, name),
    ));
    findings.extend(file_sizes(
        getrlimit(Resource::Fsize).current,
        &writable_images(config, name),
    ));
    findings
}

fn memory(limit: Option<MemoryLimit>, needed_mib: u64) -> Option<Finding> {
    let MemoryLimit { bytes, path } = limit?;
    (bytes >> 20 < needed_mib).then(|| {
        Finding::error(
            format!(
                "the control group of this process may use {} MiB of memory ({}), but the guest, staging and \
                 program need {needed_mib}: the kernel would kill them",
                bytes >> 20,
                path.display()
            ),
            "raise it (`MemoryMax=` of a service, `--memory` of a container), or lower `machine.memory_mib` \
             or `protection.staging_mib_max`",
        )
    })
}

/// Whether this process has CAP_IPC_LOCK. Root has it not everywhere: a container may have taken it.
fn may_lock_all() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    has_capability(&status, CAP_IPC_LOCK)
}

fn has_capability(status: &str, bit: u32) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> bit & 1 == 1)
}

/// A secondary locks the guest's memory, or protects nothing.
fn locked(limit_bytes: Option<u64>, guest_mib: u64) -> Option<Finding> {
    let limit_mib = limit_bytes? >> 20;
    (limit_mib < guest_mib).then(|| {
        Finding::error(
            format!(
                "this process may lock {limit_mib} MiB of memory, but a secondary locks the guest's \
                     {guest_mib}"
            ),
            "raise `memlock` in /etc/security/limits.conf (`LimitMEMLOCK=` of a service, `--ulimit memlock` \
             of a container), or give it CAP_IPC_LOCK",
        )
    })
}

fn files_needed(config: &Config, name: &str) -> u64 {
    let queues: u64 = config.disks.iter().map(|disk| u64::from(disk.queues)).sum();
    let parts = u64::from(config.machine.vcpus) + queues + config.nets_of(name).len() as u64;
    FILES_BASE + FILES_EACH * parts
}

fn files(limit: Option<u64>, needed: u64) -> Option<Finding> {
    let limit = limit?;
    (limit < needed).then(|| {
        Finding::error(
            format!("this process may have {limit} files open, and the VM needs up to {needed}"),
            "raise `nofile` in /etc/security/limits.conf (`LimitNOFILE=` of a service, `--ulimit nofile` of \
             a container)",
        )
    })
}

/// Id and size in bytes of each image that is written to.
fn writable_images(config: &Config, name: &str) -> Vec<(String, u64)> {
    let disks = config.disks_of(name);
    let written = disks.iter().filter(|disk| !disk.disk.read_only);
    written
        .filter_map(|disk| {
            let seen = fs::metadata(&disk.path).ok().filter(fs::Metadata::is_file)?;
            Some((disk.disk.id.clone(), seen.len()))
        })
        .collect()
}

/// Writes beyond the limit fail (EFBIG), whatever room there is.
fn file_sizes(limit: Option<u64>, images: &[(String, u64)]) -> Vec<Finding> {
    let Some(limit) = limit else { return Vec::new() };
    let beyond = images.iter().filter(|(_, bytes)| *bytes > limit);
    beyond
        .map(|(id, bytes)| {
            Finding::error(
                format!(
                    "disk `{id}` has {} MiB, but this process may write no file beyond {} MiB",
                    bytes >> 20,
                    limit >> 20
                ),
                "take the limit away: `ulimit -f unlimited`, `fsize` in /etc/security/limits.conf \
                 (`LimitFSIZE=` of a service)",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_with_too_little_memory_is_named() {
        let limit = || {
            Some(MemoryLimit {
                bytes: 200 << 20,
                path: "a/memory.max".into(),
            })
        };
        let finding = memory(limit(), 300).unwrap();
        assert!(
            finding.sentence.contains("200 MiB") && finding.sentence.contains("a/memory.max"),
            "{finding}"
        );
        assert_eq!(memory(limit(), 200), None);
        assert_eq!(memory(None, 300), None);
    }

    #[test]
    fn locked_memory_files_and_sizes() {
        assert!(has_capability(
            "Name:\tx\nCapEff:\t000001ffffffffff\n",
            CAP_IPC_LOCK
        ));
        assert!(
            !has_capability("CapEff:\t00000000a80425fb\n", CAP_IPC_LOCK),
            "a container's root"
        );
        assert_eq!(locked(None, 4096), None);
        assert_eq!(locked(Some(64 << 20), 64), None);
        assert!(
            locked(Some(8 << 20), 64)
                .unwrap()
                .sentence
                .contains("may lock 8 MiB")
        );
        assert_eq!(files(Some(1024), 200), None);
        assert!(files(Some(64), 200).is_some());
        let images = [("blk0".to_owned(), 10 << 20), ("blk1".to_owned(), 30 << 20)];
        assert_eq!(file_sizes(None, &images), []);
        let found = file_sizes(Some(20 << 20), &images);
        assert!(
            found.len() == 1 && found[0].sentence.contains("blk1"),
            "{found:?}"
        );
    }
}
