//! Images that something happens to beside the VM: on the secondary what is wrong is said before it is
//! needed.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};

use super::case::Case;
use super::judge::{KNOWN_AFTER, Said};
use super::setup::Setup;
use super::world::{World, fill, make_room, shell};
use crate::demo::pair::Side::{A, B};

/// The cases.
pub(crate) const CASES: &[Case] = &[
    Case::new(
        "disk-grown-oddly",
        "lima#3390, kubevirt#6712",
        "the secondary's image gets an odd size: what is said of it is true; mended, the VM goes on",
        grown_oddly,
    ),
    Case::new(
        "disk-shrunk",
        "kubevirt#6712",
        "the secondary's image is cut short: not ready is said, or a takeover succeeds",
        shrunk,
    ),
    Case::new(
        "disk-locked",
        "OpenNebula#1449, cyberus#180",
        "somebody else has the secondary's image before it starts: no protection is said, and why; freed: \
         ready",
        locked,
    ),
    Case::new(
        "disk-removed",
        "systemd#9408",
        "the secondary's image is removed under it: what is said of it is true",
        removed,
    ),
    Case::new(
        "disk-record-removed",
        "vdsm#371",
        "the record of the secondary's image is removed: what is said of it is true",
        record_removed,
    ),
    Case::new(
        "disk-full-secondary",
        "leveldb#150",
        "the secondary's disk is full: the guest goes on, and it is said; room is made: ready",
        full_secondary,
    ),
    Case::new(
        "disk-frozen-secondary",
        "azure-linux-extensions#951, azure-linux-extensions#1868",
        "a backup leaves the file system of the secondary's image frozen, and the guest writes nothing: not \
         ready is said; the primary is killed, it is thawed: the VM goes on",
        frozen_secondary,
    ),
    Case::new(
        "disk-shared-removed-path",
        "vdsm#371",
        "the way to the shared image is gone on the secondary: not ready; killed, mended: the VM goes on",
        shared_away,
    )
    .on(Setup::SHARED.with("[hosts.b.disks]\nblk0 = \"{dir}/mount/disk.img\"")),
];

/// An image's end is moved; then the primary is killed.
fn resized(world: &mut World, bytes: u64) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    let image = File::options().write(true).open(world.image(B))?;
    let right = image.metadata()?.len();
    image.set_len(bytes)?;
    std::thread::sleep(KNOWN_AFTER);
    world.kill_and_tell(A, &clients, |_| Ok(image.set_len(right)?))?;
    clients.finish()
}

fn grown_oddly(world: &mut World) -> Result<()> {
    let bytes = fs::metadata(world.image(B))?.len();
    resized(world, bytes + 513)
}

fn shrunk(world: &mut World) -> Result<()> {
    let bytes = fs::metadata(world.image(B))?.len();
    // The last MiB holds nothing.
    resized(world, bytes - (1 << 20))
}

fn locked(world: &mut World) -> Result<()> {
    let image = File::options().read(true).write(true).open(world.image(B))?;
    image.lock()?;
    world.start(A, "run", super::world::TO_FILE)?;
    world.await_service()?;
    world.secondary(B)?;
    std::thread::sleep(KNOWN_AFTER);
    ensure!(world.is_running(B), "B has ended instead of waiting");
    ensure!(
        world.check(A)? == Said::NotReady,
        "{:?} is said of an image that another has",
        world.check(A)?
    );
    let said = world.said_in_words(B);
    ensure!(
        said.contains("lock"),
        "B does not say what keeps it from following:\n{said}"
    );
    image.unlock()?;
    world.await_ready(A)?;
    let clients = world.clients()?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn removed(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    let (image, aside) = (world.image(B), world.path("aside"));
    fs::rename(&image, &aside)?;
    std::thread::sleep(KNOWN_AFTER);
    world.kill_and_tell(A, &clients, |_| Ok(fs::rename(&aside, &image)?))?;
    clients.finish()
}

fn record_removed(world: &mut World) -> Result<()> {
    world.protect()?;
    let clients = world.clients()?;
    let record = world.image(B).with_extension("img.kemari");
    let aside = world.path("aside");
    fs::rename(&record, &aside).context("the image has no record")?;
    std::thread::sleep(KNOWN_AFTER);
    world.kill_and_tell(A, &clients, |_| match record.exists() {
        true => Ok(()),
        false => Ok(fs::rename(&aside, &record)?),
    })?;
    clients.finish()
}

fn full_secondary(world: &mut World) -> Result<()> {
    let directory = world.path("b.disk");
    world.mounts.small(&directory, 64 << 10)?;
    File::create(world.image(B))?.set_len(16 << 20)?;
    world.protect()?;
    let clients = world.clients()?;
    fill(&directory, &[])?;
    // The guest writes all over its disk.
    world.order(&["BLKTEST", "2000", "16"])?;
    world.await_not_ready(A, &[])?;
    clients.go_on()?;
    make_room(&directory)?;
    crate::tools::wait_for("protection", std::time::Duration::from_secs(60), || {
        if !world.is_running(B) {
            world.secondary(B)?;
        }
        Ok((world.check(A)? == Said::Ready).then_some(()))
    })?;
    world.kill(A)?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn shared_away(world: &mut World) -> Result<()> {
    fs::create_dir(world.path("mount"))?;
    fs::hard_link(world.image(A), world.path("mount/disk.img"))?;
    world.protect()?;
    let clients = world.clients()?;
    fs::rename(world.path("mount"), world.path("unmounted"))?;
    for side in [A, B] {
        world.await_not_ready(side, &["disk", "image"])?;
    }
    world.kill_and_tell(A, &clients, |world| {
        Ok(fs::rename(world.path("unmounted"), world.path("mount"))?)
    })?;
    clients.finish()
}

fn frozen_secondary(world: &mut World) -> Result<()> {
    let directory = world.path("b.disk");
    world.mounts.ext4(&directory, 48)?;
    File::create(world.image(B))?.set_len(16 << 20)?;
    world.protect()?;
    shell(&format!("fsfreeze --freeze {}", directory.display()))?;
    let told = frozen_is_told(world);
    // Nothing that waits for it could end.
    shell(&format!("fsfreeze --unfreeze {}", directory.display()))?;
    told?;
    let clients = world.clients()?;
    world.await_vm(B, &clients)?;
    clients.finish()
}

fn frozen_is_told(world: &mut World) -> Result<()> {
    for side in [A, B] {
        world.await_not_ready(side, &["disk"])?;
    }
    world.kill(A)?;
    std::thread::sleep(2 * KNOWN_AFTER);
    let said = world.said_in_words(B);
    ensure!(
        said.contains("stood still for") || said.contains("has not finished a request"),
        "no word of what holds it up:\n{said}"
    );
    Ok(())
}
