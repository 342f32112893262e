//! Replicated disks: two hosts with nothing in common but the network.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::{Host, Plan, Scene, play};

/// Stops the VM on `host`, protected by the other, and compares the images.
fn stop_and_compare(scene: &mut Scene, host: Host) -> Result<()> {
    let stopped = scene.ask(host, &["stop"])?;
    ensure!(stopped.success, "{}", stopped.text);
    scene.await_clean_end(host)?;
    scene.await_clean_end(host.other())?;
    scene.compare_images()
}

fn goes_to_and_fro(flush: &'static str) {
    play(&Plan::replicated(flush), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        scene.order(&["BLKTEST", "200", "32"])?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        scene.await_primary(Host::B)?;
        scene.order(&["BLKTEST", "200", "32"])?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        clients.work(Duration::from_millis(300))?;
        scene.kill(Host::B)?;
        clients.go_on()?;
        scene.await_primary(Host::A)?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        scene.order(&["BLKTEST", "100", "8"])?;
        clients.finish()?;
        stop_and_compare(scene, Host::A)?;
        // Either may start: this one has not run last.
        scene.run(Host::B)?;
        scene.await_service(Host::B)?;
        scene.order(&["CHECK"])
    });
}

#[test]
fn a_vm_with_a_replicated_disk_goes_to_and_fro() {
    goes_to_and_fro("memory");
}

#[test]
fn a_vm_with_a_replicated_disk_whose_flushes_wait_for_both_disks_goes_to_and_fro() {
    goes_to_and_fro("both");
}
