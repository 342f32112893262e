//! What `kemari status` tells of disks, on both sides.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use kemari::config::Flush;
use kemari::control::{DiskKind, DiskState, DiskStatus, Status};

use crate::support::{Host, Plan, Scene, play, stop_threads};

fn disk(status: &Status) -> DiskStatus {
    status.disks.first().cloned().unwrap_or_default()
}

fn await_disk(
    scene: &mut Scene,
    what: &str,
    host: Host,
    is_it: impl Fn(&DiskStatus) -> bool,
) -> Result<DiskStatus> {
    let status = scene.await_status(what, host, |status| is_it(&disk(status)))?;
    Ok(disk(&status))
}

#[test]
fn both_sides_tell_how_a_replicated_disk_stands() {
    let plan = Plan {
        protection: "resync_mib_per_s_max = 4",
        ..Plan::replicated("both")
    };
    play(&plan, |scene| {
        // Two seconds of copying.
        let image = fs::OpenOptions::new().write(true).open(scene.image(Host::A))?;
        image.write_all_at(&[0x5a; 8 << 20], 8 << 20)?;
        scene.run(Host::A)?;
        scene.await_service(Host::A)?;
        await_disk(scene, "a disk without a copy", Host::A, |disk| {
            disk.state == DiskState::Alone
        })?;
        scene.secondary(Host::B)?;
        // What `kemari status` prints.
        let status = scene.await_status("a copy", Host::A, |status| {
            let disk = disk(status);
            disk.state == DiskState::Copying && disk.compared_bytes > 0
        })?;
        let (copying, text) = (disk(&status), status.to_string());
        ensure!(copying.total_bytes == 16 << 20, "{copying:?}");
        await_disk(scene, "a copy", Host::B, |disk| disk.state == DiskState::Copying)?;
        ensure!(
            text.contains("blk0, replicated, flush to both disks: copying "),
            "{text}"
        );
        scene.await_protected(Host::A)?;
        for host in Host::BOTH {
            let shown = await_disk(scene, "the pair", host, |disk| disk.state == DiskState::InSync)?;
            ensure!(
                (shown.kind, shown.flush) == (DiskKind::Replicated, Some(Flush::Both)),
                "{shown:?}"
            );
            let json = scene.ask(host, &["status", "--json"])?.text;
            ensure!(
                json.contains("\"state\":\"in_sync\"") || json.contains("\"state\": \"in_sync\""),
                "{json}"
            );
        }
        // What waits for the secondary's image shows on either side.
        let clients = scene.clients()?;
        clients.go_on()?;
        let stopped = stop_threads(scene.pid(Host::B)?, "replica")?;
        await_disk(scene, "requests that wait", Host::B, |disk| {
            disk.queued_requests > 0 && disk.queued_bytes > 0
        })?;
        await_disk(scene, "flushes that wait", Host::A, |disk| {
            disk.waiting_flushes > 0
        })?;
        drop(stopped);
        clients.go_on()?;
        clients.finish()?;
        await_disk(scene, "an empty queue", Host::B, |disk| {
            disk.queued_requests == 0 && disk.queued_bytes == 0
        })?;
        await_disk(scene, "no flush that waits", Host::A, |disk| {
            disk.waiting_flushes == 0
        })?;
        scene.kill(Host::B)?;
        scene.await_alone(Host::A)?;
        scene.order(&["BLKTEST", "200", "32"])?;
        await_disk(scene, "changes", Host::A, |disk| {
            disk.state == DiskState::Alone && disk.changed_bytes > 0
        })?;
        // A copy that is cut off leaves an image that nothing may run from.
        scene.secondary(Host::B)?;
        await_disk(scene, "a copy", Host::B, |disk| disk.state == DiskState::Copying)?;
        scene.kill(Host::A)?;
        await_disk(scene, "half a copy", Host::B, |disk| {
            disk.state == DiskState::Inconsistent
        })?;
        scene.kill(Host::B)?;
        scene.secondary(Host::B)?;
        await_disk(scene, "half a copy", Host::B, |disk| {
            disk.state == DiskState::Inconsistent
        })?;
        Ok(())
    });
}

#[test]
fn a_shared_disk_is_in_use_on_one_side() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        for (host, state) in [(Host::A, DiskState::InUse), (Host::B, DiskState::Closed)] {
            let shown = await_disk(scene, "a shared disk", host, |disk| disk.kind == DiskKind::Shared)?;
            ensure!((shown.state, shown.flush) == (state, None), "{shown:?}");
        }
        Ok(())
    });
}
