//! Deliberate faults: only in a build with the feature `faults`.

use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use kemari::control::{DiskState, Role, Status};
use lab::Network;

use crate::replica::SmallDisk;
use crate::support::{Fence, Host, PATIENCE, Plan, Scene, ask, play, stop_threads, wait_for};

/// The sync of which only half is sent. The first is that which makes the pair.
const CUT_AT: u64 = 60;

#[test]
fn half_a_sync_is_rolled_back_and_nothing_is_lost() {
    play(&Plan::default(), |scene| {
        scene.protect_with(Host::A, &format!("CutFrameAtEpoch={CUT_AT}"))?;
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
        scene.take_over_from(Host::A, &clients)?;
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
        scene.protect_with(Host::A, &format!("GatherUs={}", GATHERS.as_micros()))?;
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
        scene.take_over_from(Host::A, &clients)?;
        clients.finish()
    });
}

/// The ack of each sync takes so long: longer than a guest may stand still for it.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// A pipelined guest that waits for acks is let go when they do not come.
#[test]
fn a_guest_that_stands_still_for_acks_does_so_for_ten_milliseconds_at_most() {
    let plan = Plan {
        mode: "pipelined",
        ..Plan::default()
    };
    play(&plan, |scene| {
        let fault = format!("AckDelayMs={}", ACK_DELAY.as_millis());
        scene.start(
            Host::B,
            &["secondary"],
            "scene.toml",
            &[("KEMARI_FAULTS", &fault)],
        )?;
        scene.start(
            Host::A,
            &["run"],
            "scene.toml",
            &[("KEMARI_FAULTS", "GuestWaits")],
        )?;
        scene.await_service(Host::A)?;
        scene.await_protected(Host::A)?;
        for _ in 0..10 {
            scene.order(&["PING"])?;
        }
        let waited = |status: &Status| status.timings.sync_us.count >= 10;
        let status = scene.await_status("its syncs", Host::A, waited)?;
        ensure!(
            status.to_string().contains("the guest waits for acks"),
            "{status}"
        );
        let timings = status.timings;
        let (sync_us, pause_us) = (
            timings.sync_us.quantile_us(0.5),
            timings.pause_us.quantile_us(0.5),
        );
        ensure!(
            sync_us >= ACK_DELAY.as_micros() as u64,
            "a sync took {sync_us} us: the acks were not late"
        );
        ensure!(
            (9_000..50_000).contains(&pause_us),
            "the guest stood still for {pause_us} us of {sync_us}"
        );
        let clients = scene.clients()?;
        clients.work(Duration::from_secs(1))?;
        scene.take_over_from(Host::A, &clients)?;
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
        scene.protect_with(Host::A, "ActAloneWithoutTerm")?;
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
        scene.protect_with(Host::B, "ReplicaDelayMs=15")?;
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

/// Cuts the link while a secondary makes something ready, until both have noticed.
fn part_before_protection(scene: &Scene) -> Result<()> {
    scene.net.cut(Host::A.number(), Network::Replication)?;
    for host in Host::BOTH {
        wait_for("the end of the session", PATIENCE, || {
            let peer = scene.status(host).map(|status| status.peer.is_some());
            Ok((peer == Some(false)).then_some(()))
        })?;
    }
    Ok(scene.net.join(Host::A.number(), Network::Replication)?)
}

fn ensure_never_in_use(scene: &Scene) -> Result<()> {
    for host in Host::BOTH {
        ensure!(
            !scene.log(host).contains("in use"),
            "an attempt failed for the images of the one before"
        );
    }
    Ok(())
}

#[test]
fn a_standby_that_was_begun_for_a_session_that_broke_is_the_next_ones() {
    play(&Plan::replicated("memory"), |scene| {
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let slow = [("KEMARI_FAULTS", "PrepareDelayMs=8000")];
        scene.start(Host::B, &["secondary"], "scene.toml", &slow)?;
        let says = |status: &Status, text| {
            let waits = status.waiting_because.as_deref().unwrap_or_default();
            waits.contains("making the standby VM ready for ") && waits.contains(text)
        };
        scene.await_status("a standby that is made", Host::B, |status| {
            says(status, " s: 64 MiB of memory")
        })?;
        part_before_protection(scene)?;
        scene.await_status("the same for the next session", Host::B, |status| {
            says(status, "begun for an earlier session")
        })?;
        scene.await_protected(Host::A)?;
        ensure_never_in_use(scene)?;
        scene.await_log(
            Host::B,
            "the standby VM that was begun for an earlier session is this one's",
        )
    });
}

#[test]
fn what_a_standby_was_given_is_finished_before_the_next_one_has_its_images() {
    let plan = Plan {
        protection: "resync_mib_per_s_max = 2",
        ..Plan::replicated("memory")
    };
    play(&plan, |scene| {
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        scene.secondary(Host::B)?;
        scene.await_status("a copy", Host::B, |status| {
            status
                .disks
                .first()
                .is_some_and(|disk| disk.state == DiskState::Copying)
        })?;
        let stopped = stop_threads(scene.pid(Host::B)?, "replica")?;
        scene.await_status("work that waits for the image", Host::B, |status| {
            status.disks.first().is_some_and(|disk| disk.queued_bytes > 0)
        })?;
        part_before_protection(scene)?;
        scene.await_status("the end of that work", Host::B, |status| {
            let waits = status.waiting_because.as_deref().unwrap_or_default();
            waits.contains("the disk images of the one before are finished")
        })?;
        drop(stopped);
        scene.await_protected(Host::A)?;
        ensure_never_in_use(scene)
    });
}

/// What was committed and not carried out when the primary died meets a full file system: it is tried again.
#[test]
fn a_winner_whose_image_has_no_room_goes_on_when_there_is_some() {
    play(&Plan::replicated("memory"), |scene| {
        let image = scene.image(Host::B);
        let directory = image.parent().context("the image lies in a directory")?;
        let bytes = fs::metadata(scene.image(Host::A))?.len();
        let _small = SmallDisk::over(directory, 4 * bytes)?;
        fs::File::create(&image)?.set_len(bytes)?;
        scene.protect_with(Host::B, "ReplicaDelayMs=100")?;
        let clients = scene.clients()?;
        let load = scene.load();
        // Checks each block that it reads against what it has written.
        let test = thread::spawn(move || ask(&load, &["BLKTEST", "400", "32"]).map(drop));
        scene.await_status("work that waits for the image", Host::B, |status| {
            status
                .disks
                .first()
                .is_some_and(|disk| disk.queued_requests > 100)
        })?;
        scene.kill(Host::A)?;
        scene.await_status("the restore", Host::B, |status| {
            let waits = status.waiting_because.as_deref().unwrap_or_default();
            waits.contains("restoring the last commit")
        })?;
        let filler = directory.join("filler");
        let full = fs::write(&filler, vec![1; 4 * bytes as usize]);
        ensure!(full.is_err(), "the file system has room for everything");
        scene.await_log(Host::B, "could not be restored: ")?;
        fs::remove_file(&filler)?;
        clients.go_on()?;
        scene.await_primary(Host::B)?;
        test.join().expect("the thread of the test")?;
        scene.order(&["CHECK"])?;
        clients.finish()
    });
}
