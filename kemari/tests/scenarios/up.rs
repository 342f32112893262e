//! `kemari up`, as both hosts say it when they boot: nobody's hand is on either.

use std::time::Duration;

use anyhow::{Result, ensure};
use kemari::control::{Protection, Role};

use crate::support::{Host, PATIENCE, Plan, Scene, play, wait_for};

/// How long the wrong host is watched: several of its tries.
const WATCHED: Duration = Duration::from_secs(6);

#[test]
fn both_hosts_find_their_roles_and_a_host_that_returns_protects_the_other() {
    play(&Plan::default(), |scene| {
        Host::BOTH.into_iter().try_for_each(|host| scene.up(host))?;
        let first = await_pair(scene)?;
        let clients = scene.clients()?;
        // Either host is rebooted, and comes back by itself.
        for host in [first, first.other()] {
            scene.kill(host)?;
            clients.go_on()?;
            scene.up(host)?;
            scene.await_protected(host.other())?;
            clients.go_on()?;
        }
        clients.finish()
    });
}

#[test]
fn after_both_were_down_only_the_last_owner_starts_and_the_other_says_why_it_does_not() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        scene.kill(Host::B)?;
        scene.await_alone(Host::A)?;
        let mut seen = scene.clients()?.stop()?;
        scene.kill(Host::A)?;
        // The wrong one first: it lacks what A acknowledged alone.
        scene.up(Host::B)?;
        scene.await_log(Host::B, "the VM is not booted here: VM scene belongs to a/")?;
        std::thread::sleep(WATCHED);
        let role = scene.status(Host::B).map(|status| status.role);
        ensure!(
            role != Some(Role::Primary),
            "B runs a VM whose last state it never had"
        );
        scene.up(Host::A)?;
        scene.await_service(Host::A)?;
        scene.await_protected(Host::A)?;
        seen.judge()
    });
}

#[test]
fn a_protected_vm_whose_hosts_all_died_starts_where_it_ran_once_the_other_is_seen_to_hold_nothing() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let mut seen = scene.clients()?.stop()?;
        scene.kill(Host::B)?;
        scene.kill(Host::A)?;
        let owner = scene_owner(scene)?;
        // Alone it cannot know whether the other took over and went on.
        scene.up(owner)?;
        scene.await_log(owner, "is not reached")?;
        scene.up(owner.other())?;
        scene.await_protected(owner)?;
        seen.judge()
    });
}

/// The host that the arbiter's record names: B's death may have been seen by A before its own.
fn scene_owner(scene: &Scene) -> Result<Host> {
    let checked = scene.ask(Host::A, &["check"])?;
    Ok(match checked.text.contains("owner a/") {
        true => Host::A,
        false => Host::B,
    })
}

/// Waits until one host runs the VM and the other protects it; says which runs it.
fn await_pair(scene: &Scene) -> Result<Host> {
    wait_for("a protected VM", PATIENCE, || {
        let protected = |host: &Host| {
            scene
                .status(*host)
                .is_some_and(|status| status.role == Role::Primary && status.protection == Protection::On)
        };
        Ok(Host::BOTH.into_iter().find(protected))
    })
}
