//! A host that lives and is of no use to the VM: liveness is progress.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari::control::Role;
use lab::Network;

use crate::support::{Host, Plan, Scene, play};

/// How long a pair that must not change its roles is watched: past every time-out of the plan.
const WATCHED: Duration = Duration::from_secs(2);

/// Most attempts to stop a thread where it waits.
const STOPS_MAX: usize = 1000;

#[test]
fn a_primary_without_uplink_gives_the_vm_to_a_secondary_that_has_one() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.net.unplug(Host::A.number(), Network::Guests)?;
        let status = scene.await_protected(Host::B)?;
        let planned = status
            .takeover
            .is_some_and(|takeover| takeover.planned_pause_ms.is_some());
        ensure!(planned, "the VM came by something else than a switchover");
        ensure!(scene.is_running(Host::A), "the old primary was fenced");
        clients.go_on()?;
        // Now neither has an uplink: it stays where it is, and says why.
        scene.net.unplug(Host::B.number(), Network::Guests)?;
        scene.await_status("the trouble", Host::B, |status| {
            waits_for(status, "no better off")
        })?;
        std::thread::sleep(WATCHED);
        ensure!(
            role(scene, Host::B) == Some(Role::Primary),
            "B gave the VM away for nothing"
        );
        scene.net.plug(Host::A.number(), Network::Guests)?;
        scene.await_protected(Host::A)?;
        clients.go_on()?;
        clients.finish()
    });
}

#[test]
fn a_secondary_without_uplink_is_no_reason_to_change() {
    play(&Plan::default(), |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        scene.net.unplug(Host::B.number(), Network::Guests)?;
        scene.await_status("the trouble", Host::B, |status| {
            waits_for(status, "could not run the VM well")
        })?;
        clients.work(WATCHED)?;
        ensure!(role(scene, Host::A) == Some(Role::Primary), "A gave the VM away");
        scene.await_protected(Host::A)?;
        clients.finish()
    });
}

/// The disk's threads are stopped as a hanging disk would stop them; heartbeats go on.
#[test]
fn a_primary_whose_disk_hangs_hands_the_vm_over() {
    let plan = Plan {
        progress_timeout_ms: 2000,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let stopped = stop_disk(scene.pid(Host::A)?)?;
        scene.await_log(Host::A, "the disk blk0 has not finished a request within 2000 ms")?;
        scene.await_primary(Host::B)?;
        clients.go_on()?;
        drop(stopped);
        clients.finish()
    });
}

fn waits_for(status: &kemari::control::Status, what: &str) -> bool {
    status
        .waiting_because
        .as_ref()
        .is_some_and(|because| because.contains(what))
}

fn role(scene: &Scene, host: Host) -> Option<Role> {
    scene.status(host).map(|status| status.role)
}

/// A thread that stands still while the rest of its process goes on.
struct StoppedThread(libc::pid_t);

impl Drop for StoppedThread {
    fn drop(&mut self) {
        // SAFETY: the thread was attached to by this one, and system calls by value. If it was killed meanwhile it is
        // this one's to reap, or its process would never be gone.
        unsafe {
            if libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) != 0 {
                libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL);
            }
        }
    }
}

/// Stops all that carries out the I/O of disks, where a disk that hangs would: in the kernel, and so with no lock held.
fn stop_disk(pid: u32) -> Result<Vec<StoppedThread>> {
    let mut stopped = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path();
        if fs::read_to_string(path.join("comm"))?.starts_with("disk") {
            stopped.push(stop_in_kernel(&path)?);
        }
    }
    ensure!(!stopped.is_empty(), "the process has no thread for its disk");
    Ok(stopped)
}

/// Stops a thread, named by its directory in /proc, that waits in a system call.
fn stop_in_kernel(path: &Path) -> Result<StoppedThread> {
    let id: libc::pid_t = path
        .file_name()
        .and_then(|name| name.to_str())
        .context("a thread has an id")?
        .parse()?;
    for _ in 0..STOPS_MAX {
        // SAFETY: a system call by value; it stops that thread alone.
        let result = unsafe { libc::ptrace(libc::PTRACE_ATTACH, id, 0, 0) };
        ensure!(
            result == 0,
            "cannot attach to a thread of the disk: {}",
            std::io::Error::last_os_error()
        );
        let stopped = StoppedThread(id);
        // SAFETY: waits for the stop that was just asked for; the status is of no interest.
        unsafe { libc::waitpid(id, std::ptr::null_mut(), libc::__WALL) };
        // The number of the system call comes first; -1 is none.
        if !fs::read_to_string(path.join("syscall"))?.starts_with('-') {
            return Ok(stopped);
        }
        drop(stopped);
        std::thread::sleep(Duration::from_millis(1));
    }
    anyhow::bail!("a thread of the disk never waits")
}
