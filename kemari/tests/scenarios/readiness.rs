//! "Protected" is said of a secondary that could take over now: each thing that would keep it from that is
//! found out while all is well, and told on both sides. And the guest's own port is watched where it runs.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari::control::{Protection, Role, Verdict};
use rustix::process::Signal;

use crate::support::{Host, Plan, Scene, play};

/// Waits until both sides say that a takeover would succeed.
fn await_ready(scene: &mut Scene) -> Result<()> {
    for host in Host::BOTH {
        scene.await_status("readiness", host, |status| status.verdict() == Verdict::Ready)?;
        scene.ask_check(host, 0)?;
    }
    Ok(())
}

/// Waits until both sides say that a takeover would not succeed, and why: with these words.
fn await_unready(scene: &mut Scene, words: &str) -> Result<()> {
    for host in Host::BOTH {
        scene.await_status(words, host, |status| {
            let readiness = status.readiness.as_ref();
            let says = readiness.is_some_and(|readiness| {
                !readiness.ready && readiness.reasons.iter().any(|reason| reason.contains(words))
            });
            says && status.verdict() == Verdict::NotReady && !status.to_string().contains("  protected")
        })?;
        scene.await_log(host, words)?;
    }
    scene.ask_check(Host::A, 1)
}

/// A ready pair on which `spoil` makes the secondary unready, for which it gives these words;
/// `mend` ends that.
fn found_out(
    plan: &Plan,
    words: &str,
    spoil: impl FnOnce(&Scene) -> Result<()>,
    mend: impl FnOnce(&Scene) -> Result<()>,
) {
    play(plan, |scene| {
        scene.protect()?;
        await_ready(scene)?;
        let clients = scene.clients()?;
        spoil(scene)?;
        await_unready(scene, words)?;
        // The VM is none the worse for it, and stays where it is.
        clients.go_on()?;
        let status = scene.status(Host::A).context("A says nothing")?;
        ensure!(status.role == Role::Primary, "A gave the VM away");
        mend(scene)?;
        await_ready(scene)?;
        // What is said is true.
        scene.take_over_from(Host::A, &clients)?;
        clients.finish()
    });
}

/// Changes devices of a host, as `ip` is told.
fn ip(scene: &Scene, host: Host, batch: &str) -> Result<()> {
    scene.net.host(host.number()).netns().ip(batch)?;
    Ok(())
}

#[test]
fn the_secondarys_tap_is_missing() {
    found_out(
        &Plan::default(),
        "the TAP tap0 of the card net0 is gone",
        |scene| ip(scene, Host::B, "link del tap0"),
        |scene| {
            ip(
                scene,
                Host::B,
                "tuntap add dev tap0 mode tap vnet_hdr\nlink set tap0 master br0 up",
            )
        },
    );
}

#[test]
fn the_secondarys_tap_is_on_no_bridge() {
    found_out(
        &Plan::default(),
        "is not on the bridge br0",
        |scene| ip(scene, Host::B, "link set tap0 nomaster"),
        |scene| ip(scene, Host::B, "link set tap0 master br0"),
    );
}

#[test]
fn the_secondarys_tap_is_down() {
    found_out(
        &Plan::default(),
        "the TAP tap0 of the card net0 is down",
        |scene| ip(scene, Host::B, "link set tap0 down"),
        |scene| ip(scene, Host::B, "link set tap0 up"),
    );
}

#[test]
fn the_secondarys_tap_takes_smaller_packets_than_the_primarys() {
    found_out(
        &Plan::default(),
        "the TAP tap0 of the card net0 takes packets of 1400 bytes, and that of the primary 1500",
        |scene| ip(scene, Host::B, "link set tap0 mtu 1400"),
        |scene| ip(scene, Host::B, "link set tap0 mtu 1500"),
    );
}

#[test]
fn the_secondarys_bridge_is_down() {
    found_out(
        &Plan::default(),
        "the bridge br0 of the card net0 is down",
        |scene| ip(scene, Host::B, "link set br0 down"),
        |scene| ip(scene, Host::B, "link set br0 up"),
    );
}

