//! Replicated disks: two hosts with nothing in common but the network.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari::control::{Protection, Role};
use xtask::tools::output_of;

use crate::support::{Host, Plan, Scene, ask, play, stop_threads, wait_for, written_blocks};

/// Within so long a primary finds a secondary that has come.
const CONNECTS_MAX: Duration = Duration::from_secs(30);

/// Stops the VM on `host`, protected by the other, and compares the images.
fn stop_and_compare(scene: &mut Scene, host: Host) -> Result<()> {
    let stopped = scene.ask(host, &["stop"])?;
    ensure!(stopped.success, "{}", stopped.text);
    scene.await_clean_end(host)?;
    scene.await_clean_end(host.other())?;
    scene.compare_images()
}

/// KiB that the last copy to a secondary compared, and that it sent.
fn last_copy(scene: &Scene, host: Host) -> Result<(u64, u64)> {
    let log = scene.log(host);
    let line = log
        .lines()
        .rfind(|line| line.contains("the disks are copied"))
        .context("no copy is in the log")?;
    let (_, line) = line
        .split_once("the disks are copied")
        .context("the line is another")?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    Ok((
        numbers.next().context("no number")?,
        numbers.next().context("one number")?,
    ))
}

fn goes_to_and_fro(flush: &'static str) {
    play(&Plan::replicated_widely(flush), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        scene.order(&["BLKTEST", "200", "32"])?;
        scene.take_over_from(Host::A, &clients)?;
        scene.order(&["BLKTEST", "200", "32"])?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        clients.work(Duration::from_millis(300))?;
        scene.take_over_from(Host::B, &clients)?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        scene.order(&["BLKTEST", "100", "8"])?;
        clients.finish()?;
        stop_and_compare(scene, Host::A)?;
        // Either may start: this one has not run last.
        scene.run(Host::B)?;
        scene.await_service(Host::B)?;
        scene.order(&["CHECK"])
    });
}

/// Most blocks of 512 bytes that an image of mostly nothing may take: 64 MiB.
const SPARSE_BLOCKS_MAX: u64 = 128 << 10;

/// A copy takes as long as what there is, not as the disk is large:
/// at the speed of reading this would take an hour.
#[test]
fn holes_of_a_large_disk_are_neither_read_nor_made_data() {
    use std::os::unix::fs::MetadataExt;
    const DISK_BYTES: u64 = 256 << 30;
    play(&Plan::replicated("memory"), |scene| {
        for host in Host::BOTH {
            let image = fs::OpenOptions::new().write(true).open(scene.image(host))?;
            image.set_len(DISK_BYTES)?;
        }
        scene.protect()?;
        scene.order(&["BLKTEST", "100", "8"])?;
        ensure!(
            last_copy(scene, Host::A)?.0 == DISK_BYTES >> 10,
            "not all was compared"
        );
        scene.kill(Host::A)?;
        scene.await_primary(Host::B)?;
        scene.order(&["BLKTEST", "100", "8"])?;
        for host in Host::BOTH {
            let blocks = fs::metadata(scene.image(host))?.blocks();
            ensure!(blocks <= SPARSE_BLOCKS_MAX, "{host:?}: {blocks} blocks are data");
        }
        Ok(())
    });
}

#[test]
fn a_vm_with_a_replicated_disk_goes_to_and_fro() {
    goes_to_and_fro("memory");
}

#[test]
fn a_vm_with_a_replicated_disk_whose_flushes_wait_for_both_disks_goes_to_and_fro() {
    goes_to_and_fro("both");
}

#[test]
fn kills_in_the_middle_of_overlapping_writes_leave_the_disk_at_the_committed_state() {
    play(&Plan::replicated_widely("memory"), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let mut primary = Host::A;
        for pause_ms in [40, 130, 7, 260, 90, 170] {
            let load = scene.load();
            // Checks each block that it reads against what it has written.
            let test = thread::spawn(move || ask(&load, &["BLKTEST", "1500", "32"]).map(drop));
            thread::sleep(Duration::from_millis(pause_ms));
            scene.kill(primary)?;
            clients.go_on()?;
            scene.await_primary(primary.other())?;
            test.join().expect("the thread of the test")?;
            scene.order(&["CHECK"])?;
            scene.secondary(primary)?;
            primary = primary.other();
            scene.await_protected(primary)?;
        }
        clients.finish()?;
        stop_and_compare(scene, primary)
    });
}

