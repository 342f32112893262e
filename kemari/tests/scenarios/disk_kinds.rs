//! Replicated images that are no raw files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari::control::Protection;
use xtask::tools::output_of;

use crate::support::{Host, PATIENCE, Plan, Scene, play, wait_for};

/// The VM goes to the other host and back, and ends; what is left on both is for the caller to compare.
fn to_and_fro(scene: &mut Scene) -> Result<()> {
    scene.protect()?;
    let clients = scene.clients()?;
    clients.work(Duration::from_millis(200))?;
    scene.order(&["BLKTEST", "200", "32"])?;
    let mut primary = Host::A;
    for _ in 0..2 {
        scene.kill(primary)?;
        clients.go_on()?;
        scene.await_primary(primary.other())?;
        scene.order(&["CHECK"])?;
        scene.secondary(primary)?;
        primary = primary.other();
        scene.await_protected(primary)?;
    }
    scene.order(&["BLKTEST", "100", "8"])?;
    clients.finish()?;
    let stopped = scene.ask(primary, &["stop"])?;
    ensure!(stopped.success, "{}", stopped.text);
    scene.await_clean_end(primary)?;
    scene.await_clean_end(primary.other())
}

/// Who has it open makes it larger, and the guest learns of it only when both have.
#[test]
fn images_are_made_larger_while_the_vm_runs() {
    play(&Plan::replicated("both"), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let size = ["resize", "--disk", "blk0", "--size", "64M"];
        let shrinks = scene.ask(Host::A, &["resize", "--disk", "blk0", "--size", "8M"])?;
        ensure!(
            !shrinks.success && shrinks.text.contains("never shrinks"),
            "{}",
            shrinks.text
        );
        let wrong = scene.ask(Host::B, &["resize", "--disk", "blk7", "--size", "64M"])?;
        ensure!(
            !wrong.success && wrong.text.contains("there is no replicated disk blk7"),
            "{}",
            wrong.text
        );
        // In use by the guest, and by its replica.
        let before = scene.await_protected(Host::A)?.term;
        for (host, said) in [
            (Host::B, "67108864 bytes here, which counts when"),
            (Host::A, "disk blk0 has 67108864 bytes now"),
        ] {
            let grown = scene.ask(host, &size)?;
            ensure!(grown.success && grown.text.contains(said), "{}", grown.text);
            clients.go_on()?;
        }
        // A status is a moment old: that of the protection before does not count.
        scene.await_status("protection with the larger disk", Host::A, |status| {
            status.protection == Protection::On && status.term > before
        })?;
        scene.order(&["BLKTEST", "200", "32"])?;
        // Who takes over has it as large; then it grows there, and here only afterwards.
        scene.take_over_from(Host::A, &clients)?;
        scene.order(&["BLKTEST", "100", "8"])?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        let larger = ["resize", "--disk", "blk0", "--size", "80M"];
        let grown = scene.ask(Host::B, &larger)?;
        ensure!(grown.success, "{}", grown.text);
        scene.await_status("a reason", Host::B, |status| {
            let reason = status.waiting_because.as_deref().unwrap_or_default();
            reason.contains("67108864 bytes on the secondary and 83886080 here")
        })?;
        wait_for("growth on the other host", PATIENCE, || {
            // Between two attempts to protect the VM there.
            Ok(scene.ask(Host::A, &larger)?.success.then_some(()))
        })?;
        scene.await_protected(Host::B)?;
        clients.finish()?;
        let stopped = scene.ask(Host::B, &["stop"])?;
        ensure!(stopped.success, "{}", stopped.text);
        scene.await_clean_end(Host::B)?;
        scene.await_clean_end(Host::A)?;
        scene.compare_images()
    });
}

/// Each host has its own, which nobody writes to: it needs no record, no copy and no fence.
#[test]
fn a_qcow2_image_is_read_on_either_side() {
    let plan = Plan {
        reads_qcow2: true,
        ..Plan::replicated("memory")
    };
    play(&plan, |scene| {
        scene.make_read_only_images()?;
        let images = Host::BOTH.map(|host| scene.read_only_image(host));
        let before = [fs::read(&images[0])?, fs::read(&images[1])?];
        to_and_fro(scene)?;
        for (image, before) in images.iter().zip(before) {
            ensure!(fs::read(image)? == before, "{} was written to", image.display());
        }
        scene.compare_images()
    });
}

/// A block device on the file of an image, in whose place a link to it stands.
struct BlockDevice(PathBuf);

impl BlockDevice {
    fn on(image: &Path) -> Result<Self> {
        let file = image.with_extension("file");
        fs::rename(image, &file)?;
        let made = output_of(Command::new("losetup").args(["--find", "--show"]).arg(&file))?;
        let device = Self(made.trim().into());
        std::os::unix::fs::symlink(&device.0, image)?;
        Ok(device)
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // It goes when the processes of the scenario have let it go.
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(
            detached.is_ok_and(|status| status.success()),
            "it cannot be detached"
        );
    }
}

fn with_a_block_device_on(host: Host) {
    play(&Plan::replicated("memory"), |scene| {
        let image = scene.image(host);
        let _device = BlockDevice::on(&image)?;
        to_and_fro(scene)?;
        // Beside a device there is no place for its record.
        let mut beside = image.into_os_string();
        beside.push(".kemari");
        ensure!(!Path::new(&beside).exists(), "a record lies beside a device");
        let state = scene.path(&format!("{}.state", host.name()));
        let record = fs::metadata(state.join("blk0.kemari")).context("there is no record")?;
        ensure!(record.is_file() && record.len() > 0);
        scene.compare_images()
    });
}

#[test]
fn a_block_device_is_a_replica_of_a_file() {
    with_a_block_device_on(Host::B);
}

#[test]
fn a_file_is_a_replica_of_a_block_device() {
    with_a_block_device_on(Host::A);
}
