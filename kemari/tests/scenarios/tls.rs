//! An encrypted link, with a set of certificates as `kemari certs` makes it.

use std::time::Duration;

use anyhow::{Result, ensure};
use kemari::control::{Status, Verdict};
use lab::Network;

use crate::support::{Host, Plan, Scene, play};

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

/// What either side says of the certificates of both, and of their authority's.
const CERTIFICATES: [&str; 3] = ["of host `a`", "of host `b`", "of the authority"];

fn await_words(scene: &mut Scene, words: &str, is_it: impl Fn(&Status) -> bool) -> Result<()> {
    for host in Host::BOTH {
        for whose in CERTIFICATES {
            let sentence = format!("certificate {whose} {words}");
            scene.await_status(&sentence, host, |status| {
                let is_said = status.warnings.iter().any(|warning| warning.contains(&sentence));
                is_said && is_it(status)
            })?;
            scene.await_log(host, &sentence)?;
        }
    }
    Ok(())
}

#[test]
fn certificates_that_end_soon_are_told_of_by_both_sides() {
    let plan = Plan {
        tls: true,
        certificate_days: 10,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        await_words(scene, "ends in ", |status| status.verdict() == Verdict::Ready)
    });
}

#[cfg(feature = "faults")]
#[test]
fn with_certificates_that_have_ended_a_pair_is_not_ready() {
    let plan = Plan {
        tls: true,
        certificate_days: 10,
        ..Plan::default()
    };
    play(&plan, |scene| {
        // Connections are made by the clocks as they are.
        let ahead = [("KEMARI_FAULTS", "ClockAheadMs=950400000")];
        scene.start(Host::B, &["secondary"], "scene.toml", &ahead)?;
        scene.start(Host::A, &["run"], "scene.toml", &ahead)?;
        scene.await_protected(Host::A)?;
        await_words(scene, "has ended", |status| status.verdict() == Verdict::NotReady)?;
        scene.ask_check(Host::A, 1)
    });
}