#[test]
fn after_a_short_absence_only_what_differs_is_copied() {
    play(&Plan::replicated_widely("memory"), |scene| {
        scene.protect()?;
        scene.order(&["BLKTEST", "500", "32"])?;
        // What was committed and is not written yet goes with the process, and would be sent again.
        thread::sleep(Duration::from_millis(300));
        scene.await_status("an empty queue", Host::B, |status| {
            status.disks.iter().all(|disk| disk.queued_bytes == 0)
        })?;
        scene.kill(Host::B)?;
        scene.await_alone(Host::A)?;
        for number in 0..3 {
            scene.order(&["SET", &format!("key-{number}"), "value"])?;
        }
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        let (_, sent_kib) = last_copy(scene, Host::A)?;
        ensure!(
            (1..1024).contains(&sent_kib),
            "{sent_kib} KiB were sent after three small writes"
        );
        stop_and_compare(scene, Host::A)
    });
}

#[test]
fn a_copy_that_is_cut_again_and_again_goes_on_where_it_was_and_a_half_copy_never_runs() {
    let plan = Plan {
        protection: "resync_mib_per_s_max = 8",
        ..Plan::replicated("memory")
    };
    play(&plan, |scene| {
        // Of holes nothing would be read, and the copy would be over before it is cut.
        let image = fs::OpenOptions::new().write(true).open(scene.image(Host::A))?;
        image.write_all_at(&vec![7; 12 << 20], 4 << 20)?;
        drop(image);
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        scene.order(&["BLKTEST", "2000", "32"])?;
        for (round, pause_ms) in [400, 900, 1300].into_iter().enumerate() {
            scene.secondary(Host::B)?;
            wait_for("the primary's connection", CONNECTS_MAX, || {
                let connected = scene.log(Host::B).matches("has connected").count();
                Ok((connected > round).then_some(()))
            })?;
            thread::sleep(Duration::from_millis(pause_ms));
            scene.kill(Host::B)?;
            scene.order(&["BLKTEST", "20", "4"])?;
        }
        let refused = scene.ask(Host::B, &["run"])?;
        ensure!(
            !refused.success && refused.text.contains("is inconsistent"),
            "a half copy was started: {}",
            refused.text
        );
        let refused = scene.ask(Host::B, &["run", "--adopt-disks"])?;
        ensure!(!refused.success, "a half copy was adopted: {}", refused.text);
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        scene.kill(Host::A)?;
        scene.await_primary(Host::B)?;
        scene.await_service(Host::B)?;
        scene.order(&["CHECK"])?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        stop_and_compare(scene, Host::B)
    });
}

#[test]
fn the_side_that_ran_last_starts_and_the_other_is_refused_until_the_operator_says_so() {
    play(&Plan::replicated("memory"), |scene| {
        scene.protect()?;
        scene.kill(Host::B)?;
        let term = scene.await_alone(Host::A)?.term.to_string();
        scene.order(&["SET", "late", "1"])?;
        scene.kill(Host::A)?;
        for words in [vec!["run"], vec!["run", "--assert-dead", &term]] {
            let refused = scene.ask(Host::B, &words)?;
            ensure!(
                !refused.success && refused.text.contains("last run by a in term"),
                "the older image was started: {}",
                refused.text
            );
        }
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        scene.order(&["GET", "late"])?;
        let term = scene.await_primary(Host::A)?.term.to_string();
        scene.kill(Host::A)?;
        // The operator gives A's image up, and B's begins a history of its own.
        let words = ["run", "--assert-dead", &term, "--adopt-disks"];
        scene.start(Host::B, &words, "scene.toml", &[])?;
        scene.await_service(Host::B)?;
        let before = written_blocks(&scene.image(Host::A))?;
        scene.secondary(Host::A)?;
        let refused = scene.await_status("a refusal", Host::B, |status| {
            let reason = status.waiting_because.as_deref().unwrap_or_default();
            reason.contains("of another history")
        })?;
        ensure!(
            before == written_blocks(&scene.image(Host::A))?,
            "A's image was written"
        );
        let reason = refused.waiting_because.unwrap_or_default();
        let (_, rest) = reason
            .split_once("--overwrite-disks ")
            .context("the refusal names no history")?;
        // Behind it may stand when it is tried again.
        let id = rest.split(';').next().unwrap_or_default();
        scene.kill(Host::A)?;
        scene.start(
            Host::A,
            &["secondary", "--overwrite-disks", id.trim()],
            "scene.toml",
            &[],
        )?;
        scene.await_protected(Host::B)?;
        stop_and_compare(scene, Host::B)
    });
}

