//! Capabilities: what a process may do beyond what its user may (capabilities(7)).
//!
//! A side gives up all of them but those that this host's configuration makes it need, which are few and
//! mostly none. What else takes one is done by the [steward](crate::steward), or before: limits are raised,
//! devices are opened.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

use super::reach;
use super::user::User;
use crate::config::Config;

/// Where the kernel says from which port on anybody may listen (ip(7)).
const FIRST_FREE_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// What it says as a rule.
const FIRST_FREE_PORT_DEFAULT: u16 = 1024;

/// Whether anybody may answer page faults of the kernel, as KVM's are.
const FAULTS_FOR_ALL: &str = "/proc/sys/vm/unprivileged_userfaultfd";
/// Who may open it may do so.
const FAULTS_DEVICE: &str = "/dev/userfaultfd";

/// A capability that is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Which.
    pub capability: CapabilitySet,
    /// Which and why, as a sentence.
    pub why: String,
}

/// What a side of this configuration cannot do without, that is to run as this user.
///
/// # Errors
/// If the user cannot use what is the configuration's, or nobody can become that user.
pub(super) fn needed(config: &Config, host: &str, user: Option<&User>) -> anyhow::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    let mut keep = |capability, why| kept.push(Kept { capability, why });
    let port = config.host(host).listen.port();
    if config.protection.enabled && port < first_free_port() {
        let why = format!("this process keeps CAP_NET_BIND_SERVICE, to listen at the port {port}");
        keep(CapabilitySet::NET_BIND_SERVICE, why);
    }
    let may_lock = getrlimit(Resource::Memlock).current;
    if config.protection.enabled
        && let Some(bytes) = may_lock
    {
        let why = format!(
            "this process keeps CAP_IPC_LOCK, as it may lock no more than {} MiB otherwise: raise `memlock` \
             (`LimitMEMLOCK=infinity` of a service)",
            bytes >> 20
        );
        keep(CapabilitySet::IPC_LOCK, why);
    }
    if config.protection.enabled && drills_need_a_capability() {
        let why = "this process keeps CAP_SYS_PTRACE, which drills take on a kernel without /dev/userfaultfd \
                   (before Linux 6.1)";
        keep(CapabilitySet::SYS_PTRACE, why.to_owned());
    }
    let beyond = reach::beyond(config, host, || {
        user.map_or(Ok(()), User::become_it)?;
        keep_only(CapabilitySet::empty())
    });
    let beyond = beyond.with_context(|| match user {
        Some(user) => format!("this process cannot become the user `{}`", user.name()),
        None => "what this process needs cannot be tried out".to_owned(),
    })?;
    if let (Some(user), false) = (user, beyond.is_empty()) {
        let paths: Vec<_> = beyond.iter().map(|path| path.display().to_string()).collect();
        bail!(
            "the user `{0}` cannot use {1}: give that to it (`chown {0}`), or let it pass the directories \
             above",
            user.name(),
            paths.join(", ")
        );
    }
    if let Some(path) = beyond.first() {
        let why = format!(
            "this process keeps CAP_DAC_OVERRIDE, as {} belongs to somebody else: `chown` it to the user of \
             this side",
            path.display()
        );
        keep(CapabilitySet::DAC_OVERRIDE, why);
    }
    let own = capabilities(None)?.permitted;
    kept.retain(|kept| own.contains(kept.capability));
    Ok(kept)
}

/// The kernel answers page faults of KVM for whoever may open a device, or by a capability alone
/// (userfaultfd(2)).
fn drills_need_a_capability() -> bool {
    let anybody_may = fs::read_to_string(FAULTS_FOR_ALL).unwrap_or_default();
    anybody_may.trim() == "0" && !Path::new(FAULTS_DEVICE).exists()
}

fn first_free_port() -> u16 {
    let said = fs::read_to_string(FIRST_FREE_PORT).unwrap_or_default();
    said.trim().parse().unwrap_or(FIRST_FREE_PORT_DEFAULT)
}

/// What a steward without fence or hook keeps: it attaches TAPs, and opens those of these disks that are
/// block devices, also if one belongs to neither its user nor that one's groups. Some of them are only read.
///
/// # Errors
/// If that cannot be tried out.
pub(crate) fn to_open<'a>(disks: impl Iterator<Item = (&'a Path, bool)>) -> io::Result<CapabilitySet> {
    let devices = disks.filter(|(path, _)| reach::is_block_device(path));
    let used = devices.map(|(path, read_only)| (path.to_owned(), reach::of_disk(read_only)));
    let beyond = reach::denied(used.collect(), || keep_only(CapabilitySet::empty()))?;
    Ok(match beyond.is_empty() {
        true => CapabilitySet::NET_ADMIN,
        false => CapabilitySet::NET_ADMIN | CapabilitySet::DAC_OVERRIDE,
    })
}

/// Gives up, for the calling thread and all that it starts, every capability but these, and every way to get
/// one.
///
/// # Errors
/// If the kernel refuses: then nothing is given up.
pub(crate) fn keep_only(kept: CapabilitySet) -> io::Result<()> {
    // These two take CAP_SETPCAP. Without them no_new_privs still keeps a program from getting any.
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if remove_capability_from_bounding_set(one).is_err() {
            break;
        }
    }
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    let _ = set_capabilities_secure_bits(locked);
    // Kernels before 4.3 have no such set.
    let _ = clear_ambient_capability_set();
    let kept = kept & capabilities(None)?.permitted;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}
