//! A side's process has little to lose: what it gives up at its start, before it reads anything of a guest or
//! a peer.
//!
//! What needs more than is left is done by the [steward](crate::steward), a process that is started before.
//! docs/security.md says what that keeps from whom.

mod calls;
mod capabilities;
mod files;
mod places;
mod reach;
mod user;

use std::io;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::Context;
use clap::ValueEnum;
use kemari_vmm::arch::preflight;
use kemari_vmm::confine::{self, Breach, Calls};
use kemari_vmm::memory;
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask};
use rustix::thread::set_no_new_privs;

use crate::config::Config;
use crate::link::way;
use crate::{arbiter, control, log, replica, side, steward};

use user::User;

pub use calls::FILES;
pub(crate) use calls::{ASKING, BLOCK_DEVICES, CARDS, PROCESS, SOCKETS};

/// The variable that names the file into which a build with faults writes calls that are on no list.
#[cfg(any(feature = "faults", debug_assertions))]
const BREACHES_IN: &str = "KEMARI_BREACHES";

/// Whether a side is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// As far as this kernel can.
    #[default]
    On,
    /// Not at all: for debugging.
    Off,
}

/// What this process is not kept from, as sentences.
static LACKING: OnceLock<Vec<String>> = OnceLock::new();

/// Gives up what no side of this configuration needs, for the life of the process and of all that it starts
/// but the steward. Only the first thread may call it, while there is no other.
///
/// - Neither a crash nor another process of the same user gets at its memory, which holds the guest's.
/// - Nothing that it starts can have more rights than it has itself.
/// - Whatever it makes is its user's alone.
/// - It is the user that the configuration names, if any, and may do nothing that its user may not, but what
///   the configuration makes it need.
/// - It opens the files and ports of the configuration, as far as the kernel has Landlock.
/// - It makes the system calls that it needs, each thread its own.
///
/// # Errors
/// If the steward cannot be started, or the kernel refuses what it knows.
pub fn begin(sandbox: Sandbox, config: &Config, host: &str) -> anyhow::Result<()> {
    let lacking = match sandbox {
        Sandbox::Off => {
            steward::run_hooks_here(config, host)?;
            vec!["--sandbox off: this process keeps all rights of its user".to_owned()]
        }
        Sandbox::On => {
            steward::start(config, host)?;
            confine(config, host)?
        }
    };
    // There is one begin a process.
    let _ = LACKING.set(lacking);
    Ok(())
}

/// As [`begin`], without the steward. Returns what the process is not kept from, as sentences.
///
/// # Errors
/// If the kernel refuses what it knows.
pub fn confine(config: &Config, host: &str) -> anyhow::Result<Vec<String>> {
    let mut lacking = Vec::new();
    // What is needed later on, and nobody but root may open from here on.
    memory::open_pagemap();
    memory::hold_faults();
    preflight::hold();
    way::hold();
    let user = user_of(config, host)?;
    let user = user.as_ref();
    if places::has_names(config) {
        // The C library loads its plug-ins for names now: later on it cannot.
        let _ = ("localhost", 0).to_socket_addrs();
    }
    let breach = breach();
    give_up_rights();
    files::make_directories(config, host, user.map(User::owner))?;
    let kept = capabilities::needed(config, host, user)?;
    files::confine(config, host, &mut lacking)?;
    if let Some(user) = user {
        user.become_it()
            .with_context(|| format!("this process cannot become the user `{}`", user.name()))?;
        // Another user's process may be dumped, if the kernel is told so.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
    let all_kept = kept.iter().map(|kept| kept.capability).collect();
    capabilities::keep_only(all_kept).context("the capabilities of this process cannot be given up")?;
    lacking.extend(kept.into_iter().map(|kept| kept.why));
    if let Err(error) = breach.and_then(|breach| confine::process(&PROCESS, breach)) {
        lacking.push(format!("system calls are not restricted: {error}"));
    }
    Ok(lacking)
}

/// The user that the side of this host is to run as, if it is named.
fn user_of(config: &Config, host: &str) -> anyhow::Result<Option<User>> {
    let name = config.host(host).user.as_deref();
    name.map(User::named).transpose()
}

/// Gives up what opening TAPs and these disks, some of which are only read, does not take: for a steward
/// without fence or hook. Only the first thread may call it, while there is no other.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn keep_only_what_opens<'a>(disks: impl Iterator<Item = (&'a Path, bool)>) -> io::Result<()> {
    give_up_rights();
    capabilities::keep_only(capabilities::to_open(disks)?)
}

/// Tells the log what this process is not kept from.
pub fn tell() {
    LACKING
        .get()
        .into_iter()
        .flatten()
        .for_each(|word| tracing::warn!("sandbox: {word}"));
}

/// What this process is not kept from, in words; `None`: everything is as it should be.
pub fn lacking() -> Option<String> {
    LACKING
        .get()
        .filter(|words| !words.is_empty())
        .map(|words| words.join("; "))
}

/// What a side of this configuration would keep beyond what its user may do, as sentences.
///
/// # Errors
/// If it could not be started so, or that cannot be tried out.
pub fn keeps(config: &Config, host: &str) -> anyhow::Result<Vec<String>> {
    let kept = capabilities::needed(config, host, user_of(config, host)?.as_ref())?;
    Ok(kept.into_iter().map(|kept| kept.why).collect())
}

/// What this kernel cannot keep a side from, as sentences.
pub fn lacks() -> Vec<String> {
    let mut lacks = files::lacks();
    // What the kernel does at a call (seccomp(2)); it is not there if it can do nothing.
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if !actions.split_whitespace().any(|action| action == "kill_process") {
        lacks.push("this kernel filters no system calls (seccomp): a side may make any".to_owned());
    }
    lacks
}

/// The lists of all threads.
pub fn lists() -> Vec<Calls> {
    let own = [
        PROCESS,
        arbiter::CALLS,
        control::CALLS,
        log::CALLS,
        replica::COPY_CALLS,
        replica::REPLICA_CALLS,
    ];
    [&own[..], &side::LISTS, &confine::LISTS].concat()
}

/// None of it can fail: each is about this process itself, and asks for less than it has.
fn give_up_rights() {
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
    let _ = set_no_new_privs(true);
    umask(Mode::RWXG | Mode::RWXO);
}

#[cfg(any(feature = "faults", debug_assertions))]
fn breach() -> io::Result<Breach> {
    let file = match std::env::var_os(BREACHES_IN) {
        Some(path) => std::fs::File::options().create(true).append(true).open(path)?,
        None => std::fs::File::from(rustix::io::dup(rustix::stdio::stderr())?),
    };
    Ok(Breach::Report(file))
}

#[cfg(not(any(feature = "faults", debug_assertions)))]
fn breach() -> io::Result<Breach> {
    Ok(Breach::Kill)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_counts_the_lists_as_they_are() {
        let text = include_str!("../../docs/security.md");
        let missing: Vec<String> = lists()
            .into_iter()
            .map(|list| format!("| {} | {} |", list.of, list.count()))
            .filter(|row| !text.contains(row))
            .collect();
        assert!(
            missing.is_empty(),
            "docs/security.md lacks:\n{}",
            missing.join("\n")
        );
    }

    #[test]
    fn no_thread_may_do_what_its_process_may_not() {
        for list in lists() {
            assert!(list.is_within(&PROCESS), "{}", list.of);
        }
    }
}
