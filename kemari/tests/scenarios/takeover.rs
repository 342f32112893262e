//! Takeovers, one after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::support::{Host, PATIENCE, Plan, Scene, play};

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
        scene.take_over_from(Host::B, &clients)?;
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
        scene.take_over_from(Host::A, &clients)?;
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

#[test]
fn a_vm_that_loses_both_hosts_in_a_takeover_runs_nowhere_until_the_operator_starts_it() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        scene.kill(Host::A)?;
        await_ask(scene)?;
        scene.kill(Host::B)?;
        let mut seen = clients.abandon()?;
        let refused = scene.ask(Host::A, &["run"])?;
        ensure!(!refused.success, "A took the VM without a word: {}", refused.text);
        // Every refusal names the term that the operator would have to assert.
        let terms = refused.text.split("term ").skip(1);
        let term = terms.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(""));
        let term = term.last().context("the refusal names no term")?.to_owned();
        scene.start(Host::A, &["run", "--assert-dead", &term], "scene.toml", &[])?;
        scene.await_service(Host::A)?;
        seen.judge()?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        let clients = scene.clients()?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        clients.finish()?;
        seen.judge()
    });
}

/// Waits until B asks for the VM, without a pause in between: it gets it at once.
fn await_ask(scene: &Scene) -> Result<()> {
    let begin = Instant::now();
    while !scene.log(Host::B).contains("asking for the VM") {
        ensure!(begin.elapsed() < PATIENCE, "B did not ask");
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
