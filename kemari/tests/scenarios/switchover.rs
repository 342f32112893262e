//! Planned changes of the host.

use std::time::Duration;

use anyhow::{Result, ensure};
use kemari::control::Protection;

use crate::support::{Clients, Host, Plan, Scene, play};

#[test]
fn the_hosts_exchange_their_roles_and_exchange_them_back_under_load() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        switch_over(scene, &clients, Host::A)?;
        switch_over(scene, &clients, Host::B)?;
        // The pair that comes out of it is a pair like any other.
        scene.take_over_from(Host::A, &clients)?;
        clients.finish()
    });
}

#[test]
fn an_order_that_comes_before_anybody_has_looked_waits_for_that() {
    play(&Plan::default(), |scene| {
        scene.run(Host::A)?;
        scene.secondary(Host::B)?;
        scene.await_status("protection", Host::A, |status| {
            status.protection == Protection::On
        })?;
        let ordered = scene.ask(Host::A, &["switchover"])?;
        ensure!(ordered.success, "the order was refused: {}", ordered.text);
        scene.await_protected(Host::B).map(drop)
    });
}

/// Gives the VM away under load. The old primary follows by itself.
pub(crate) fn switch_over(scene: &mut Scene, clients: &Clients, from: Host) -> Result<()> {
    clients.work(Duration::from_millis(300))?;
    let ordered = scene.ask(from, &["switchover"])?;
    ensure!(ordered.success, "the order was refused: {}", ordered.text);
    let protected = scene.await_protected(from.other())?;
    let takeover = protected.takeover.as_ref();
    ensure!(
        takeover.is_some_and(|takeover| takeover.planned_pause_ms.is_some()),
        "the VM came by something else than a switchover: {protected}"
    );
    ensure!(scene.is_running(from), "the old primary was fenced");
    clients.go_on()
}
