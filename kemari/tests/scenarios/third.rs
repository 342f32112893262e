//! A third host: two secondaries at once, of which one is taken, and the other takes its place.

use std::time::Duration;

use anyhow::{Result, ensure};
use kemari::control::{Protection, Role, Status};

use crate::support::{Host, PATIENCE, Plan, Scene, play, wait_for};

#[test]
fn of_two_secondaries_one_holds_the_vm_and_the_other_takes_its_place() {
    let plan = Plan {
        third: true,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        scene.third()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(500))?;
        // B is the recorded peer; C waits and holds nothing.
        scene.await_protected(Host::A)?;
        let is_secondary = |status: &Status| status.role == Role::Secondary;
        let holds_nothing = |status: &Status| is_secondary(status) && status.protection == Protection::Off;
        await_third(scene, "a secondary", is_secondary)?;
        ensure!(
            scene.third_status().is_some_and(|status| holds_nothing(&status)),
            "C holds something"
        );
        // With B gone C is copied to, without a hand on it.
        scene.kill(Host::B)?;
        clients.go_on()?;
        await_third(scene, "the VM's state", |status| {
            status.protection == Protection::On
        })?;
        scene.await_protected(Host::A)?;
        // B returns, and finds its place taken.
        scene.secondary(Host::B)?;
        scene.await_status("a secondary", Host::B, is_secondary)?;
        clients.work(Duration::from_millis(500))?;
        let status = scene.status(Host::B);
        ensure!(
            status.is_some_and(|status| holds_nothing(&status)),
            "B holds something"
        );
        // C takes over, and takes B as its secondary.
        scene.kill(Host::A)?;
        clients.go_on()?;
        await_third(scene, "the VM, protected", |status| {
            status.role == Role::Primary && status.protection == Protection::On
        })?;
        clients.finish()
    });
}

fn await_third(scene: &Scene, what: &str, is_it: impl Fn(&Status) -> bool) -> Result<()> {
    wait_for(&format!("{what} on c"), PATIENCE, || {
        Ok(scene.third_status().filter(|status| is_it(status)).map(drop))
    })
}
