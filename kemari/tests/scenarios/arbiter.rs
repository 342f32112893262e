//! An arbiter that cannot be reached.

use std::time::Duration;

use anyhow::ensure;
use kemari::control::Role;

use crate::support::{Host, PATIENCE, Plan, play, wait_for};

/// How long the secondary is watched while it may not take over.
const WATCHED: Duration = Duration::from_secs(1);

#[test]
fn without_an_arbiter_the_pair_goes_on_and_nobody_acts_alone() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.take_arbiter_away()?;
        clients.work(Duration::from_millis(300))?;
        scene.kill(Host::A)?;
        wait_for("the reason why B waits", PATIENCE, || {
            let waiting = scene.status(Host::B).and_then(|status| status.waiting_because);
            Ok(waiting.filter(|because| because.contains("arbiter")).map(drop))
        })?;
        let acknowledged = clients.acknowledged();
        std::thread::sleep(WATCHED);
        let role = scene.status(Host::B).map(|status| status.role);
        ensure!(
            role == Some(Role::Secondary),
            "without the arbiter's word B is {role:?}"
        );
        ensure!(
            clients.acknowledged() == acknowledged,
            "somebody answers without consent"
        );
        scene.bring_arbiter_back()?;
        clients.go_on()?;
        scene.await_primary(Host::B)?;
        clients.finish()
    });
}
