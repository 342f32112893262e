//! Sides that run as a user who may do nothing: all that takes more their stewards do.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari::control::{self, Status};

use crate::support::{Host, Plan, Scene, play};

/// Every host has it.
const USER: &str = "nobody";

fn shared() -> Plan {
    Plan {
        user: Some(USER),
        ..Plan::default()
    }
}

fn replicated() -> Plan {
    Plan {
        user: Some(USER),
        tls: true,
        ..Plan::replicated("both")
    }
}

/// Every thread of what runs on the host is the user, with none of root's groups; its files are not for
/// others.
fn is_the_user(scene: &mut Scene, host: Host) -> Result<()> {
    let pid = scene.pid(host)?;
    let owner = fs::metadata(scene.image(host))?.uid();
    ensure!(owner != 0, "the image is root's");
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            // It has ended.
            continue;
        };
        let ids = |name| status.lines().find_map(|line: &str| line.strip_prefix(name));
        let ids = ["Uid:", "Gid:", "Groups:"].map(|name| ids(name).unwrap_or("0"));
        let all: Vec<_> = ids
            .iter()
            .flat_map(|words| words.split_ascii_whitespace())
            .collect();
        ensure!(!all.contains(&"0"), "it is still root's: {status}");
        ensure!(ids[0].contains(&owner.to_string()), "it is another's: {status}");
    }
    let socket = fs::metadata(scene.socket(host))?;
    ensure!(
        (socket.uid(), socket.mode() & 0o777) == (owner, 0o600),
        "the control socket: {socket:?}"
    );
    Ok(())
}

fn is_ready(status: &Status) -> bool {
    let readiness = status.readiness.as_ref();
    readiness.is_some_and(|readiness| readiness.reasons.is_empty())
}

#[test]
fn sides_without_any_rights_take_over_fence_and_come_back() {
    play(&shared(), |scene| {
        scene.protect()?;
        for host in Host::BOTH {
            is_the_user(scene, host)?;
        }
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        // By its steward the other one can kill what is left of this one; here it is frozen, not dead.
        scene.signal(Host::A, rustix::process::Signal::STOP)?;
        scene.await_primary(Host::B)?;
        clients.go_on()?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        is_the_user(scene, Host::A)?;
        scene.take_over_from(Host::B, &clients)?;
        clients.finish()
    });
}

#[test]
fn a_drill_a_switchover_a_new_tap_and_a_takeover_need_no_rights_of_the_side() {
    play(&replicated(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.await_status("readiness", Host::B, is_ready)?;
        scene
            .client(Host::B)
            .command(control::Command::Drill { seconds: 1 })
            .context("the drill")?;
        let netns = scene.net.host(Host::B.number()).netns().clone();
        netns.ip("link del tap0")?;
        scene.await_status("the loss of the TAP", Host::B, |status| !is_ready(status))?;
        netns.ip("tuntap add dev tap0 mode tap vnet_hdr")?;
        netns.ip("link set tap0 master br0 up")?;
        scene.await_status("the new TAP", Host::B, is_ready)?;
        let ordered = scene.ask(Host::A, &["switchover"])?;
        ensure!(ordered.success, "the order was refused: {}", ordered.text);
        scene.await_protected(Host::B)?;
        clients.go_on()?;
        is_the_user(scene, Host::B)?;
        scene.take_over_from(Host::B, &clients)?;
        clients.finish()
    });
}

/// A block device that root alone may open. It ends with the value.
struct RootsDevice(String);

impl RootsDevice {
    /// Takes the place of a host's image.
    fn instead_of(image: &Path) -> Result<Self> {
        let backing = image.with_extension("backing");
        fs::rename(image, &backing)?;
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(backing)
            .output()?;
        ensure!(made.status.success(), "{made:?}");
        let device = Self(String::from_utf8(made.stdout)?.trim().to_owned());
        symlink(&device.0, image)?;
        Ok(device)
    }
}

impl Drop for RootsDevice {
    fn drop(&mut self) {
        // It goes when its last user does.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn block_devices_of_root_are_opened_by_the_steward_also_in_a_takeover() {
    let plan = Plan {
        user: Some(USER),
        ..Plan::replicated("both")
    };
    play(&plan, |scene| {
        let _devices = [
            RootsDevice::instead_of(&scene.image(Host::A))?,
            RootsDevice::instead_of(&scene.image(Host::B))?,
        ];
        let check = scene.ask(Host::B, &["check"])?;
        ensure!(!check.text.contains("cannot use"), "{}", check.text);
        scene.protect()?;
        let clients = scene.clients()?;
        clients.work(Duration::from_millis(300))?;
        scene.await_status("readiness", Host::B, is_ready)?;
        scene.take_over_from(Host::A, &clients)?;
        scene.secondary(Host::A)?;
        scene.await_protected(Host::B)?;
        scene.take_over_from(Host::B, &clients)?;
        clients.finish()
    });
}

#[test]
fn a_user_who_cannot_use_the_image_is_told_at_the_start_and_before() {
    play(&shared(), |scene| {
        let image = scene.image(Host::A);
        chown(&image, Some(0), Some(0))?;
        fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let told = format!("the user `{USER}` cannot use {}", image.display());
        let check = scene.ask(Host::A, &["check"])?;
        ensure!(!check.success && check.text.contains(&told), "{}", check.text);
        scene.run(Host::A)?;
        scene.await_refusal(Host::A)?;
        ensure!(scene.log(Host::A).contains(&told), "{}", scene.log(Host::A));
        Ok(())
    });
}