/// A small file system in memory, unmounted when dropped.
pub(crate) struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// Mounts it over a directory.
    pub(crate) fn over(directory: &'a Path, bytes: u64) -> Result<Self> {
        let size = format!("size={bytes}");
        output_of(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                .arg(directory),
        )?;
        Ok(Self(directory))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Lazily: a process may still have the image open.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_of_the_secondary_gives_up_the_protection_and_the_vm_lives() {
    play(&Plan::replicated("memory"), |scene| {
        let image = scene.image(Host::B);
        let directory = image.parent().context("the image lies in a directory")?;
        let _small = SmallDisk::over(directory, 1 << 20)?;
        fs::File::create(&image)?.set_len(fs::metadata(scene.image(Host::A))?.len())?;
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let clients = scene.clients()?;
        scene.secondary(Host::B)?;
        scene.order(&["BLKTEST", "1000", "32"])?;
        let status = scene.await_status("a reason", Host::A, |status| {
            let reason = status.waiting_because.as_deref().unwrap_or_default();
            reason.contains("cannot be written") && reason.contains("No space left")
        })?;
        ensure!(
            status.role == Role::Primary && status.protection != Protection::On,
            "{status}"
        );
        scene.order(&["BLKTEST", "100", "8"])?;
        clients.finish()
    });
}

/// How long the scenarios' secondary may wait for its disk, in milliseconds.
const REPLICA_TIMEOUT_MS: u64 = 1500;

fn hangs(flush: &'static str) -> Plan {
    Plan {
        protection: "replica_timeout_ms = 1500",
        ..Plan::replicated(flush)
    }
}

/// The threads of the secondary's disks are stopped as a hanging disk would stop them;
/// all else of it goes on.
fn a_secondary_whose_disk_hangs_is_given_up(flush: &'static str) {
    play(&hangs(flush), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let stopped = stop_threads(scene.pid(Host::B)?, "replica")?;
        for host in [Host::A, Host::B] {
            scene.await_log(
                host,
                &format!("has not finished a request within {REPLICA_TIMEOUT_MS} ms"),
            )?;
        }
        // The VM lives, and says as long as it lasts what is the matter.
        clients.go_on()?;
        thread::sleep(Duration::from_millis(2 * REPLICA_TIMEOUT_MS));
        let status = scene.await_status("the reason", Host::A, |status| {
            let reason = status.waiting_because.as_deref().unwrap_or_default();
            reason.contains("of disk blk0 has not finished a request")
        })?;
        ensure!(
            status.role == Role::Primary && status.protection != Protection::On,
            "{status}"
        );
        clients.go_on()?;
        drop(stopped);
        scene.await_protected(Host::A)?;
        clients.go_on()?;
        clients.finish()?;
        stop_and_compare(scene, Host::A)
    });
}

#[test]
fn a_hanging_disk_of_the_secondary_does_not_hold_up_flushes_for_ever() {
    a_secondary_whose_disk_hangs_is_given_up("both");
}

#[test]
fn a_secondary_whose_disk_hangs_does_not_count_as_protection() {
    a_secondary_whose_disk_hangs_is_given_up("memory");
}

