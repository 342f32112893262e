//! A hostile driver in a protected guest, and an innocent VM beside it: the guest hurts only itself.
//!
//! `cargo xtask hostile` plays the same for longer.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::proof::client;

use crate::support::{Host, Plan, Scene, ask, play};

/// What the bare guest's `ABUSE` knows and survives, and what the log says of those that are found out for
/// certain: of lines that come often few are logged, so these are the first of their kind.
const KINDS: [(&str, &str); 16] = [
    ("chains", ""),
    ("loops", "broke the rules"),
    ("addresses", ""),
    ("transmits", ""),
    ("writes", ""),
    ("reads", ""),
    ("overwrites", ""),
    ("discards", ""),
    ("badqueue", "is not accessible"),
    ("registers", ""),
    ("resets", ""),
    ("sizes", ""),
    ("doorbells", ""),
    ("console", ""),
    ("dirty", ""),
    ("interrupts", ""),
];

/// Those after which the guest boots again, or never.
const ENDS: usize = 2;

/// The hostile guest's host logs at most so much of a kind of abuse.
const LOG_BYTES_MAX: usize = 64 << 10;

/// The innocent VM's clients wait no longer for any answer.
const INNOCENT_GAP_MAX: Duration = Duration::from_secs(3);

/// For how long each kind goes on, in milliseconds, unless the environment says otherwise.
const ABUSE_MS: u64 = 700;

/// Longest wait for the end of a kind, which goes on for a minute at most.
const ABUSE_TIMEOUT: Duration = Duration::from_secs(75);

const MEMORY_MIB: u64 = 64;
const STAGING_MIB: u64 = 32;

/// What a process may take beside guest and staging: what the devices hold on the primary and the replica's
/// queue on the secondary, code, stacks and buffers.
const OVERHEAD_MIB: u64 = 64;
/// The same while the guest asks for nothing.
const QUIET_OVERHEAD_MIB: u64 = 32;

fn plan() -> Plan {
    Plan {
        mode: "pipelined",
        memory_mib: MEMORY_MIB as u32,
        protection: "staging_mib_max = 32\nmax_dirty_pages = 4000\nreplica_queue_mib_max = 32",
        ..Plan::replicated("memory")
    }
}

#[test]
fn a_hostile_guest_hurts_nobody_and_is_not_taken_over() {
    let abuse_ms = std::env::var("KEMARI_HOSTILE_MS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(ABUSE_MS);
    play(&Plan::default(), |innocent| {
        innocent.protect()?;
        let before = innocent.await_protected(Host::A)?;
        let clients = innocent.clients()?;
        let mut most_mib = 0;
        play(&plan(), |hostile| {
            hostile.protect()?;
            let quiet_mib = most_memory_mib(hostile)?;
            ensure!(
                quiet_mib <= MEMORY_MIB + STAGING_MIB + QUIET_OVERHEAD_MIB,
                "a process of a guest that asks for nothing took {quiet_mib} MiB"
            );
            for (kind, minds) in KINDS {
                abuse(hostile, kind, minds, abuse_ms).with_context(|| format!("the abuse {kind:?}"))?;
                most_mib = most_mib.max(most_memory_mib(hostile)?);
                clients.go_on()?;
            }
            shuts_down(hostile)?;
            ends_with_an_instruction_that_nobody_can_emulate(hostile)
        });
        let allowed_mib = MEMORY_MIB + STAGING_MIB + OVERHEAD_MIB;
        ensure!(
            most_mib <= allowed_mib,
            "a process of the hostile guest took {most_mib} MiB, {allowed_mib} MiB are allowed"
        );
        innocent.ensure_together(&before).context("the innocent VM")?;
        let mut seen = clients.stop()?;
        let gap = seen.longest_gap();
        ensure!(
            gap <= INNOCENT_GAP_MAX,
            "the innocent VM answered nobody for {gap:?}"
        );
        println!(
            "{{\"kinds\":{},\"failed\":0,\"ms_each\":{abuse_ms},\"memory_mib_max\":{most_mib},\
             \"memory_mib_allowed\":{allowed_mib},\"innocent_gap_ms_max\":{}}}",
            KINDS.len() + ENDS,
            gap.as_millis()
        );
        seen.judge()
    });
}

/// The pair stands as before, whatever the guest does meanwhile.
fn abuse(scene: &mut Scene, kind: &str, minds: &str, ms: u64) -> Result<()> {
    let before = scene.await_protected(Host::A)?;
    let logged = scene.log(Host::A).len();
    client::ask(&scene.load(), &["ABUSE", kind, &ms.to_string()], ABUSE_TIMEOUT)?;
    scene.order(&["PING"])?;
    let log = scene.log(Host::A).split_off(logged);
    ensure!(
        log.len() <= LOG_BYTES_MAX,
        "the primary has logged {} bytes",
        log.len()
    );
    ensure!(log.contains(minds), "nothing minds:\n{log}");
    scene.ensure_together(&before)
}

/// A processor that shuts down resets its machine, as in a PC.
fn shuts_down(scene: &mut Scene) -> Result<()> {
    let before = scene.await_protected(Host::A)?;
    let load = scene.load();
    // There will be no answer.
    let asking = thread::spawn(move || ask(&load, &["ABUSE", "shutdown", "0"]).map(drop));
    scene.await_log(Host::A, "the guest's processor shut down (a triple fault)")?;
    scene.await_service(Host::A)?;
    // It fails, for want of an answer.
    let _ = asking.join();
    scene.ensure_together(&before)
}

/// The guest's end is no failure of its host: it is a stop, and nobody goes on.
fn ends_with_an_instruction_that_nobody_can_emulate(scene: &mut Scene) -> Result<()> {
    let load = scene.load();
    // There will be no answer.
    let asking = thread::spawn(move || ask(&load, &["ABUSE", "execute", "0"]).map(drop));
    for host in Host::BOTH {
        scene.await_clean_end(host)?;
    }
    let log = scene.log(Host::A);
    ensure!(
        log.contains("the guest cannot go on") && !log.contains("this host fails"),
        "the primary says something else:\n{log}"
    );
    // It fails, for want of an answer.
    let _ = asking.join();
    Ok(())
}

/// The most memory that a process of the pair has had, in MiB.
fn most_memory_mib(scene: &mut Scene) -> Result<u64> {
    let mut most = 0;
    for host in Host::BOTH {
        let status = fs::read_to_string(format!("/proc/{}/status", scene.pid(host)?))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .context("the kernel says how much")?;
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .context("a number")?
            .parse()
            .context("a number")?;
        most = most.max(kib >> 10);
    }
    Ok(most)
}
