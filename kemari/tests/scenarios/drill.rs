//! Rehearsals of a takeover, while the VM works.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use kemari::control::{Command, Drill, Role, Status};

use crate::support::{Clients, Host, PATIENCE, Plan, Scene, ask, play, wait_for};

/// What `kemari drill` on the secondary says, and what is shown of it afterwards.
fn drill(scene: &mut Scene, seconds: &str) -> Result<(bool, String, Drill)> {
    let ended = scene.ask(Host::B, &["drill", "--seconds", seconds])?;
    let shown = scene.await_status("the outcome of a drill", Host::B, |status| status.drill.is_some())?;
    let drill = shown.drill.context("a drill is shown")?;
    Ok((ended.success, ended.text, drill))
}

fn passes(scene: &mut Scene, seconds: &str) -> Result<Drill> {
    let (success, text, drill) = drill(scene, seconds)?;
    ensure!(success && drill.passed, "it did not pass: {text}");
    ensure!(drill.reasons.is_empty() && text.contains("passed"), "{text}");
    Ok(drill)
}

/// Longest that a secondary may stand still for a drill here, in microseconds: a busy host may let it wait.
const STANDSTILL_US_MAX: u64 = 500_000;

/// Clients work, the disks are written, and nothing of what they were told is lost afterwards.
fn a_drill_disturbs_nobody(plan: &Plan) {
    play(plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        let before = scene.status(Host::A).context("A has a status")?;
        let drill = passes(scene, "2")?;
        ensure!(drill.ran_ms >= 2000 && drill.vcpus_ran >= 1, "{drill:?}");
        ensure!(drill.memory_copied_bytes > 0, "it touched no memory: {drill:?}");
        ensure!(
            drill.standstill_us < STANDSTILL_US_MAX,
            "the secondary stood still: {drill:?}"
        );
        let after = scene.await_protected(Host::A)?;
        ensure!(after.term == before.term, "the pair parted: {after}");
        println!("{drill}; it stood still for {} us", drill.standstill_us);
        scene.kill(Host::A)?;
        clients.go_on()?;
        let status = scene.await_primary(Host::B)?;
        ensure!(
            status.drill.is_none(),
            "a primary shows the drill of the secondary that it was"
        );
        clients.finish()
    });
}

#[test]
fn a_drill_passes_under_load_and_disturbs_nobody() {
    a_drill_disturbs_nobody(&Plan::replicated("memory"));
}

#[test]
fn a_drill_without_the_shared_disk_passes_and_disturbs_nobody() {
    a_drill_disturbs_nobody(&Plan {
        mode: "pipelined",
        vcpus: 2,
        ..Plan::default()
    });
}

/// They are opened anew for it, with their locks and backing files, as for a takeover.
#[test]
fn a_drill_has_the_images_that_are_only_read() {
    let plan = Plan {
        reads_qcow2: true,
        ..Plan::replicated("memory")
    };
    play(&plan, |scene| {
        scene.make_read_only_images()?;
        scene.protect()?;
        passes(scene, "1").map(drop)
    });
}

/// What the guest has broken itself goes on as broken after a takeover.
#[test]
fn a_device_that_the_guest_has_broken_before_makes_no_drill_fail() {
    play(&Plan::replicated("memory"), |scene| {
        scene.protect()?;
        let load = scene.load();
        let abuse = thread::spawn(move || ask(&load, &["ABUSE", "badqueue", "6000"]).map(drop));
        scene.await_log(Host::A, "the guest's driver broke the rules")?;
        passes(scene, "1")?;
        abuse.join().map_err(|_| anyhow!("it panics"))??;
        scene.order(&["PING"])?;
        scene.await_protected(Host::A)?;
        Ok(())
    });
}

/// Milliseconds in which answers are counted.
const COUNTED_MS: u64 = 1500;

fn answers_per_s(clients: &Clients) -> f64 {
    let before = clients.acknowledged();
    thread::sleep(Duration::from_millis(COUNTED_MS));
    (clients.acknowledged() - before) as f64 * 1000.0 / COUNTED_MS as f64
}

/// The part of the answers that is to be left beside a drill.
const LEFT: f64 = 0.8;
/// The part that is left at any rate: a machine with few processors, all of it busy with others,
/// says little more.
const LEFT_MIN: f64 = 0.25;
/// Times that both are counted, in turns: what else this host does must not count for one of them only.
const ROUNDS_MIN: usize = 3;
const ROUNDS_MAX: usize = 6;

#[test]
fn syncs_go_on_while_a_drill_runs() {
    let plan = Plan {
        mode: "pipelined",
        ..Plan::replicated("memory")
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let (mut alone, mut beside) = (0.0, 0.0);
        for round in 1..=ROUNDS_MAX {
            alone += answers_per_s(&clients);
            let client = scene.client(Host::B);
            let asked = thread::spawn(move || client.command(Command::Drill { seconds: 2 }));
            // Its preparation counts, too.
            beside += answers_per_s(&clients);
            asked.join().map_err(|_| anyhow!("the order panicked"))??;
            println!(
                "answers in a second, mean of {round}: {:.0} alone, {:.0} beside a drill",
                alone / round as f64,
                beside / round as f64
            );
            if round >= ROUNDS_MIN && beside >= alone * LEFT {
                break;
            }
        }
        ensure!(
            beside > alone * LEFT_MIN,
            "of {alone:.0} answers {beside:.0} are left beside a drill"
        );
        clients.finish()
    });
}

