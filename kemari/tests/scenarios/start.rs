//! A VM is never started twice.

use anyhow::{Result, ensure};

use crate::support::{Host, Plan, Scene, play};

#[test]
fn a_vm_that_runs_is_not_started_again() {
    play(&Plan::default(), |scene| {
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let clients = scene.clients()?;
        refused(scene, Host::B, &["run"], "belongs to a/")?;
        refused(
            scene,
            Host::A,
            &["run"],
            "already run or followed by another process of this host",
        )?;
        refused(
            scene,
            Host::B,
            &["run", "--assert-dead", "7"],
            "the record's term is 1, not 7",
        )?;
        clients.go_on()?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        refused(
            scene,
            Host::B,
            &["run"],
            "already run or followed by another process of this host",
        )?;
        refused(
            scene,
            Host::A,
            &["secondary"],
            "already run or followed by another process of this host",
        )?;
        clients.go_on()?;
        scene.await_protected(Host::A)?;
        clients.finish()
    });
}

fn refused(scene: &Scene, host: Host, words: &[&str], why: &str) -> Result<()> {
    let ended = scene.ask(host, words)?;
    let what = format!("`kemari {}` on {}", words.join(" "), host.name());
    ensure!(!ended.success, "{what} was not refused: {}", ended.text);
    ensure!(
        ended.text.contains(why),
        "{what} does not say `{why}`: {}",
        ended.text
    );
    Ok(())
}