#[test]
fn the_secondarys_tap_has_several_queues() {
    found_out(
        &Plan::default(),
        "multi_queue",
        |scene| {
            ip(
                scene,
                Host::B,
                "link del tap0\ntuntap add dev tap0 mode tap vnet_hdr multi_queue\n\
                 link set tap0 master br0 up",
            )
        },
        |scene| {
            ip(
                scene,
                Host::B,
                "link del tap0\ntuntap add dev tap0 mode tap vnet_hdr\nlink set tap0 master br0 up",
            )
        },
    );
}

#[test]
fn the_secondarys_tap_is_in_use() {
    let attached = std::cell::RefCell::new(None);
    found_out(
        &Plan::default(),
        "in use by another process",
        |scene| {
            let netns = scene.net.host(Host::B.number()).netns();
            *attached.borrow_mut() = Some(netns.run(|| kemari_vmm::virtio::tap::TapDevice::open("tap0"))??);
            Ok(())
        },
        |_| {
            *attached.borrow_mut() = None;
            Ok(())
        },
    );
}

fn aside(scene: &Scene) -> PathBuf {
    scene.image(Host::B).with_extension("aside")
}

#[test]
fn the_secondarys_image_is_removed() {
    found_out(
        &Plan::replicated("memory"),
        "No such file",
        |scene| Ok(fs::rename(scene.image(Host::B), aside(scene))?),
        |scene| Ok(fs::rename(aside(scene), scene.image(Host::B))?),
    );
}

#[test]
fn the_secondarys_image_is_another_file() {
    found_out(
        &Plan::replicated("memory"),
        "is another file",
        |scene| {
            fs::rename(scene.image(Host::B), aside(scene))?;
            fs::copy(aside(scene), scene.image(Host::B))?;
            Ok(())
        },
        |scene| Ok(fs::rename(aside(scene), scene.image(Host::B))?),
    );
}

#[test]
fn the_secondarys_image_is_locked_by_another_process() {
    let locked = std::cell::RefCell::new(None);
    found_out(
        &Plan::replicated("memory"),
        "is in use: process",
        |scene| {
            let file = File::options().write(true).open(scene.image(Host::B))?;
            // SAFETY: a flock of zeros is a valid one.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = libc::F_WRLCK as libc::c_short;
            // Kemari and QEMU have bytes of their own before this.
            lock.l_start = 4096;
            // SAFETY: the kernel reads one flock at the pointer.
            let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) };
            ensure!(result == 0, "{}", std::io::Error::last_os_error());
            *locked.borrow_mut() = Some(file);
            Ok(())
        },
        |_| {
            *locked.borrow_mut() = None;
            Ok(())
        },
    );
}

#[test]
fn the_secondarys_fence_cannot_be_started() {
    let mode = |scene: &Scene, mode: u32| -> Result<()> {
        let permissions = fs::Permissions::from_mode(mode);
        Ok(fs::set_permissions(scene.path("fence-b"), permissions)?)
    };
    let plan = Plan {
        fence: crate::support::Fence::Program,
        ..Plan::default()
    };
    found_out(
        &plan,
        "is no program of this host",
        |scene| mode(scene, 0o644),
        |scene| mode(scene, 0o755),
    );
}

#[test]
fn the_secondarys_fence_is_a_script_without_its_interpreter() {
    let plan = Plan {
        fence: crate::support::Fence::Program,
        ..Plan::default()
    };
    let right = std::cell::RefCell::new(Vec::new());
    found_out(
        &plan,
        "is a script for `/usr/bin/no-such-python`",
        |scene| {
            *right.borrow_mut() = fs::read(scene.path("fence-b"))?;
            Ok(fs::write(
                scene.path("fence-b"),
                "#!/usr/bin/no-such-python -u\n",
            )?)
        },
        |scene| Ok(fs::write(scene.path("fence-b"), &*right.borrow())?),
    );
}

#[test]
fn the_secondarys_backing_file_is_gone() {
    let plan = Plan {
        reads_qcow2: true,
        ..Plan::replicated("memory")
    };
    let base = |scene: &Scene, host| scene.read_only_image(host).with_extension("base");
    play(&plan, |scene| {
        scene.make_read_only_images()?;
        scene.protect()?;
        await_ready(scene)?;
        fs::rename(base(scene, Host::B), aside(scene))?;
        await_unready(scene, "its backing file")?;
        fs::rename(aside(scene), base(scene, Host::B))?;
        await_ready(scene)?;
        scene.kill(Host::A)?;
        scene.await_primary(Host::B).map(drop)
    });
}