#[test]
fn a_vm_whose_secondary_is_lost_to_its_disk_is_stopped_if_that_is_the_policy() {
    let plan = Plan {
        protection: "replica_timeout_ms = 1500\non_secondary_loss = \"stop\"",
        ..Plan::replicated("both")
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let _stopped = stop_threads(scene.pid(Host::B)?, "replica")?;
        scene.await_clean_end(Host::A)?;
        scene.await_log(Host::A, "has not finished a request")?;
        drop(clients);
        Ok(())
    });
}

#[test]
fn a_takeover_waits_for_a_disk_that_hangs() {
    play(&hangs("memory"), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let stopped = stop_threads(scene.pid(Host::B)?, "replica")?;
        clients.go_on()?;
        scene.kill(Host::A)?;
        thread::sleep(Duration::from_millis(3 * REPLICA_TIMEOUT_MS));
        let status = scene.status(Host::B).context("B answers")?;
        ensure!(status.role == Role::Secondary, "{status}");
        drop(stopped);
        scene.await_primary(Host::B)?;
        clients.go_on()?;
        clients.finish()
    });
}

/// Makes an image larger, as an operator does.
fn grow(scene: &Scene, host: Host, mib: u64) -> Result<()> {
    let image = fs::OpenOptions::new().write(true).open(scene.image(host))?;
    Ok(image.set_len(mib << 20)?)
}

#[test]
fn a_replicated_disk_grows_on_both_hosts_and_the_guest_is_told() {
    play(&Plan::replicated("memory"), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        // Unasked nothing happens, on either side.
        grow(scene, Host::A, 32)?;
        clients.go_on()?;
        let asked = scene.ask(Host::A, &["resize"])?;
        ensure!(
            asked.success && asked.text.contains("disk blk0 has 33554432 bytes now"),
            "{}",
            asked.text
        );
        // The other host's image must grow before it counts.
        scene.await_status("a reason", Host::A, |status| {
            let reason = status.waiting_because.as_deref().unwrap_or_default();
            reason.contains("16777216 bytes on the secondary and 33554432 here")
        })?;
        clients.go_on()?;
        grow(scene, Host::B, 32)?;
        scene.await_protected(Host::A)?;
        clients.go_on()?;
        let again = scene.ask(Host::A, &["resize"])?;
        ensure!(
            !again.success && again.text.contains("has grown"),
            "{}",
            again.text
        );
        // Who goes on knows the size; and an image that has grown meanwhile is told to the guest then.
        grow(scene, Host::B, 48)?;
        scene.take_over_from(Host::A, &clients)?;
        grow(scene, Host::A, 48)?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        clients.go_on()?;
        scene.order(&["BLKTEST", "100", "8"])?;
        clients.finish()?;
        stop_and_compare(scene, Host::B)?;
        ensure!(
            fs::metadata(scene.image(Host::A))?.len() == 48 << 20,
            "it is not as long"
        );
        Ok(())
    });
}

/// Of the steps of a growth each is durable by itself, whoever dies between them.
#[test]
fn a_growth_that_a_death_cuts_goes_on_afterwards() {
    play(&Plan::replicated("memory"), |scene| {
        scene.protect()?;
        grow(scene, Host::A, 32)?;
        grow(scene, Host::B, 32)?;
        // Grown, and nobody knows of it: the secondary dies and comes back with the larger image.
        scene.kill(Host::B)?;
        scene.await_alone(Host::A)?;
        scene.secondary(Host::B)?;
        scene.await_status("a reason", Host::A, |status| {
            let reason = status.waiting_because.as_deref().unwrap_or_default();
            reason.contains("33554432 bytes on the secondary and 16777216 here")
                && reason.contains("kemari resize")
        })?;
        let asked = scene.ask(Host::A, &["resize"])?;
        ensure!(asked.success, "{}", asked.text);
        scene.await_protected(Host::A)?;
        // Told, and alone: the primary dies, and boots from the larger image.
        scene.kill(Host::B)?;
        scene.await_alone(Host::A)?;
        grow(scene, Host::A, 40)?;
        let asked = scene.ask(Host::A, &["resize"])?;
        ensure!(asked.success, "{}", asked.text);
        scene.kill(Host::A)?;
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        grow(scene, Host::B, 40)?;
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        scene.order(&["BLKTEST", "100", "8"])?;
        stop_and_compare(scene, Host::A)
    });
}
