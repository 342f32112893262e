//! Processes that get no more threads.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A control group of its own for a process, in which the number of tasks can be limited. Root is exempt from
/// all other such limits.
pub struct Tasks {
    directory: PathBuf,
}

impl Tasks {
    /// Puts a process into a group without a limit.
    pub fn of(pid: u32) -> Result<Self> {
        // The controller of version 1, or version 2 of control groups.
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
        let root = roots
            .into_iter()
            .find(|root| Path::new(root).join("cgroup.procs").exists())
            .context("there is no control group for tasks")?;
        let directory = Path::new(root).join(format!("kemari-tasks-{pid}"));
        fs::create_dir(&directory)
            .with_context(|| format!("cannot make the control group {}", directory.display()))?;
        let tasks = Self { directory };
        tasks.write("cgroup.procs", &pid.to_string())?;
        Ok(tasks)
    }

    /// From now on no thread and no process can be made.
    pub fn allow_no_more(&self) -> Result<()> {
        let now = fs::read_to_string(self.directory.join("pids.current"))?;
        self.write("pids.max", now.trim())
    }

    /// Ends the limit.
    pub fn allow_all(&self) -> Result<()> {
        self.write("pids.max", "max")
    }

    fn write(&self, name: &str, word: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, word).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let _ = self.allow_all();
        let parent = self.directory.parent().unwrap_or(Path::new("/sys/fs/cgroup"));
        let pids = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            let _ = fs::write(parent.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}