/// Nothing could go on from it, so it is not kept: the VM runs on unprotected, and says so.
#[cfg(feature = "faults")]
#[test]
fn a_state_that_kvm_refuses_makes_the_secondary_unfit() {
    /// The first that is refused: the pair stands by then.
    const REFUSED_AT: u64 = 50;
    play(&Plan::default(), |scene| {
        scene.protect_with(Host::B, &format!("RefuseStateAt={REFUSED_AT}"))?;
        let clients = scene.clients()?;
        scene.await_log(Host::B, "committed state does not load here: a deliberate fault")?;
        scene.await_log(Host::A, "does not load here")?;
        scene.await_status("no protection", Host::A, |status| {
            status.verdict() == Verdict::NotReady && status.role == Role::Primary
        })?;
        clients.go_on()?;
        clients.finish()
    });
}

/// A guest's clock would jump at a takeover.
#[cfg(feature = "faults")]
#[test]
fn the_secondarys_wall_clock_is_ahead() {
    play(&Plan::default(), |scene| {
        scene.protect_with(Host::B, "ClockAheadMs=300000")?;
        await_unready(scene, "300 s ahead of the primary's")
    });
}

/// Nobody says how a VM is protected that is not there, or whose secondary is.
#[test]
fn the_exit_status_says_what_runs() {
    play(&Plan::default(), |scene| {
        scene.ask_check(Host::A, 3)?;
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        scene.ask_check(Host::A, 1)?;
        scene.secondary(Host::B)?;
        await_ready(scene)?;
        scene.take_arbiter_away()?;
        scene.kill(Host::B)?;
        scene.await_status("doubt", Host::A, |status| status.verdict() == Verdict::Doubtful)?;
        scene.ask_check(Host::A, 2)?;
        scene.bring_arbiter_back()?;
        scene.await_alone(Host::A)?;
        scene.ask_check(Host::A, 1)
    });
}

/// Something happens to the port of the guest that runs on A, so that nobody reaches it there.
fn moves_away(spoil: &'static str) {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        await_ready(scene)?;
        let clients = scene.clients()?;
        ip(scene, Host::A, spoil)?;
        let status = scene.await_primary(Host::B)?;
        let takeover = status.takeover.context("B says nothing of a takeover")?;
        ensure!(
            takeover.planned_pause_ms.is_some(),
            "the VM came by something else than a switchover"
        );
        ensure!(scene.is_running(Host::A), "the old primary was fenced");
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn a_guest_whose_tap_is_pulled_off_its_bridge_goes_to_the_other_host() {
    moves_away("link set tap0 nomaster");
}

#[test]
fn a_guest_whose_tap_is_set_down_goes_to_the_other_host() {
    moves_away("link set tap0 down");
}

#[test]
fn a_guest_whose_bridge_is_set_down_goes_to_the_other_host() {
    moves_away("link set br0 down");
}

#[test]
fn a_guest_whose_tap_is_deleted_goes_to_the_other_host() {
    moves_away("link del tap0");
}

#[test]
fn a_tap_that_was_made_anew_is_attached_again() {
    play(&Plan::default(), |scene| {
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let clients = scene.clients()?;
        ip(
            scene,
            Host::A,
            "link del tap0\ntuntap add dev tap0 mode tap vnet_hdr\nlink set tap0 master br0 up",
        )?;
        scene.await_log(Host::A, "the TAP tap0 was made anew")?;
        clients.go_on()?;
        clients.finish()
    });
}

/// The loop of a side that was stopped has yet to hear that the other has gone on alone;
/// its control socket answers at once.
#[test]
fn a_secondary_that_wakes_up_is_not_ready_before_it_has_looked() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        await_ready(scene)?;
        scene.signal(Host::B, Signal::STOP)?;
        scene.await_status("unprotected", Host::A, |status| {
            status.protection == Protection::Off
        })?;
        let client = scene.client(Host::B);
        let asked = thread::spawn(move || client.status());
        thread::sleep(Duration::from_millis(200));
        scene.signal(Host::B, Signal::CONT)?;
        let status = asked.join().unwrap()?;
        ensure!(status.verdict() != Verdict::Ready, "{status}");
        await_ready(scene)
    });
}
