//! An arbiter that cannot be reached.

use std::fs::OpenOptions;
use std::time::Duration;

use anyhow::{Result, ensure};
use kemari::control::{Protection, Role, Status, Verdict};
use lab::Network;
use rustix::process::Signal;

use crate::support::{Clients, Cluster, Host, PATIENCE, Plan, Scene, play, wait_for};

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
        stands_still(scene, &clients, &[Host::B])?;
        let role = scene.status(Host::B).map(|status| status.role);
        ensure!(
            role == Some(Role::Secondary),
            "without the arbiter's word B is {role:?}"
        );
        scene.bring_arbiter_back()?;
        clients.go_on()?;
        scene.await_primary(Host::B)?;
        clients.finish()
    });
}

#[test]
fn an_arbiter_that_is_away_is_told_on_both_sides_while_the_pair_is_well() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        are_ready(scene, true)?;
        let clients = scene.clients()?;
        scene.take_arbiter_away()?;
        are_ready(scene, false)?;
        clients.work(Duration::from_millis(300))?;
        scene.bring_arbiter_back()?;
        are_ready(scene, true)?;
        clients.finish()
    });
}

/// Nobody has noticed yet when the order comes: both sides are ready, as far as they know.
#[test]
fn an_arbiter_that_has_just_gone_keeps_a_pair_together_whatever_is_ordered() {
    play(&Plan::replicated("memory"), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let pair = scene.await_protected(Host::A)?;
        for host in Host::BOTH {
            let image = OpenOptions::new().write(true).open(scene.image(host))?;
            image.set_len(2 * image.metadata()?.len())?;
        }
        let orders = ["switchover", "unprotect", "resize"].map(Order::Said);
        for order in orders.into_iter().chain(Host::BOTH.map(Order::Signal)) {
            are_ready(scene, true)?;
            scene.take_arbiter_away()?;
            match order {
                Order::Said(word) => {
                    let refused = scene.ask(Host::A, &[word])?;
                    ensure!(
                        !refused.success && refused.text.contains("stand still"),
                        "`kemari {word}` without an arbiter: {}",
                        refused.text
                    );
                }
                Order::Signal(host) => {
                    scene.signal(host, Signal::TERM)?;
                    scene.await_log(host, "this process does not end")?;
                }
            }
            clients.go_on()?;
            if order != Order::Signal(Host::B) {
                scene.bring_arbiter_back()?;
            }
        }
        let after = scene.await_status("the pair", Host::A, |status| status.role == Role::Primary)?;
        ensure!(
            (after.term, after.protection) == (pair.term, Protection::On),
            "{after:?}"
        );
        // Told so again the secondary ends: it cannot know whether only its own way to the arbiter is broken.
        scene.signal(Host::B, Signal::TERM)?;
        scene.await_clean_end(Host::B)?;
        stands_still(scene, &clients, &[Host::A])?;
        scene.bring_arbiter_back()?;
        scene.await_alone(Host::A)?;
        clients.go_on()?;
        clients.finish()
    });
}

/// What would end a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// A command to the primary.
    Said(&'static str),
    /// SIGTERM to what runs on a host.
    Signal(Host),
}

#[test]
fn a_record_that_was_lost_under_a_pair_is_told_and_given_back_while_the_vm_runs() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let refused = scene.ask(Host::A, &["adopt-record"])?;
        ensure!(
            !refused.success && refused.text.contains("nothing to give back"),
            "a record that is there is given back: {}",
            refused.text
        );
        scene.wipe_arbiter()?;
        for host in Host::BOTH {
            wait_for(&format!("the loss, as {} sees it", host.name()), PATIENCE, || {
                let status = scene.status(host);
                let reasons = status
                    .and_then(|status| status.readiness)
                    .map(|readiness| readiness.reasons);
                let is_told = |reason: &String| reason.contains("adopt-record");
                Ok(reasons.filter(|reasons| reasons.iter().any(is_told)).map(drop))
            })?;
        }
        let to_the_secondary = scene.ask(Host::B, &["adopt-record"])?;
        ensure!(
            !to_the_secondary.success,
            "the secondary gave it back: {}",
            to_the_secondary.text
        );
        let given = scene.ask(Host::A, &["adopt-record"])?;
        ensure!(given.success, "the record was not given back: {}", given.text);
        for host in Host::BOTH {
            wait_for(&format!("{} that is ready again", host.name()), PATIENCE, || {
                let readiness = scene.status(host).and_then(|status| status.readiness);
                Ok(readiness.filter(|readiness| readiness.ready).map(drop))
            })?;
        }
        clients.work(Duration::from_millis(300))?;
        scene.take_over_from(Host::A, &clients)?;
        clients.finish()
    });
}

