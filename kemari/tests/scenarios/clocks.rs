//! Hosts whose wall clocks are wrong. No decision uses them: only the guest's clock and certificates do.
//!
//! The clock of one program is shifted by Debian's libfaketime, which leaves the monotonic clock alone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari::control::Role;

use crate::support::{Host, Plan, Scene, play};

/// The library that shifts a clock.
const SHIFTS: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// Longest takeover that is reported, in milliseconds: nothing like the clocks' difference.
const TAKEOVER_MS_MAX: f64 = 10_000.0;

/// Starts a secondary whose clock is off by `shift`.
fn shifted(scene: &mut Scene, host: Host, shift: &str) -> Result<()> {
    ensure!(
        std::path::Path::new(SHIFTS).exists(),
        "{SHIFTS} is missing: install Debian's package faketime"
    );
    let env = [
        ("LD_PRELOAD", SHIFTS),
        ("FAKETIME", shift),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ];
    scene.start(host, &["secondary"], "scene.toml", &env)
}

/// There and back: first the new host's clock is ahead, then behind.
#[test]
fn clocks_that_differ_by_hours_decide_nothing() {
    let plan = Plan {
        tls: true,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.run(Host::A)?;
        shifted(scene, Host::B, "+5h")?;
        scene.await_service(Host::A)?;
        scene.await_protected(Host::A)?;
        let clients = scene.clients()?;
        // Longer than every time-out: nobody suspects anybody.
        clients.work(Duration::from_secs(3))?;
        scene.await_protected(Host::A)?;
        for (dies, wins) in [(Host::A, Host::B), (Host::B, Host::A)] {
            let term = scene.status(dies).context("it answers")?.term;
            scene.kill(dies)?;
            clients.go_on()?;
            let status = scene.await_primary(wins)?;
            let takeover = status.takeover.context("a takeover is reported")?;
            ensure!(
                (0.0..TAKEOVER_MS_MAX).contains(&takeover.ms),
                "the takeover took {} ms",
                takeover.ms
            );
            ensure!(status.term > term, "no term was won");
            if wins == Host::B {
                scene.await_log(Host::B, "the wall clocks of the hosts disagree")?;
                scene.secondary(Host::A)?;
                scene.await_protected(Host::B)?;
            }
        }
        clients.finish()
    });
}

#[test]
fn a_certificate_that_is_not_valid_yet_is_said_to_be_a_matter_of_the_clock() {
    let plan = Plan {
        tls: true,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        shifted(scene, Host::B, "-3d")?;
        scene.await_log(Host::B, "it is not valid yet: a host's clock is wrong")?;
        let clients = scene.clients()?;
        clients.work(Duration::from_secs(1))?;
        let status = scene.await_alone(Host::A)?;
        ensure!(status.role == Role::Primary, "{status}");
        clients.finish()
    });
}
