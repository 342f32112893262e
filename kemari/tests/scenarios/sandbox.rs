//! What a side's process has given up, seen from outside.

use std::fs;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use kemari::control;
use rustix::process::{Pid, Signal, kill_process};
use xtask::tools::wait_for;

use crate::support::{Host, PATIENCE, Plan, play};

/// Mappings of this size are guest memory, staging or a drill's memory, in these scenarios.
const LARGE_KIB: u64 = 48 << 10;
/// Bits of <linux/capability.h>.
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_IPC_LOCK: u64 = 1 << 14;

#[test]
fn a_side_has_no_dumps_no_new_rights_and_no_files_for_others() {
    play(&Plan::replicated("memory"), |scene| {
        scene.protect()?;
        for host in Host::BOTH {
            let pid = scene.pid(host)?;
            has_given_up_rights(pid).with_context(|| format!("the process on {}", host.name()))?;
            cannot_be_read(pid)?;
            keeps_only_what_opens_taps(child(pid)?).context("the steward")?;
        }
        // The guest's memory on A; that and the staging on B.
        ensure!(large_mappings(scene.pid(Host::A)?)? >= 1);
        let before = large_mappings(scene.pid(Host::B)?)?;
        ensure!(before >= 2, "{before} large mappings");
        // And what a drill runs in.
        let (client, pid) = (scene.client(Host::B), scene.pid(Host::B)?);
        let drill = thread::spawn(move || client.command(control::Command::Drill { seconds: 3 }));
        wait_for("the memory of a drill", PATIENCE, || {
            Ok((large_mappings(pid)? > before).then_some(()))
        })?;
        drill.join().expect("it does not panic")?;
        Ok(())
    });
}

/// Every thread has no_new_privs, no capability and a filter of system calls; no core may be written; what is
/// made is root's alone.
fn has_given_up_rights(pid: u32) -> Result<()> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let limit = |name| limits.lines().find(|line| line.starts_with(name));
    // Where nobody may lift the limit of locked memory, as in a container, a capability takes its place.
    let locked = limit("Max locked memory").context("a limit of locked memory")?;
    let own = if locked.contains("unlimited") {
        0
    } else {
        CAP_IPC_LOCK
    };
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            // It has ended.
            continue;
        };
        for line in ["NoNewPrivs:\t1\n", "Umask:\t0077\n", "Seccomp:\t2\n"] {
            ensure!(status.contains(line), "it lacks {line:?}: {status}");
        }
        for (set, expected) in [
            ("CapInh", 0),
            ("CapPrm", own),
            ("CapEff", own),
            ("CapBnd", 0),
            ("CapAmb", 0),
        ] {
            let line = format!("{set}:\t{expected:016x}\n");
            ensure!(status.contains(&line), "it lacks {line:?}: {status}");
        }
    }
    let words: Vec<_> = limit("Max core file size")
        .context("a limit of core files")?
        .split_whitespace()
        .collect();
    ensure!(words[4..6] == ["0", "0"], "{words:?}");
    Ok(())
}

/// A steward without a fence can set up the network, and nothing else that its user may not.
fn keeps_only_what_opens_taps(steward: Pid) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{}/status", steward.as_raw_nonzero()))?;
    for (set, expected) in [
        ("CapPrm", CAP_NET_ADMIN),
        ("CapEff", CAP_NET_ADMIN),
        ("CapBnd", 0),
    ] {
        let line = format!("{set}:\t{expected:016x}\n");
        ensure!(status.contains(&line), "it lacks {line:?}: {status}");
    }
    Ok(())
}

/// A process of the same user without privileges does not see into it.
fn cannot_be_read(pid: u32) -> Result<()> {
    let mut look = Command::new("setpriv");
    look.args(["--bounding-set=-all", "--inh-caps=-all", "cat"]);
    let seen = look.arg(format!("/proc/{pid}/maps")).output()?;
    ensure!(!seen.status.success() && seen.stdout.is_empty(), "{seen:?}");
    Ok(())
}

/// How many writable mappings of a process are large. All of them must be kept out of dumps.
fn large_mappings(pid: u32) -> Result<usize> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut count, mut kib) = (0, 0);
    for line in text.lines() {
        if let Some(size) = line.strip_prefix("Size:") {
            kib = size.trim().trim_end_matches(" kB").parse()?;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag| flags.split_whitespace().any(|word| word == flag);
            if kib >= LARGE_KIB && has("wr") {
                ensure!(has("dd"), "{kib} KiB may be dumped: {flags}");
                count += 1;
            }
        }
    }
    Ok(count)
}

#[test]
fn a_pair_whose_steward_has_died_is_not_ready() {
    steward_dies(&Plan::default());
}

#[test]
fn a_pair_without_a_fence_needs_its_steward_for_its_taps() {
    steward_dies(&Plan::replicated("memory"));
}

fn steward_dies(plan: &Plan) {
    play(plan, |scene| {
        scene.protect()?;
        let steward = child(scene.pid(Host::B)?)?;
        kill_process(steward, Signal::KILL)?;
        scene.await_status("the loss of the steward", Host::B, |status| {
            let reasons = status.readiness.as_ref().map(|readiness| &readiness.reasons);
            reasons.is_some_and(|reasons| reasons.iter().any(|reason| reason.contains("the steward")))
        })?;
        // Nothing else ends for it.
        scene.await_service(Host::A)
    });
}

#[test]
fn a_side_that_is_not_confined_says_so() {
    play(&Plan::default(), |scene| {
        scene.start(Host::A, &["run"], "scene.toml", &[("KEMARI_SANDBOX", "off")])?;
        let status = scene.await_status("the sandbox", Host::A, |status| status.sandbox.is_some())?;
        ensure!(status.to_string().contains("--sandbox off"), "{status}");
        scene.await_log(Host::A, "--sandbox off")
    });
}

/// The only process that a process has started.
fn child(pid: u32) -> Result<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Pid::from_raw(children.trim().parse()?).context("a process has an id")
}
