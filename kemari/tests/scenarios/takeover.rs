//! Takeovers, one after the other.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::{Host, Plan, play};

#[test]
fn a_vm_goes_from_a_to_b_and_back_to_a_with_its_connections() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        let status = scene.await_primary(Host::B)?;
        ensure!(
            status.takeover.is_some() && status.counters.takeovers == 1,
            "no takeover is shown: {status}"
        );
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        clients.work(Duration::from_millis(300))?;
        scene.kill(Host::B)?;
        clients.go_on()?;
        scene.await_primary(Host::A)?;
        clients.finish()
    });
}

#[test]
fn a_primary_whose_secondary_dies_goes_on_alone_and_takes_it_back() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.kill(Host::B)?;
        clients.go_on()?;
        let alone = scene.await_alone(Host::A)?;
        let (asked, term) = (scene.log(Host::A).contains("asking to go on alone"), alone.term);
        ensure!(asked, "it did not ask");
        scene.secondary(Host::B)?;
        let protected = scene.await_protected(Host::A)?;
        ensure!(protected.term > term, "the new pair has the old term {term}");
        clients.work(Duration::from_millis(300))?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        scene.await_primary(Host::B)?;
        clients.finish()
    });
}

#[test]
fn a_power_cut_in_silence_is_taken_over() {
    play(&Plan::default(), |scene| -> Result<()> {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.net.down(Host::A.number())?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        let status = scene.await_primary(Host::B)?;
        let ms = status.takeover.map_or(0.0, |takeover| takeover.ms);
        ensure!(
            ms >= 1000.0,
            "taken over after {ms} ms, before the suspicion time was over"
        );
        clients.finish()
    });
}