#[test]
fn members_of_the_arbiters_cluster_die_and_come_back_under_a_protected_vm() {
    let plan = Plan {
        etcd: true,
        ..Plan::default()
    };
    play(&plan, |scene| {
        let mut etcd = Cluster::start(scene.net.outside())?;
        scene.protect()?;
        let clients = scene.clients()?;
        for member in 0..3 {
            etcd.kill(member)?;
            clients.work(Duration::from_millis(200))?;
            etcd.start_member(member)?;
            etcd.await_healthy(member)?;
        }
        // One of them is away when it comes to it, and the next one when the roles change back.
        etcd.kill(0)?;
        scene.take_over_from(Host::A, &clients)?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        etcd.start_member(0)?;
        etcd.await_healthy(0)?;
        etcd.kill(1)?;
        scene.take_over_from(Host::B, &clients)?;
        clients.finish()
    });
}

/// Whoever gets no answer cannot tell whether the record still names this pair.
#[test]
fn without_a_quorum_a_pair_that_is_well_is_in_doubt() {
    let plan = Plan {
        etcd: true,
        ..Plan::default()
    };
    play(&plan, |scene| {
        let mut etcd = Cluster::start(scene.net.outside())?;
        scene.protect()?;
        let both_are = |scene: &mut Scene, verdict: Verdict| {
            for host in Host::BOTH {
                let is_it =
                    |status: &Status| status.verdict() == verdict && status.protection == Protection::On;
                scene.await_status(&format!("{verdict:?}"), host, is_it)?;
                scene.ask_check(host, verdict as i32)?;
            }
            anyhow::Ok(())
        };
        both_are(scene, Verdict::Ready)?;
        etcd.kill(0)?;
        etcd.kill(2)?;
        both_are(scene, Verdict::Doubtful)?;
        etcd.start_member(2)?;
        both_are(scene, Verdict::Ready)
    });
}

#[test]
fn without_a_quorum_nobody_acts_alone_and_with_it_one_does() {
    let plan = Plan {
        etcd: true,
        ..Plan::default()
    };
    play(&plan, |scene| {
        let mut etcd = Cluster::start(scene.net.outside())?;
        scene.protect()?;
        let clients = scene.clients()?;
        etcd.kill(0)?;
        etcd.kill(2)?;
        clients.work(Duration::from_millis(300))?;
        // Both live, and neither hears the other.
        scene.net.cut(Host::A.number(), Network::Replication)?;
        stands_still(scene, &clients, &[Host::A, Host::B])?;
        etcd.start_member(2)?;
        clients.go_on()?;
        let runs = wait_for("one that goes on", PATIENCE, || {
            let alone = |host: &Host| {
                let status = scene.status(*host);
                status.is_some_and(|status| {
                    status.role == Role::Primary && status.protection == Protection::Off
                })
            };
            let alone: Vec<Host> = Host::BOTH.into_iter().filter(alone).collect();
            ensure!(alone.len() < 2, "both hosts run the VM");
            Ok(alone.first().copied())
        })?;
        scene.net.join(Host::A.number(), Network::Replication)?;
        if !scene.is_running(runs.other()) {
            scene.secondary(runs.other())?;
        }
        scene.await_protected(runs)?;
        // And once more, when the primary dies.
        etcd.kill(1)?;
        scene.kill(runs)?;
        stands_still(scene, &clients, &[runs.other()])?;
        etcd.start_member(1)?;
        clients.go_on()?;
        scene.await_primary(runs.other())?;
        clients.finish()
    });
}

/// Waits until both hosts say that a takeover would succeed, or that the arbiter is in its way.
fn are_ready(scene: &Scene, wanted: bool) -> Result<()> {
    for host in Host::BOTH {
        wait_for(
            &format!("{} that is ready: {wanted}", host.name()),
            PATIENCE,
            || {
                let Some(status) = scene.status(host) else {
                    return Ok(None);
                };
                let says = status.readiness.is_some_and(|readiness| {
                    let mut reasons = readiness.reasons.iter();
                    let is_away = reasons.any(|reason| reason.contains("the arbiter:"));
                    readiness.ready == wanted && (wanted || is_away)
                });
                Ok((says && status.arbiter_answered_ms.is_some()).then_some(()))
            },
        )?;
    }
    Ok(())
}

/// These hosts wait for the arbiter, and say so; clients get no answer meanwhile.
fn stands_still(scene: &Scene, clients: &Clients, hosts: &[Host]) -> Result<()> {
    for host in hosts {
        wait_for(&format!("the reason why {} waits", host.name()), PATIENCE, || {
            let waiting = scene.status(*host).and_then(|status| status.waiting_because);
            Ok(waiting.filter(|because| because.contains("arbiter")).map(drop))
        })?;
    }
    let roles = || {
        hosts
            .iter()
            .map(|host| scene.status(*host).map(|status| status.role))
    };
    let (before, acknowledged) = (roles().collect::<Vec<_>>(), clients.acknowledged());
    std::thread::sleep(WATCHED);
    ensure!(roles().collect::<Vec<_>>() == before, "the roles were {before:?}");
    ensure!(
        clients.acknowledged() == acknowledged,
        "somebody answers without consent"
    );
    Ok(())
}
