//! What goes wrong between a won term and the running guest, and on the way back to a secondary,
//! is tried again.

use std::net::TcpListener;

use anyhow::{Result, ensure};
use lab::replication_address;

use crate::support::{Host, LINK_PORT, PATIENCE, Plan, Scene, play, wait_for};

/// The name that a TAP has while it is missing.
const AWAY: &str = "away0";

/// Takes a host's TAP away, as an administrator's slip would, or brings it back.
fn set_tap(scene: &Scene, host: Host, is_there: bool) -> Result<()> {
    let host = scene.net.host(host.number());
    let tap = host.tap(0);
    let batch = match is_there {
        false => format!("link set {tap} down\nlink set {tap} name {AWAY}"),
        true => format!("link set {AWAY} name {tap}\nlink set {tap} up"),
    };
    Ok(host.netns().ip(&batch)?)
}

fn await_failed_restores(scene: &mut Scene, count: usize) -> Result<()> {
    wait_for("restores that fail", PATIENCE, || {
        ensure!(scene.is_running(Host::B), "the winner has ended");
        let failed = scene.log(Host::B).matches("could not be restored: ").count();
        Ok((failed >= count).then_some(()))
    })
}

fn waits_for_its_tap(plan: &Plan) {
    play(plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        set_tap(scene, Host::B, false)?;
        scene.kill(Host::A)?;
        await_failed_restores(scene, 2)?;
        set_tap(scene, Host::B, true)?;
        clients.go_on()?;
        scene.await_primary(Host::B)?;
        // What it holds by now is whole: it can be given away again.
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        scene.take_over_from(Host::B, &clients)?;
        clients.finish()
    });
}

#[test]
fn a_winner_without_its_tap_goes_on_when_it_is_there_with_a_replicated_disk() {
    waits_for_its_tap(&Plan::replicated("memory"));
}

#[test]
fn a_winner_without_its_tap_goes_on_when_it_is_there_with_a_shared_disk() {
    waits_for_its_tap(&Plan::default());
}

/// Whoever has given the VM away holds nothing, but the other host waits for it to follow.
#[test]
fn an_old_primary_that_cannot_listen_follows_as_soon_as_it_can() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let address = (replication_address(Host::A.number()), LINK_PORT);
        let netns = scene.net.host(Host::A.number()).netns();
        let other = netns.run(|| TcpListener::bind(address))??;
        let ordered = scene.ask(Host::A, &["switchover"])?;
        ensure!(ordered.success, "the order was refused: {}", ordered.text);
        clients.go_on()?;
        scene.await_status("the reason", Host::A, |status| {
            let reason = status.waiting_because.as_deref().unwrap_or_default();
            reason.contains("cannot follow yet: cannot listen on")
        })?;
        scene.await_log(Host::A, "this host cannot follow yet: cannot listen on")?;
        drop(other);
        scene.await_protected(Host::B)?;
        scene.take_over_from(Host::B, &clients)?;
        clients.finish()
    });
}

/// A winner that cannot act leaves the VM to whoever can.
#[test]
fn a_switchover_to_a_host_without_its_tap_ends_where_it_began() {
    play(&Plan::replicated("memory"), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        set_tap(scene, Host::B, false)?;
        let ordered = scene.ask(Host::A, &["switchover"])?;
        ensure!(!ordered.success, "B went on without its TAP: {}", ordered.text);
        clients.go_on()?;
        scene.await_primary(Host::A)?;
        ensure!(scene.is_running(Host::B), "B has ended");
        set_tap(scene, Host::B, true)?;
        scene.await_protected(Host::A)?;
        scene.take_over_from(Host::A, &clients)?;
        clients.finish()
    });
}
