//! Cuts during the first copy.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kemari::control::{Protection, Role, Status};
use lab::Network;

use crate::support::{Host, PATIENCE, Plan, Scene, play};

/// Guest memory that makes the copy last long enough to be hit.
const MEMORY_MIB: u32 = 512;

/// What is copied over a slow link, in MiB: it takes some seconds.
const SLOW_COPY_MIB: u32 = 112;

fn plan() -> Plan {
    Plan {
        memory_mib: MEMORY_MIB,
        ..Plan::default()
    }
}

#[test]
fn a_secondary_that_dies_in_the_first_copy_is_replaced() {
    play(&plan(), |scene| {
        begin_copy(scene)?;
        let clients = scene.clients()?;
        scene.secondary(Host::B)?;
        await_copying(scene)?;
        scene.kill(Host::B)?;
        clients.go_on()?;
        scene.await_alone(Host::A)?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        clients.go_on()?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn a_cut_during_the_new_protection_after_a_takeover_loses_nothing() {
    play(&plan(), |scene| {
        begin_copy(scene)?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        let clients = scene.clients()?;
        scene.take_over_from(Host::A, &clients)?;
        // The host that returns dies again while it is copied to, and then the link breaks in the next copy.
        scene.secondary(Host::A)?;
        await_copying_on(scene, Host::B)?;
        scene.kill(Host::A)?;
        clients.go_on()?;
        scene.await_alone(Host::B)?;
        scene.secondary(Host::A)?;
        await_copying_on(scene, Host::B)?;
        scene.net.cut(Host::A.number(), Network::Replication)?;
        clients.go_on()?;
        scene.net.join(Host::A.number(), Network::Replication)?;
        scene.await_protected(Host::B)?;
        clients.go_on()?;
        scene.take_over_from(Host::B, &clients)?;
        clients.finish()
    });
}

#[test]
fn a_primary_that_dies_in_the_first_copy_is_booted_again_by_the_operator() {
    play(&plan(), |scene| {
        begin_copy(scene)?;
        let mut seen = scene.clients()?.stop()?;
        let term = scene.await_alone(Host::A)?.term;
        scene.secondary(Host::B)?;
        await_copying(scene)?;
        scene.kill(Host::A)?;
        // B holds nothing whole: it waits, and nobody runs the VM.
        std::thread::sleep(Duration::from_millis(1500));
        let status = scene.await_status("waiting", Host::B, |status| status.role == Role::Secondary)?;
        ensure!(
            status.protection == Protection::Off,
            "B believes that it holds something: {status}"
        );
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        seen.judge()?;
        ensure!(
            scene.await_protected(Host::A)?.term > term + 1,
            "a new term for each membership"
        );
        seen.judge()
    });
}

/// Heartbeats do not wait behind the copy, and a copy that takes all of the link is no reason to suspect
/// anybody.
#[test]
fn a_first_copy_that_takes_all_of_a_slow_link_is_no_silence() {
    let plan = Plan {
        memory_mib: SLOW_COPY_MIB,
        ..Plan::default()
    };
    play(&plan, |scene| {
        slow_down(scene)?;
        begin_copy(scene)?;
        copies_in_peace(scene)
    });
}

#[test]
fn a_copy_of_a_disk_that_takes_all_of_a_slow_link_is_no_silence() {
    play(&Plan::replicated("memory"), |scene| {
        for host in Host::BOTH {
            let image = File::options().write(true).open(scene.image(host))?;
            image.set_len(u64::from(SLOW_COPY_MIB) << 20)?;
        }
        // Beyond what the guest uses; noise, which nothing makes shorter.
        let mut noise = File::options().write(true).open(scene.image(Host::A))?;
        noise.seek(SeekFrom::Start(16 << 20))?;
        let bytes = u64::from(SLOW_COPY_MIB - 16) << 20;
        std::io::copy(&mut File::open("/dev/urandom")?.take(bytes), &mut noise)?;
        slow_down(scene)?;
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        copies_in_peace(scene)
    });
}

/// Lets less through between the hosts than a copy could send.
fn slow_down(scene: &Scene) -> Result<()> {
    for host in Host::BOTH {
        let mut tc = scene.net.host(host.number()).netns().command("tc");
        let limited = tc
            .args(["qdisc", "add", "dev", "replication", "root", "tbf"])
            .args(["rate", "160mbit", "burst", "64kb", "latency", "300ms"])
            .status()?;
        ensure!(limited.success(), "the link cannot be limited");
    }
    Ok(())
}

/// A secondary joins: it is copied to once, which takes several times the suspicion time-out,
/// and nobody is suspected.
fn copies_in_peace(scene: &mut Scene) -> Result<()> {
    let term = scene.await_alone(Host::A)?.term;
    scene.secondary(Host::B)?;
    let clients = scene.clients()?;
    let begin = Instant::now();
    let status = scene.await_protected(Host::A)?;
    ensure!(
        begin.elapsed() > Duration::from_secs(3),
        "the copy took only {:?}: it shows nothing",
        begin.elapsed()
    );
    ensure!(
        status.term == term + 1,
        "the copy was begun anew: term {}",
        status.term
    );
    for host in Host::BOTH {
        let log = scene.log(host);
        ensure!(!log.contains("silent"), "{} was suspicious:\n{log}", host.name());
        ensure!(!log.contains("session with the secondary ended"), "{log}");
    }
    clients.go_on()?;
    clients.finish()
}

/// Runs the VM on A, with memory that is not all zeros.
fn begin_copy(scene: &mut Scene) -> Result<()> {
    scene.run(Host::A)?;
    scene.await_service(Host::A)?;
    let pages = scene.info("pattern_pages")?;
    scene.order(&["DIRTY", &pages.to_string()])
}

/// Waits until the primary's copy is under way, without a pause in between: it does not last long.
fn await_copying(scene: &Scene) -> Result<()> {
    await_copying_on(scene, Host::A)
}

fn await_copying_on(scene: &Scene, primary: Host) -> Result<()> {
    let under_way = |status: &Status| match status.protection {
        Protection::Copying { done_bytes, .. } => done_bytes > 4 << 20,
        _ => false,
    };
    let begin = std::time::Instant::now();
    loop {
        let status = scene.status(primary);
        if status.as_ref().is_some_and(under_way) {
            return Ok(());
        }
        let is_over = status.is_some_and(|status| status.protection == Protection::On);
        ensure!(
            !is_over && begin.elapsed() < PATIENCE,
            "the first copy was not seen"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}
