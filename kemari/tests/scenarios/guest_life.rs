//! What the guest does to its machine while it is protected: reboot, reset of its queues, power-off.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::{Host, PATIENCE, Plan, Scene, play, wait_for};

/// Resets of the queues under load before the cut.
const RESETS: u32 = 3;

#[test]
fn a_guest_reboots_under_protection_and_is_taken_over_after_it() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let mut before = scene.clients()?.stop()?;
        before.judge()?;
        let boots = scene.info("boots")?;
        scene.order(&["REBOOT"])?;
        await_boot(scene, boots + 1)?;
        scene.await_protected(Host::A)?;
        before.judge()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(200))?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        before.judge()?;
        ensure!(
            scene.info("boots")? == boots + 1,
            "the guest booted again at the takeover"
        );
        clients.finish()
    });
}

#[test]
fn a_guest_that_resets_its_queues_at_the_cut_loses_nothing() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        for _ in 0..RESETS {
            scene.order(&["RESETQ"])?;
            clients.go_on()?;
        }
        // The last reset is under way when its host dies: its answer comes from the other one.
        let load = scene.load();
        let reset = std::thread::spawn(move || crate::support::ask(&load, &["RESETQ"]).map(drop));
        std::thread::sleep(Duration::from_millis(4));
        scene.take_over_from(Host::A, &clients)?;
        reset.join().expect("the thread does not panic")?;
        scene.order(&["CHECK"])?;
        clients.finish()
    });
}

#[test]
fn a_guest_that_powers_off_ends_both_sides_and_may_be_started_on_the_other_host() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let mut seen = scene.clients()?.stop()?;
        seen.judge()?;
        // Its answer may be lost with the machine.
        let _ = scene.order(&["POWEROFF"]);
        scene.await_clean_end(Host::A)?;
        scene.await_clean_end(Host::B)?;
        ensure!(
            !scene.log(Host::B).contains("the VM goes on here"),
            "B ran a VM that had powered off"
        );
        scene.run(Host::B)?;
        scene.await_service(Host::B)?;
        seen.judge()
    });
}

fn await_boot(scene: &Scene, boots: u64) -> Result<()> {
    wait_for("the guest's boot", PATIENCE, || {
        Ok(scene.info("boots").ok().filter(|now| *now >= boots).map(drop))
    })
}
