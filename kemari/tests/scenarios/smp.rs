//! Guests with two vCPUs: one serves the clients, the other works for itself and kicks. Each looks whether
//! memory and registers of both are of one moment (`CHECK`).

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::{Host, Plan, Scene, play};

fn two_vcpus(mode: &'static str) -> Plan {
    Plan {
        vcpus: 2,
        mode,
        ..Plan::default()
    }
}

/// The vCPUs agree, and both work.
fn both_work(scene: &Scene) -> Result<()> {
    scene.order(&["CHECK"])?;
    let before = scene.info("worker_rounds")?;
    std::thread::sleep(Duration::from_millis(200));
    let after = scene.info("worker_rounds")?;
    // The vCPU that serves enters rounds as well, but not this many.
    ensure!(
        after > before + 500,
        "the second vCPU stands still: {before} rounds, then {after}"
    );
    scene.order(&["CHECK"])
}

fn killed_there_and_back(mode: &'static str) {
    play(&two_vcpus(mode), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        both_work(scene)?;
        scene.take_over_from(Host::A, &clients)?;
        both_work(scene)?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        clients.work(Duration::from_millis(300))?;
        scene.take_over_from(Host::B, &clients)?;
        both_work(scene)?;
        clients.finish()
    });
}

#[test]
fn two_vcpus_are_killed_there_and_back_in_lockstep() {
    killed_there_and_back("lockstep");
}

#[test]
fn two_vcpus_are_killed_there_and_back_pipelined() {
    killed_there_and_back("pipelined");
}

#[test]
fn two_vcpus_survive_a_power_cut_and_a_switchover() {
    play(&two_vcpus("pipelined"), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.net.down(Host::A.number())?;
        scene.take_over_from(Host::A, &clients)?;
        both_work(scene)?;
        scene.net.up(Host::A.number())?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        let switched = scene.ask(Host::B, &["switchover"])?;
        ensure!(switched.success, "{}", switched.text);
        scene.await_primary(Host::A)?;
        clients.go_on()?;
        both_work(scene)?;
        clients.finish()
    });
}
