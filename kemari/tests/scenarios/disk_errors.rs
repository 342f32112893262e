//! Disks of the host that fail under a running VM, or grow.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari::control::{DiskState, Role, Status};

use crate::support::{Clients, Host, Plan, play};

const PAGE_BYTES: u64 = 4096;
/// Room that a filled file system still has, in bytes.
const LEFT_BYTES: u64 = 2 * PAGE_BYTES;
/// How long a VM that must stand still is watched: past every time-out of the plan.
const WATCHED: Duration = Duration::from_secs(3);

#[test]
fn a_vm_on_a_full_disk_stands_still_until_it_is_resumed() {
    let plan = Plan {
        disk_keys: "on_error = \"pause\"",
        progress_timeout_ms: 1500,
        ..Plan::default()
    };
    play(&plan, |scene| {
        let small = SmallFileSystem::under(&scene.image(Host::A))?;
        scene.protect()?;
        small.fill()?;
        let clients = Clients::start(scene.load())?;
        scene.await_status("the trouble", Host::A, |status| {
            waits_for(status, "No space left")
        })?;
        std::thread::sleep(WATCHED);
        let status = scene.status(Host::A).context("A answers")?;
        ensure!(
            status.role == Role::Primary && waits_for(&status, "kemari resume"),
            "{status}"
        );
        let disk = status.disks.first().context("it has a disk")?;
        ensure!(
            disk.state == DiskState::Failed
                && disk
                    .failure
                    .as_deref()
                    .is_some_and(|why| why.contains("No space left")),
            "{disk:?}"
        );
        let refused = scene.ask(Host::A, &["switchover"])?;
        ensure!(
            !refused.success && refused.text.contains("fails"),
            "{}",
            refused.text
        );
        // Nothing is gained by trying again.
        let resumed = scene.ask(Host::A, &["resume"])?;
        ensure!(
            resumed.success && resumed.text.contains("tried again"),
            "{}",
            resumed.text
        );
        scene.await_status("the trouble again", Host::A, |status| {
            waits_for(status, "No space left")
        })?;
        small.make_room()?;
        ensure!(scene.ask(Host::A, &["resume"])?.success, "it cannot be resumed");
        clients.go_on()?;
        let refused = scene.ask(Host::A, &["resume"])?;
        ensure!(
            !refused.success && refused.text.contains("no failure"),
            "{}",
            refused.text
        );
        scene.await_protected(Host::A)?;
        clients.finish()?;
        scene.order(&["CHECK"])
    });
}

#[test]
fn a_vm_whose_own_disk_is_full_goes_on_at_the_other_host() {
    let plan = Plan {
        disk_keys: "on_error = \"failover\"",
        ..Plan::replicated("memory")
    };
    play(&plan, |scene| {
        let small = SmallFileSystem::under(&scene.image(Host::A))?;
        scene.protect()?;
        small.fill()?;
        let clients = scene.clients()?;
        scene.await_primary(Host::B)?;
        clients.go_on()?;
        clients.finish()?;
        scene.order(&["CHECK"])
    });
}

/// Who lives and says that its disks are closed is not fenced: its host may have other VMs.
#[test]
fn a_host_whose_disk_fails_closes_it_and_follows_the_other_without_a_fence() {
    let plan = Plan {
        disk_keys: "on_error = \"failover\"",
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let old = scene.pid(Host::A)?;
        // Both hosts have one image; what is behind this limit fails for A.
        limit_files(old, "4096:")?;
        let clients = scene.clients()?;
        scene.await_primary(Host::B)?;
        limit_files(old, "unlimited:")?;
        clients.go_on()?;
        scene.await_protected(Host::B)?;
        ensure!(
            scene.is_running(Host::A) && scene.pid(Host::A)? == old,
            "A was fenced"
        );
        clients.finish()?;
        scene.order(&["CHECK"])
    });
}

/// A process writes nothing behind this byte of a file, as setrlimit(2) has it: the soft limit,
/// which can be lifted again.
fn limit_files(process: u32, bytes: &str) -> Result<()> {
    let limited = Command::new("prlimit")
        .args([format!("--pid={process}"), format!("--fsize={bytes}")])
        .status()?;
    ensure!(limited.success(), "the process cannot be limited");
    Ok(())
}

#[test]
fn a_stop_does_not_wait_for_a_full_disk() {
    let plan = Plan {
        disk_keys: "on_error = \"failover\"",
        ..Plan::default()
    };
    play(&plan, |scene| {
        let small = SmallFileSystem::under(&scene.image(Host::A))?;
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        small.fill()?;
        let clients = Clients::start(scene.load())?;
        // Alone, the VM has nowhere to go.
        scene.await_status("the trouble", Host::A, |status| {
            waits_for(status, "No space left")
        })?;
        let stopped = scene.ask(Host::A, &["stop"])?;
        ensure!(stopped.success, "{}", stopped.text);
        scene.await_clean_end(Host::A)?;
        drop(clients);
        Ok(())
    });
}

#[test]
fn a_guest_is_told_that_its_disk_has_grown() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let unchanged = scene.ask(Host::A, &["resize"])?;
        ensure!(
            !unchanged.success && unchanged.text.contains("has grown"),
            "{}",
            unchanged.text
        );
        let image = fs::OpenOptions::new().write(true).open(scene.image(Host::A))?;
        // What is no whole block is left alone, here as by whoever takes over.
        image.set_len((32 << 20) + 100)?;
        let grown = scene.ask(Host::A, &["resize"])?;
        ensure!(
            grown.success && grown.text.contains("33554432 bytes"),
            "{}",
            grown.text
        );
        // Who takes over knows the new size; then the image may not be smaller.
        scene.order(&["BLKTEST", "50", "8"])?;
        scene.kill(Host::A)?;
        scene.await_primary(Host::B)?;
        scene.order(&["BLKTEST", "50", "8"])?;
        image.set_len(24 << 20)?;
        let shrunk = scene.ask(Host::B, &["resize"])?;
        ensure!(
            !shrunk.success && shrunk.text.contains("expected 33554432"),
            "{}",
            shrunk.text
        );
        Ok(())
    });
}

fn waits_for(status: &Status, what: &str) -> bool {
    status
        .waiting_because
        .as_ref()
        .is_some_and(|because| because.contains(what))
}

/// A file system that an image is moved to, and that has little room beyond it.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    /// Moves the image to a file system of its own; a link is left in its place.
    fn under(image: &Path) -> Result<Self> {
        let bytes = fs::metadata(image)?.len();
        let directory = image.with_extension("fs");
        fs::create_dir(&directory)?;
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={}", bytes + (1 << 20)),
                "tmpfs",
            ])
            .arg(&directory)
            .status()?;
        ensure!(mounted.success(), "no file system can be mounted");
        let small = Self(directory);
        let moved = small.0.join("disk.img");
        fs::File::create(&moved)?.set_len(bytes)?;
        fs::remove_file(image)?;
        std::os::unix::fs::symlink(moved, image)?;
        Ok(small)
    }

    /// Takes all room that is left, but for a little.
    fn fill(&self) -> Result<()> {
        let mut filler = fs::File::create(self.0.join("filler"))?;
        while let Ok(()) = filler.write_all(&[1; PAGE_BYTES as usize]) {}
        let taken = filler.metadata()?.len();
        ensure!(taken > LEFT_BYTES, "there was no room before");
        Ok(filler.set_len(taken - LEFT_BYTES)?)
    }

    fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // It is used until the processes of the scenario have ended.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(
            unmounted.is_ok_and(|status| status.success()),
            "it cannot be unmounted"
        );
    }
}
