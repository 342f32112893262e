//! What operators and storage do wrong: each ends in a clear error or a defined wait, never in two primaries.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use kemari::control::Role;

use crate::support::{FENCE_WORKS, Fence, Host, Plan, Scene, play};

/// How long somebody is watched who must not run the VM.
const WATCHED: Duration = Duration::from_millis(2500);

#[test]
fn a_fence_that_hangs_is_waited_for_and_the_guest_does_not_run() {
    let plan = Plan {
        fence: Fence::Hangs,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.kill(Host::A)?;
        scene.await_status("the trouble with the fence", Host::B, |status| {
            let because = status.waiting_because.as_deref();
            because.is_some_and(|because| because.contains("could not be fenced"))
        })?;
        let acknowledged = clients.acknowledged();
        std::thread::sleep(WATCHED);
        ensure!(
            role(scene, Host::B) == Some(Role::Secondary),
            "B runs a VM whose old host is not fenced"
        );
        ensure!(clients.acknowledged() == acknowledged, "somebody answers");
        fs::write(scene.path(FENCE_WORKS), "")?;
        scene.await_primary(Host::B)?;
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn after_an_arbiter_was_restored_to_an_older_time_nobody_takes_over() {
    play(&Plan::default(), |scene| {
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let older = records(scene)?;
        for _ in 0..2 {
            scene.secondary(Host::B)?;
            scene.await_protected(Host::A)?;
            scene.kill(Host::B)?;
            scene.await_alone(Host::A)?;
        }
        scene.secondary(Host::B)?;
        scene.await_protected(Host::A)?;
        let clients = scene.clients()?;
        // The first record stands again.
        for path in records(scene)? {
            if !older.contains(&path) {
                fs::remove_file(path)?;
            }
        }
        clients.work(Duration::from_millis(300))?;
        scene.kill(Host::A)?;
        scene.await_status("the alarm", Host::B, |status| {
            let because = status.waiting_because.as_deref();
            because.is_some_and(|because| because.contains("went back in time"))
        })?;
        std::thread::sleep(WATCHED);
        ensure!(
            role(scene, Host::B) == Some(Role::Secondary),
            "B took over by a record of the past"
        );
        clients.abandon().map(drop)
    });
}

#[test]
fn the_record_of_another_vm_and_a_damaged_one_start_nothing() {
    play(&Plan::default(), |scene| {
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let stopped = scene.ask(Host::A, &["stop"])?;
        ensure!(stopped.success, "{}", stopped.text);
        scene.await_clean_end(Host::A)?;
        let last = records(scene)?.pop().expect("there is a record");
        let good = fs::read_to_string(&last)?;
        for (text, why) in [
            (
                good.replace("\"vm\":\"scene\"", "\"vm\":\"other\""),
                "cannot be used",
            ),
            (good[..good.len() / 2].to_owned(), "cannot be used"),
        ] {
            fs::write(&last, text)?;
            for host in Host::BOTH {
                let refused = scene.ask(host, &["run"])?;
                ensure!(!refused.success && refused.text.contains(why), "{}", refused.text);
            }
        }
        // It is what stands there that was wrong, and nothing else.
        fs::write(&last, good)?;
        scene.run(Host::B)?;
        scene.await_service(Host::B)
    });
}

#[test]
fn another_arbiter_does_not_make_a_second_primary_of_a_shared_disk() {
    play(&Plan::default(), |scene| {
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        let clients = scene.clients()?;
        let other = scene.path("other-arbiter");
        fs::create_dir(&other)?;
        fs::write(other.join(kemari::arbiter::MARKER), "")?;
        let config = fs::read_to_string(scene.config("scene.toml"))?;
        let path = |name: &str| format!("path = \"{}\"", scene.path(name).display());
        let wrong = config.replace(&path("arbiter"), &path("other-arbiter"));
        ensure!(wrong != config, "the configuration has changed");
        fs::write(scene.config("wrong.toml"), wrong)?;
        scene.start(Host::B, &["run"], "wrong.toml", &[])?;
        // Its arbiter lets it: what stops it is the disk's lock, the last of the guards.
        let image = scene.path("disk.img");
        scene.await_log(
            Host::B,
            &format!("the disk image {} is in use by ", image.display()),
        )?;
        scene.await_refusal(Host::B)?;
        clients.go_on()?;
        // Nor does A take such a host as its secondary.
        scene.start(Host::B, &["secondary"], "wrong.toml", &[])?;
        scene.await_log(Host::A, "the configurations differ")?;
        clients.go_on()?;
        clients.finish()
    });
}

fn role(scene: &Scene, host: Host) -> Option<Role> {
    scene.status(host).map(|status| status.role)
}

/// The files of the arbiter's records, the one that counts last.
fn records(scene: &Scene) -> Result<Vec<std::path::PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(scene.path("arbiter"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "record") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
