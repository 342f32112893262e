//! `arbiter = "none"`: the operator asserts that silence means death.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::{Host, PATIENCE, Plan, Scene, play, wait_for};
use crate::switchover::switch_over;

fn plan() -> Plan {
    Plan {
        no_arbiter: true,
        ..Plan::default()
    }
}

/// The loud words, in the log and in the status.
fn ensure_loud(scene: &Scene, host: Host) -> Result<()> {
    let log = scene.log(host);
    ensure!(
        log.contains("there is no arbiter: if the two hosts lose sight"),
        "it is not in the log"
    );
    let status = scene
        .status(host)
        .map(|status| status.arbiter)
        .unwrap_or_default();
    ensure!(
        status.contains("BOTH run the VM"),
        "it is not in the status: {status}"
    );
    Ok(())
}

#[test]
fn the_vm_survives_its_primary_and_the_next_one_too() {
    play(&plan(), |scene| {
        scene.protect()?;
        Host::BOTH
            .into_iter()
            .try_for_each(|host| ensure_loud(scene, host))?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        scene.take_over_from(Host::A, &clients)?;
        ensure_loud(scene, Host::B)?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        clients.work(Duration::from_millis(300))?;
        scene.take_over_from(Host::B, &clients)?;
        clients.finish()
    });
}

#[test]
fn a_primary_goes_on_alone_and_takes_its_secondary_back() {
    play(&plan(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.kill(Host::B)?;
        clients.go_on()?;
        scene.await_alone(Host::A)?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        clients.finish()
    });
}

#[test]
fn a_vm_that_was_stopped_is_started_again_on_either_host() {
    play(&plan(), |scene| {
        scene.protect()?;
        let asked = scene.ask(Host::A, &["stop"])?;
        ensure!(asked.success, "the order to stop was refused: {}", asked.text);
        Host::BOTH
            .into_iter()
            .try_for_each(|host| scene.await_clean_end(host))?;
        ensure!(
            !scene.log(Host::B).contains("the VM goes on here"),
            "B ran a VM that was stopped"
        );
        scene.run(Host::B)?;
        scene.await_service(Host::B)?;
        scene.await_alone(Host::B)?;
        ensure!(
            scene
                .log(Host::B)
                .contains("on the operator's word it counts as dead"),
            "it did not look for the other host"
        );
        Ok(())
    });
}

#[test]
fn a_host_that_left_a_pair_behind_is_not_started_over_it() {
    play(&plan(), |scene| {
        scene.protect()?;
        scene.kill(Host::A)?;
        scene.await_primary(Host::B)?;
        // B runs the VM now; A knows only that there was a pair.
        scene.run(Host::A)?;
        scene.await_refusal(Host::A)?;
        ensure!(scene.status(Host::B).is_some(), "B is gone");
        Ok(())
    });
}

/// Of the hosts that are asked at a start the primary takes no questions,
/// and its secondary says what it holds.
#[test]
fn a_host_that_knows_nothing_does_not_start_what_another_holds() {
    let plan = Plan {
        third: true,
        ..plan()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.start_third("run")?;
        wait_for("the refusal on c", PATIENCE, || {
            let log = scene.third_log();
            ensure!(!log.contains("is taken without an arbiter"), "c runs the VM, too");
            let is_told = log.contains("b holds epoch ") && log.contains("of VM scene: let it take over");
            Ok(is_told.then_some(()))
        })?;
        wait_for("the end of c", PATIENCE, || {
            Ok(scene.third_status().is_none().then_some(()))
        })?;
        clients.work(Duration::from_millis(300))?;
        scene.await_protected(Host::A)?;
        clients.finish()
    });
}

/// No record tells the old primary that the other has won: what it has said itself must.
#[test]
fn whoever_gives_the_vm_away_does_not_win_it_again() {
    play(&plan(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        switch_over(scene, &clients, Host::A)?;
        switch_over(scene, &clients, Host::B)?;
        for host in Host::BOTH {
            ensure!(
                !scene.log(host).contains("the switchover failed"),
                "{host:?} went on, too"
            );
        }
        clients.finish()
    });
}
