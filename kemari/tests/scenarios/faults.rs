//! Deliberate faults: only in a build with the feature `faults`.

use std::time::Duration;

use anyhow::ensure;

use crate::support::{Host, Plan, play};

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
