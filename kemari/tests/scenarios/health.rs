//! A host that lives and is of no use to the VM: liveness is progress.

use std::time::Duration;

use anyhow::ensure;
use kemari::control::Role;
use lab::Network;

use crate::support::{Host, Plan, Scene, play, stop_threads};

/// How long a pair that must not change its roles is watched: past every time-out of the plan.
const WATCHED: Duration = Duration::from_secs(2);

#[test]
fn a_primary_without_uplink_gives_the_vm_to_a_secondary_that_has_one() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.net.unplug(Host::A.number(), Network::Guests)?;
        let status = scene.await_protected(Host::B)?;
        let planned = status
            .takeover
            .is_some_and(|takeover| takeover.planned_pause_ms.is_some());
        ensure!(planned, "the VM came by something else than a switchover");
        ensure!(scene.is_running(Host::A), "the old primary was fenced");
        clients.go_on()?;
        // Now neither has an uplink: it stays where it is, and says why.
        scene.net.unplug(Host::B.number(), Network::Guests)?;
        scene.await_status("the trouble", Host::B, |status| {
            waits_for(status, "no better off")
        })?;
        std::thread::sleep(WATCHED);
        ensure!(
            role(scene, Host::B) == Some(Role::Primary),
            "B gave the VM away for nothing"
        );
        scene.net.plug(Host::A.number(), Network::Guests)?;
        scene.await_protected(Host::A)?;
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn a_secondary_without_uplink_is_no_reason_to_change() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.net.unplug(Host::B.number(), Network::Guests)?;
        scene.await_status("the trouble", Host::B, |status| {
            waits_for(status, "could not run the VM well")
        })?;
        clients.work(WATCHED)?;
        ensure!(role(scene, Host::A) == Some(Role::Primary), "A gave the VM away");
        scene.await_protected(Host::A)?;
        clients.finish()
    });
}

/// The disk's threads are stopped as a hanging disk would stop them; heartbeats go on.
#[test]
fn a_primary_whose_disk_hangs_hands_the_vm_over() {
    let plan = Plan {
        progress_timeout_ms: 2000,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let stopped = stop_threads(scene.pid(Host::A)?, "disk")?;
        scene.await_log(Host::A, "the disk blk0 has not finished a request within 2000 ms")?;
        scene.await_primary(Host::B)?;
        clients.go_on()?;
        drop(stopped);
        clients.finish()
    });
}

/// The guest resets its disk while requests of it hang in the host: the reset waits for them, so that nothing
/// is written into the guest's memory after it, and then everything goes on.
#[test]
fn a_reset_of_a_disk_that_hangs_waits_until_it_does_not() {
    play(&Plan::default(), |scene| {
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let clients = scene.clients()?;
        let stopped = stop_threads(scene.pid(Host::A)?, "disk")?;
        let load = scene.load();
        let reset = std::thread::spawn(move || crate::support::ask(&load, &["RESETQ"]).map(drop));
        std::thread::sleep(WATCHED);
        ensure!(!reset.is_finished(), "the reset did not wait for what hangs");
        ensure!(
            role(scene, Host::A) == Some(Role::Primary),
            "the program does not answer"
        );
        drop(stopped);
        reset.join().expect("the thread does not panic")?;
        clients.go_on()?;
        scene.order(&["CHECK"])?;
        clients.finish()
    });
}

/// The vCPU that resets cannot be stopped for a sync meanwhile. Its host is heard all the same,
/// and nobody fences it.
#[test]
fn a_reset_of_a_disk_that_is_slow_parts_nobody() {
    let plan = Plan {
        progress_timeout_ms: 30_000,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let before = scene.await_protected(Host::A)?;
        let clients = scene.clients()?;
        let stopped = stop_threads(scene.pid(Host::A)?, "disk")?;
        let load = scene.load();
        let reset = std::thread::spawn(move || crate::support::ask(&load, &["RESETQ"]).map(drop));
        // A sync is due after one second, and silence is suspected after another.
        std::thread::sleep(2 * WATCHED);
        ensure!(!reset.is_finished(), "the reset did not wait for what hangs");
        drop(stopped);
        reset.join().expect("the thread does not panic")?;
        clients.go_on()?;
        scene.ensure_together(&before)?;
        clients.finish()
    });
}

/// The same while a secondary is there: the VM goes on at the other host, where the reset completes.
#[test]
fn a_reset_of_a_disk_that_hangs_completes_at_the_other_host() {
    let plan = Plan {
        progress_timeout_ms: 2000,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let stopped = stop_threads(scene.pid(Host::A)?, "disk")?;
        let load = scene.load();
        let reset = std::thread::spawn(move || crate::support::ask(&load, &["RESETQ"]).map(drop));
        scene.await_primary(Host::B)?;
        clients.go_on()?;
        reset.join().expect("the thread does not panic")?;
        drop(stopped);
        scene.order(&["CHECK"])?;
        clients.finish()
    });
}

fn waits_for(status: &kemari::control::Status, what: &str) -> bool {
    status
        .waiting_because
        .as_ref()
        .is_some_and(|because| because.contains(what))
}

fn role(scene: &Scene, host: Host) -> Option<Role> {
    scene.status(host).map(|status| status.role)
}