/// What the guest of a drill does to its disk is thrown away, and so are the pages that it changes.
#[test]
fn what_a_drill_does_is_thrown_away() {
    play(&Plan::replicated("both"), |scene| {
        scene.protect()?;
        let load = scene.load();
        let writing = thread::spawn(move || ask(&load, &["DISKLOOP", "randwrite", "5"]));
        thread::sleep(Duration::from_millis(500));
        let drill = passes(scene, "2")?;
        writing.join().map_err(|_| anyhow!("the load panicked"))??;
        ensure!(drill.disk_written_bytes > 0, "its guest wrote nothing: {drill:?}");
        scene.order(&["BLKTEST", "200", "32"])?;
        let stopped = scene.ask(Host::A, &["stop"])?;
        ensure!(stopped.success, "{}", stopped.text);
        scene.await_clean_end(Host::A)?;
        scene.await_clean_end(Host::B)?;
        scene.compare_images()
    });
}

#[test]
fn a_takeover_ends_a_drill_at_once() {
    play(&Plan::replicated("memory"), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let client = scene.client(Host::B);
        let asked = thread::spawn(move || client.command(Command::Drill { seconds: 30 }));
        scene.await_log(Host::B, "a drill begins")?;
        clients.work(Duration::from_millis(500))?;
        ensure!(!asked.is_finished(), "the drill has ended already");
        scene.kill(Host::A)?;
        let outcome = asked.join().map_err(|_| anyhow!("the order panicked"))?;
        let refused = outcome
            .err()
            .context("a drill that was cut short has passed")?
            .to_string();
        ensure!(refused.contains("cut short"), "{refused}");
        clients.go_on()?;
        let status = scene.await_primary(Host::B)?;
        ensure!(status.drill.is_none(), "a drill without an outcome is shown");
        clients.finish()
    });
}

#[test]
fn drills_come_by_themselves_and_are_refused_where_there_is_nothing_to_try() {
    let plan = Plan {
        protection: "drill_interval_s = 10",
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.secondary(Host::B)?;
        scene.await_status("a secondary", Host::B, |status| status.role == Role::Secondary)?;
        let refused = scene.ask(Host::B, &["drill"])?;
        ensure!(
            !refused.success && refused.text.contains("not protected by this secondary"),
            "{}",
            refused.text
        );
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        scene.await_protected(Host::A)?;
        let refused = scene.ask(Host::A, &["drill"])?;
        ensure!(refused.text.contains("the secondary's"), "{}", refused.text);
        let refused = scene.ask(Host::B, &["drill", "--seconds", "31"])?;
        ensure!(!refused.success, "{}", refused.text);
        let passed = |status: &Status| status.drill.as_ref().is_some_and(|drill| drill.passed);
        // One that a busy host has cut short is followed by another.
        wait_for("a drill that came by itself", 3 * PATIENCE, || {
            Ok(scene.status(Host::B).filter(passed))
        })?;
        Ok(())
    });
}

/// What a drill says of a state that nobody can go on from.
#[cfg(feature = "faults")]
fn fails(scene: &mut Scene, seconds: &str) -> Result<()> {
    let (success, text, drill) = drill(scene, seconds)?;
    ensure!(
        !success && !drill.passed && !drill.inconclusive,
        "it passed: {text}"
    );
    ensure!(!drill.reasons.is_empty() && text.contains("FAILED"), "{text}");
    println!("{text}");
    let says_so = |status: &Status| {
        let readiness = status.readiness.as_ref();
        readiness.is_some_and(|readiness| {
            let mut reasons = readiness.reasons.iter();
            !readiness.ready && reasons.any(|reason| reason.contains("the last drill failed"))
        })
    };
    for host in Host::BOTH {
        scene.await_status("a pair that is not ready", host, says_so)?;
    }
    Ok(())
}

#[cfg(feature = "faults")]
#[test]
fn a_state_that_was_destroyed_is_found_and_the_pair_is_not_ready() {
    // A difference to a page that was spoilt would be refused, and end the pair first.
    let plan = Plan {
        protection: "delta = \"off\"",
        ..Plan::replicated("memory")
    };
    play(&plan, |scene| {
        scene.protect_with(Host::B, "SpoilMemoryMib=64")?;
        fails(scene, "3")
    });
}

/// All else of the state is whole, and it loads.
#[cfg(feature = "faults")]
#[test]
fn vcpus_that_were_damaged_are_found_and_the_pair_is_not_ready() {
    play(&Plan::replicated("memory"), |scene| {
        scene.protect_with(Host::B, "SpoilVcpus")?;
        // Where the guest was, and its stack.
        fails(scene, "3")?;
        fails(scene, "3")
    });
}
