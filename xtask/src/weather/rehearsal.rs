//! Takeovers that fail at first, states that would not load, and rehearsals that find out.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::case::Case;
use super::judge::KNOWN_AFTER;
use super::setup::Setup;
use super::world::{TO_FILE, World};
use crate::demo::pair::Side::{A, B};
use crate::tools::output_of;

/// The cases.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "rehearsal-sound",
        "proxcenter-ui#289",
        "a drill on the secondary of a sound pair passes, and clients notice nothing",
        sound,
    ),
    Case::new(
        "rehearsal-broken",
        "project-pegaprox#709",
        "the committed memory is spoilt on purpose: a drill fails, says so, and the pair lives",
        broken,
    ),
    Case::new(
        "rehearsal-state-refused",
        "report of an operator",
        "KVM takes the states no more from one sync on: the pair does not go on as protected, and clients go \
         on",
        state_refused,
    ),
    Case::new(
        "rehearsal-restore-fails-once",
        "systemd#9408",
        "each step of a takeover fails once: the VM goes on",
        |world| restore_fails(world, &REPLICATED_STEPS, 1),
    )
    .quick(),
    Case::new(
        "rehearsal-restore-fails-twice",
        "systemd#9408",
        "each step of a takeover fails twice, with a shared disk and its fence: the VM goes on",
        |world| restore_fails(world, &STEPS, 2),
    )
    .on(Setup::SHARED),
];

/// What of a takeover may fail, by the names of its steps, and what more with a replicated disk.
const STEPS: [&str; 4] = [
    "load the state",
    "watch the disks",
    "attach disk blk0",
    "attach card net0",
];
const REPLICATED_STEPS: [&str; 5] = [STEPS[0], "rule the image of blk0", STEPS[1], STEPS[2], STEPS[3]];

/// A script that starts the program with faults.
fn with_faults(words: &str) -> String {
    format!("export KEMARI_FAULTS='{words}'; {TO_FILE}")
}

fn sound(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    clients.work(KNOWN_AFTER)?;
    let said = output_of(&mut world.command(B, &["drill", "--seconds", "2"]))?;
    clients.go_on()?;
    world.await_ready(A)?;
    let drill = world.status(B).context("B does not answer")?.drill;
    ensure!(
        !drill.is_null(),
        "the status knows of no drill, which said:\n{said}"
    );
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn broken(world: &mut World) -> Result<()> {
    world.protect_as([TO_FILE, &with_faults("SpoilMemoryMib=64")])?;
    // Without clients: the next change of a page that is spoilt would be found out by the sync,
    // before the drill ends.
    let said = output_of(&mut world.command(B, &["drill", "--seconds", "2"]));
    ensure!(said.is_err(), "a drill of spoilt memory passed:\n{}", said?);
    world.await_not_ready(B, &["drill"])?;
    world.clients()?.finish()
}

fn state_refused(world: &mut World) -> Result<()> {
    world.protect_as([TO_FILE, &with_faults("RefuseStateAt=300")])?;
    let clients = world.clients()?;
    for side in [A, B] {
        world.await_not_ready(side, &[])?;
    }
    clients.go_on()?;
    clients.finish()
}

fn restore_fails(world: &mut World, may_fail: &[&str], times: usize) -> Result<()> {
    let steps = world.path("steps");
    fs::create_dir(&steps)?;
    let script = with_faults(&format!("StepsIn={}", steps.display()));
    world.protect_as([TO_FILE, &script])?;
    let clients = world.clients()?;
    let fail: Vec<&str> = may_fail.iter().flat_map(|step| vec![*step; times]).collect();
    fs::write(steps.join("fail"), fail.join("\n") + "\n")?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    let passed = fs::read_to_string(steps.join("passed"))?;
    let tried = |step: &str| passed.lines().filter(|line| *line == step).count();
    ensure!(
        tried("load the state") > times,
        "the state was loaded at once: these are no steps of a takeover any more:\n{passed}"
    );
    let left = fs::read_to_string(steps.join("fail"))?;
    ensure!(left.is_empty(), "these steps have not failed:\n{left}");
    clients.finish()
}
