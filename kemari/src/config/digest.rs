//! What must be equal on both hosts, as one number.

use serde::Serialize;

use super::{Arbiter, Config, Disk, Machine, Net, Protection};

/// Counts up when a key changes its meaning.
const DIGEST_VERSION: u32 = 1;

#[derive(Serialize)]
struct Common<'a> {
    version: u32,
    vm: &'a str,
    machine: &'a Machine,
    disks: &'a [Disk],
    nets: &'a [Net],
    protection: &'a Protection,
    arbiter: &'a Arbiter,
    hosts: Vec<&'a String>,
}

/// FNV-1a over the canonical JSON of the common parts: the same in every build,
/// and not meant against an attacker.
pub(super) fn of(config: &Config) -> u64 {
    let common = Common {
        version: DIGEST_VERSION,
        vm: &config.vm,
        machine: &config.machine,
        disks: &config.disks,
        nets: &config.nets,
        protection: &config.protection,
        arbiter: &config.arbiter,
        hosts: config.hosts.keys().collect(),
    };
    let text = serde_json::to_vec(&common).expect("structs of strings and numbers are always JSON");
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}
