//! SIGTERM and SIGINT: what a service manager, or Ctrl-C, asks for.

use std::time::{Duration, Instant};

use anyhow::ensure;
use kemari::control::Protection;
use rustix::process::Signal;

use crate::support::{Host, Plan, play};

#[test]
fn a_protected_primary_that_is_told_to_end_switches_over_first() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.signal(Host::A, Signal::TERM)?;
        scene.await_clean_end(Host::A)?;
        let status = scene.await_alone(Host::B)?;
        let planned = status
            .takeover
            .is_some_and(|takeover| takeover.planned_pause_ms.is_some());
        ensure!(planned, "the VM came by something else than a switchover");
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn a_secondary_that_is_told_to_end_lets_go_and_its_primary_does_not_wait() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let begun = Instant::now();
        scene.signal(Host::B, Signal::TERM)?;
        scene.await_alone(Host::A)?;
        // Without its word the primary would have waited for a reconnection first.
        ensure!(
            begun.elapsed() < Duration::from_millis(450),
            "the primary was alone after {:?} only",
            begun.elapsed()
        );
        scene.await_clean_end(Host::B)?;
        clients.go_on()?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        clients.finish()
    });
}

#[test]
fn a_primary_whose_secondary_is_in_doubt_does_not_end_the_vm() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.take_arbiter_away()?;
        scene.kill(Host::B)?;
        scene.await_status("doubt", Host::A, |status| {
            status.protection == Protection::Doubtful
        })?;
        scene.signal(Host::A, Signal::TERM)?;
        scene.await_log(Host::A, "this process does not end")?;
        scene.bring_arbiter_back()?;
        scene.await_alone(Host::A)?;
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn an_unprotected_primary_that_is_told_to_end_stops_the_vm() {
    play(&Plan::default(), |scene| {
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let mut seen = scene.clients()?.stop()?;
        scene.signal(Host::A, Signal::INT)?;
        scene.await_clean_end(Host::A)?;
        // It is recorded as stopped, so the other host may start it.
        scene.run(Host::B)?;
        scene.await_service(Host::B)?;
        seen.judge()
    });
}

#[test]
fn a_secondary_without_a_primary_ends_at_once() {
    play(&Plan::default(), |scene| {
        scene.secondary(Host::B)?;
        scene.await_status("waiting", Host::B, |status| status.waiting_because.is_some())?;
        scene.signal(Host::B, Signal::TERM)?;
        scene.await_clean_end(Host::B)
    });
}
