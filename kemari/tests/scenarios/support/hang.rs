//! Disks that hang.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Most attempts to stop a thread where it waits.
const STOPS_MAX: usize = 1000;

/// A thread that stands still while the rest of its process goes on.
pub(crate) struct StoppedThread(libc::pid_t);

impl Drop for StoppedThread {
    fn drop(&mut self) {
        // SAFETY: the thread was attached to by this one, and system calls by value. If it was killed
        // meanwhile it is this one's to reap, or its process would never be gone.
        unsafe {
            if libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) != 0 {
                libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL);
            }
        }
    }
}

/// Stops all threads of a process whose names begin so, as a disk that hangs stops those that use it:
/// in the kernel.
pub(crate) fn stop_threads(pid: u32, name: &str) -> Result<Vec<StoppedThread>> {
    let mut stopped = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path();
        // Others may end while they are looked at.
        let its_name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if its_name.starts_with(name) {
            stopped.push(stop_in_kernel(&path)?);
        }
    }
    ensure!(!stopped.is_empty(), "the process has no thread `{name}`");
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
        // The number of the system call comes first. A thread that is in none, or that tells another
        // something, may hold a lock that a disk would not hold up.
        let call = fs::read_to_string(path.join("syscall"))?;
        let call: i64 = call
            .split_whitespace()
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or(-1);
        if call >= 0 && call != libc::SYS_write {
            return Ok(stopped);
        }
        drop(stopped);
        std::thread::sleep(Duration::from_millis(1));
    }
    anyhow::bail!("a thread of the disk never waits")
}
