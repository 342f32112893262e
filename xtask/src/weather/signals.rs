//! Signals that a process gets without anybody's wish.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::case::Case;
use super::world::World;
use crate::demo::pair::Side::{A, B};
use crate::proof::clients::PATIENCE;
use crate::tools::wait_for;

/// Signals whose usual meaning is the end of the process, or its standstill, and which mean nothing to it.
const MEANINGLESS: [Signal; 4] = [Signal::PIPE, Signal::XFSZ, Signal::TTOU, Signal::TTIN];
/// A pair is watched for so long after them.
const WATCHED: Duration = Duration::from_secs(1);
/// How the status is asked for on a control socket.
const QUESTION: &[u8] = b"\"status\"\n";

/// The cases.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "signal-hangup-primary",
        "lightning#4240",
        "SIGHUP to the primary: as SIGTERM, the VM goes to the secondary first",
        hangup_primary,
    )
    .quick(),
    Case::new(
        "signal-hangup-secondary",
        "lightning#4240",
        "SIGHUP to the secondary: as SIGTERM, it lets go, and the primary goes on",
        hangup_secondary,
    ),
    Case::new(
        "signal-hangup-both",
        "nav#244",
        "SIGHUP to both at once, as when a terminal is closed: no answer contradicts another, and one may go \
         on",
        hangup_both,
    ),
    Case::new(
        "signal-meaningless",
        "systemd#9408",
        "SIGPIPE, SIGXFSZ, SIGTTOU, SIGTTIN to both: nothing; the primary is killed: the secondary goes on",
        meaningless,
    ),
    Case::new(
        "signal-stopped-secondary",
        "moby#31540",
        "the secondary stands still (SIGSTOP) and goes on: the primary runs, and is protected again",
        stopped_secondary,
    ),
    Case::new(
        "signal-broken-pipe-status",
        "lightning#4240",
        "whoever asks for the status goes away before the answer, a hundred times: nothing happens",
        gone_askers,
    ),
];

fn hangup_primary(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.owe(A);
    world.signal(A, Signal::HUP)?;
    world.await_vm(B, &clients)?;
    world.await_end(A)?;
    let planned = world
        .status(B)
        .and_then(|status| status.takeover)
        .is_some_and(|takeover| takeover.planned_pause_ms.is_some());
    ensure!(planned, "the VM came by something else than a switchover");
    clients.finish()
}

fn hangup_secondary(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.signal(B, Signal::HUP)?;
    world.await_end(B)?;
    world.await_alone(A)?;
    clients.go_on()?;
    world.revive(B)?;
    clients.finish()
}

fn hangup_both(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.signal(B, Signal::HUP)?;
    world.signal(A, Signal::HUP)?;
    wait_for("the end of both, or one that runs", PATIENCE, || {
        let alone = |side| world.status(side).is_some_and(|status| status.is_alone());
        let settled = alone(A) || alone(B);
        Ok((settled || !(world.is_running(A) || world.is_running(B))).then_some(()))
    })?;
    if !world.is_running(A) && !world.is_running(B) {
        // Who ends both has stopped the VM: no more can be asked for than that it was done in order.
        clients.abandon()?.judge_answers()?;
        world.await_end(A)?;
        return world.await_end(B);
    }
    world.await_one_vm(&clients)?;
    clients.finish()
}

fn meaningless(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    for signal in MEANINGLESS {
        for side in [A, B] {
            world.signal(side, signal)?;
        }
    }
    clients.work(WATCHED)?;
    world.await_ready(A)?;
    world.kill(A)?;
    for signal in MEANINGLESS {
        world.signal(B, signal)?;
    }
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn stopped_secondary(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    world.signal(B, Signal::STOP)?;
    world.await_alone(A)?;
    clients.go_on()?;
    world.signal(B, Signal::CONT)?;
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn gone_askers(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    for side in [A, B] {
        for _ in 0..50 {
            UnixStream::connect(world.socket(side))?.write_all(QUESTION)?;
        }
    }
    world.await_ready(A)?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}
