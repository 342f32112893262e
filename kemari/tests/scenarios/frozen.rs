//! A process that gets no processor for seconds, as on a host that is paused or starved: not one thread of it
//! runs, and unlike after SIGSTOP nothing tells it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kemari::control::Role;

use crate::support::{Fence, Host, Plan, play};

#[test]
fn a_starved_primary_finds_itself_deposed_and_shows_nothing_more() {
    let plan = Plan {
        fence: Fence::ProvesNothing,
        ..Plan::default()
    };
    play(&plan, |scene| {
        scene.protect()?;
        let clients = scene.clients()?;
        let freezer = Freezer::of(scene.pid(Host::A)?)?;
        freezer.set(true)?;
        scene.await_primary(Host::B)?;
        clients.work(Duration::from_secs(2))?;
        freezer.set(false)?;
        scene.await_protected(Host::B)?;
        let role = scene.status(Host::A).map(|status| status.role);
        ensure!(role == Some(Role::Secondary), "A is {role:?}");
        clients.go_on()?;
        clients.finish()
    });
}

/// A control group of its own for a process, that can be frozen.
struct Freezer {
    directory: PathBuf,
    /// The file that freezes, and the words for yes and no.
    file: &'static str,
    words: [&'static str; 2],
}

impl Freezer {
    fn of(pid: u32) -> Result<Self> {
        // Version 2 of control groups, alone or beside version 1; or the freezer of version 1.
        let unified = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let unified = unified
            .into_iter()
            .find(|root| Path::new(root).join("cgroup.controllers").exists());
        let name = format!("kemari-test-{pid}");
        let freezer = match unified {
            Some(root) => Self {
                directory: Path::new(root).join(name),
                file: "cgroup.freeze",
                words: ["0", "1"],
            },
            None => Self {
                directory: Path::new("/sys/fs/cgroup/freezer").join(name),
                file: "freezer.state",
                words: ["THAWED", "FROZEN"],
            },
        };
        fs::create_dir(&freezer.directory)
            .with_context(|| format!("cannot make the control group {}", freezer.directory.display()))?;
        fs::write(freezer.directory.join("cgroup.procs"), pid.to_string())?;
        Ok(freezer)
    }

    fn set(&self, frozen: bool) -> Result<()> {
        let path = self.directory.join(self.file);
        fs::write(&path, self.words[usize::from(frozen)])
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // The process is thawed, so that it can be ended; the group goes with the last process in it.
        let _ = self.set(false);
        let parent = self.directory.parent().unwrap_or(Path::new("/sys/fs/cgroup"));
        let pids = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            let _ = fs::write(parent.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}
