//! Deliberate faults: only in a build with the feature `faults`.

use std::time::{Duration, Instant};

use anyhow::ensure;
use kemari::control::Role;
use lab::Network;

use crate::support::{Fence, Host, PATIENCE, Plan, play, wait_for};

/// The sync of which only half is sent. The first is that which makes the pair.
const CUT_AT: u64 = 60;

#[test]
fn half_a_sync_is_rolled_back_and_nothing_is_lost() {
    play(&Plan::default(), |scene| {
        scene.secondary(Host::B)?;
        let fault = format!("CutFrameAtEpoch={CUT_AT}");
        scene.start(Host::A, &["run"], "scene.toml", &[("KEMARI_FAULTS", &fault)])?;
        scene.await_service(Host::A)?;
        scene.await_protected(Host::A)?;
        let clients = scene.clients()?;
        scene.await_log(Host::A, "the link to b is gone")?;
        clients.go_on()?;
        let protected = scene.await_protected(Host::A)?;
        ensure!(
            protected.epoch > CUT_AT,
            "the cut came at sync {} already",
            protected.epoch
        );
        ensure!(protected.counters.syncs_failed > 0, "no sync failed: {protected}");
        clients.work(Duration::from_millis(200))?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        scene.await_primary(Host::B)?;
        clients.finish()
    });
}

/// How long output gathers: much longer than ever in earnest, to be seen.
const GATHERS: Duration = Duration::from_millis(100);

/// Nobody kicks again who could remind of the output that has gathered: the loop must look at it by itself.
#[test]
fn output_that_gathers_leaves_when_it_has_gathered() {
    let plan = Plan {
        mode: "pipelined",
        protection: "max_interval_ms = 60000",
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.secondary(Host::B)?;
        let fault = format!("GatherUs={}", GATHERS.as_micros());
        scene.start(Host::A, &["run"], "scene.toml", &[("KEMARI_FAULTS", &fault)])?;
        scene.await_service(Host::A)?;
        scene.await_protected(Host::A)?;
        const ORDERS: u32 = 5;
        let begin = Instant::now();
        for _ in 0..ORDERS {
            scene.order(&["PING"])?;
        }
        let took = begin.elapsed();
        ensure!(
            took >= ORDERS * GATHERS && took < ORDERS * GATHERS * 10,
            "{ORDERS} orders took {took:?}"
        );
        let clients = scene.clients()?;
        clients.work(2 * GATHERS)?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        scene.await_primary(Host::B)?;
        clients.finish()
    });
}

/// The scenarios can see a split brain: here is one, made by taking a rule out.
#[test]
fn a_primary_that_acts_alone_without_a_term_is_seen_beside_its_successor() {
    let plan = Plan {
        fence: Fence::ProvesNothing,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.secondary(Host::B)?;
        scene.start(
            Host::A,
            &["run"],
            "scene.toml",
            &[("KEMARI_FAULTS", "ActAloneWithoutTerm")],
        )?;
        scene.await_service(Host::A)?;
        scene.await_protected(Host::A)?;
        scene.net.cut(Host::A.number(), Network::Replication)?;
        wait_for("two primaries", PATIENCE, || {
            let runs = |host| {
                scene
                    .status(host)
                    .is_some_and(|status| status.role == Role::Primary)
            };
            Ok((runs(Host::A) && runs(Host::B)).then_some(()))
        })
    });
}

#[test]
fn a_slow_disk_of_the_secondary_slows_the_guest_and_parts_nobody() {
    let plan = Plan {
        protection: "replica_queue_mib_max = 1",
        ..Plan::replicated("memory")
    };
    play(&plan, |scene| {
        scene.run(Host::A)?;
        let slow = [("KEMARI_FAULTS", "ReplicaDelayMs=30")];
        scene.start(Host::B, &["secondary"], "scene.toml", &slow)?;
        scene.await_service(Host::A)?;
        let term = scene.await_protected(Host::A)?.term;
        scene.order(&["BLKTEST", "2000", "32"])?;
        let status = scene.await_protected(Host::A)?;
        ensure!(status.term == term, "the pair parted: {status}");
        let stopped = scene.ask(Host::A, &["stop"])?;
        ensure!(stopped.success, "{}", stopped.text);
        scene.await_clean_end(Host::A)?;
        scene.await_clean_end(Host::B)?;
        scene.compare_images()
    });
}
