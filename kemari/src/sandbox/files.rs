//! Landlock: which files and ports there are for this process, from here on and for all that it starts.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope, make_bitflags,
};
use rustix::process::{Gid, Uid};

use super::places::{self, May};
use crate::config::{Config, Endpoint};

/// The newest version of Landlock that is made use of: Linux 6.12.
const NEWEST: ABI = ABI::V6;

/// What older versions cannot keep from a process: the first that can, and what.
const SINCE: [(ABI, &str); 4] = [
    (
        ABI::V3,
        "to cut files off that it may not write (before Linux 6.2)",
    ),
    (ABI::V4, "to connect to any port (before Linux 6.7)"),
    (
        ABI::V5,
        "to give orders to devices that it may only read (before Linux 6.10)",
    ),
    (ABI::V6, "to send signals to other processes (before Linux 6.12)"),
];

/// Port of the name service's longer answers.
const NAMES_PORT: u16 = 53;

/// Allows this thread, and all that it starts, the files and ports of the configuration and no others, as far
/// as this kernel can. `words` gets a sentence for each thing that it cannot, or that is allowed beyond the
/// configuration.
///
/// # Errors
/// If the kernel knows Landlock and refuses.
pub(super) fn confine(config: &Config, host: &str, words: &mut Vec<String>) -> anyhow::Result<()> {
    let known = lacks();
    words.extend(known.iter().cloned());
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let ruleset = add_places(ruleset, config, host, words)?;
    let ruleset = add_ports(ruleset, config, host)?;
    ruleset.restrict_self().context("Landlock cannot be set")?;
    Ok(())
}

/// What this kernel's Landlock does not keep from a side, as sentences.
pub(super) fn lacks() -> Vec<String> {
    let abi = match version() {
        Ok(version) => ABI::from(version),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return vec![
                "Landlock is switched off in this kernel (`lsm=`): a side may open any file of its user"
                    .into(),
            ];
        }
        Err(_) => return vec!["this kernel has no Landlock: a side may open any file of its user".into()],
    };
    SINCE
        .iter()
        .filter(|(since, _)| abi < *since)
        .map(|(_, what)| format!("the Landlock of this kernel does not keep a side {what}"))
        .collect()
}

/// The version of the kernel's Landlock (landlock_create_ruleset(2)).
fn version() -> io::Result<i32> {
    /// LANDLOCK_CREATE_RULESET_VERSION of <linux/landlock.h>.
    const VERSION: libc::c_uint = 1;
    let none: *const libc::c_void = std::ptr::null();
    // SAFETY: with this flag the kernel reads nothing and makes nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION) };
    match version {
        ..0 => Err(io::Error::last_os_error()),
        version => Ok(version as i32),
    }
}

fn add_places(
    mut ruleset: RulesetCreated,
    config: &Config,
    host: &str,
    words: &mut Vec<String>,
) -> anyhow::Result<RulesetCreated> {
    let mut places: Vec<(PathBuf, May)> = places::of(config, host, words).into_iter().collect();
    let faults = crate::side::directories_of_faults().into_iter();
    places.extend(faults.map(|directory| (directory, May::Change)));
    for (path, may) in places {
        // What is not there cannot be named. It is of no use to this side either: where it must be there, the
        // start says so.
        let Ok(file) = PathFd::new(&path) else { continue };
        let rule = PathBeneath::new(file, rights(may, path.is_dir()));
        ruleset = ruleset
            .add_rule(rule)
            .with_context(|| format!("Landlock cannot allow {}", path.display()))?;
    }
    Ok(ruleset)
}

fn rights(may: May, is_directory: bool) -> BitFlags<AccessFs> {
    let rights = match may {
        May::Read => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
        May::Change => make_bitflags!(AccessFs::{
            ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeSock | RemoveFile
        }),
        May::Use => make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | IoctlDev}),
    };
    match is_directory {
        true => rights,
        false => rights & AccessFs::from_file(NEWEST),
    }
}

fn add_ports(ruleset: RulesetCreated, config: &Config, host: &str) -> anyhow::Result<RulesetCreated> {
    let mut ruleset = ruleset.add_rule(NetPort::new(config.host(host).listen.port(), AccessNet::BindTcp))?;
    let peers = config.peers(host).map(|(_, peer)| peer.listen.port());
    let endpoints = config.arbiter.endpoints.iter();
    let arbiters = endpoints
        .filter_map(|text| Endpoint::parse(text).ok())
        .map(|endpoint| endpoint.port());
    let names = places::has_names(config).then_some(NAMES_PORT);
    for port in peers.chain(arbiters).chain(names) {
        ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    Ok(ruleset)
}

/// Makes the directories that a side makes at its start: afterwards it may only make files in them. What is
/// made is the owner's, if there is one.
pub(crate) fn make_directories(config: &Config, host: &str, owner: Option<(Uid, Gid)>) -> anyhow::Result<()> {
    let own = config.host(host);
    let control = own.control().parent().unwrap_or(Path::new("/"));
    for directory in [control, own.state_dir()] {
        make_directory(directory, owner)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    }
    Ok(())
}

fn make_directory(directory: &Path, owner: Option<(Uid, Gid)>) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<_> = directory.ancestors().take_while(is_missing).collect();
    for path in missing.into_iter().rev() {
        match fs::create_dir(path) {
            // The side of another VM has made it just now.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made?,
        }
        if let Some((user, group)) = owner {
            chown(path, Some(user.as_raw()), Some(group.as_raw()))?;
        }
    }
    Ok(())
}
