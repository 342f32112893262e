//! An encrypted link, with a set of certificates as `kemari certs` makes it.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::Network;

use crate::support::{Host, Plan, play};

#[test]
fn an_encrypted_pair_takes_over_and_is_made_again() {
    let plan = Plan {
        tls: true,
        ..Plan::default()
    };
    play(&plan, |scene| -> Result<()> {
        scene.protect()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        scene.take_over_from(Host::A, &clients)?;
        scene.secondary(Host::A)?;
        let paired = scene.await_protected(Host::B)?;
        // A silence shorter than the suspicion time parts nobody.
        scene.net.cut(Host::A.number(), Network::Replication)?;
        std::thread::sleep(Duration::from_millis(300));
        scene.net.join(Host::A.number(), Network::Replication)?;
        clients.go_on()?;
        ensure!(
            scene.await_protected(Host::B)?.term == paired.term,
            "the pair parted"
        );
        scene.take_over_from(Host::B, &clients)?;
        clients.finish()
    });
}

#[test]
fn a_primary_without_encryption_gets_no_secondary() {
    let plan = Plan {
        tls: true,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.write_config("plain.toml", &Plan::default())?;
        scene.secondary(Host::B)?;
        scene.start(Host::A, &["run"], "plain.toml", &[])?;
        scene.await_service(Host::A)?;
        let clients = scene.clients()?;
        scene.await_log(Host::B, "was refused")?;
        clients.work(Duration::from_secs(1))?;
        scene.await_alone(Host::A)?;
        clients.finish()
    });
}
