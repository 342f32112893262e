//! Control groups of their own for processes that get no more threads, or little memory: of version 1, where
//! each controller has a tree, and of version 2, where all have one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::error::{Context, Error, Result};
use crate::process::run;

/// Where control groups are mounted, if they are.
const MOUNTS: &str = "/sys/fs/cgroup";
/// The file that limits memory in version 2, and in version 1.
const MEMORY_FILE_NAMES: [&str; 2] = ["memory.max", "memory.limit_in_bytes"];

/// A group; its processes go back to its parent with the value.
struct ControlGroup {
    directory: PathBuf,
    /// Where the tree was mounted for it.
    _mount: Option<Mount>,
}

impl ControlGroup {
    fn new(controller: &str, name: &str) -> Result<Self> {
        if let Ok(tree) = tree_of(Path::new(MOUNTS), controller) {
            return Self::below(&tree, controller, name, None);
        }
        // Nobody has mounted any, where there is no systemd.
        let mount = Mount::new()?;
        let tree = tree_of(mount.0.path(), controller)?;
        Self::below(&tree, controller, name, Some(mount))
    }

    fn below(tree: &Path, controller: &str, name: &str, mount: Option<Mount>) -> Result<Self> {
        let directory = tree.join(format!("kemari-{controller}-{name}"));
        fs::create_dir(&directory).context(|| format!("make the control group {}", directory.display()))?;
        Ok(Self {
            directory,
            _mount: mount,
        })
    }

    fn procs(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    fn write(&self, name: &str, word: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, word).context(|| format!("write {word} to {}", path.display()))
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let pids = fs::read_to_string(self.procs()).unwrap_or_default();
        let parent = self.directory.parent().unwrap_or(Path::new(MOUNTS));
        for pid in pids.lines() {
            let _ = fs::write(parent.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

/// A tree of version 2 in a directory of its own.
struct Mount(TempDir);

impl Mount {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context(|| "make a directory for control groups".to_owned())?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "cgroup2", "cgroup2"]).arg(directory.path());
        run(&mut mount)?;
        Ok(Self(directory))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--lazy").arg(self.0.path()));
    }
}

/// The root of the groups that have a controller.
fn tree_of(mounts: &Path, controller: &str) -> Result<PathBuf> {
    let first = mounts.join(controller);
    if first.join("cgroup.procs").exists() {
        return Ok(first);
    }
    let controllers = mounts.join("cgroup.controllers");
    let known = fs::read_to_string(&controllers).context(|| format!("read {}", controllers.display()))?;
    if !known.split_whitespace().any(|known| known == controller) {
        return Err(Error::Format {
            path: controllers,
            reason: format!("there is no controller `{controller}`"),
        });
    }
    // Groups have what their parent hands down.
    let handed = mounts.join("cgroup.subtree_control");
    let already = fs::read_to_string(&handed).unwrap_or_default();
    if already.split_whitespace().any(|known| known == controller) {
        return Ok(mounts.to_owned());
    }
    fs::write(&handed, format!("+{controller}"))
        .context(|| format!("have groups limit {controller} by {}", handed.display()))?;
    Ok(mounts.to_owned())
}

/// A process whose threads and children can be kept from becoming more.
/// Root is exempt from all other such limits.
pub struct Tasks(ControlGroup);

impl Tasks {
    /// Puts a process into a group without a limit.
    pub fn of(pid: u32) -> Result<Self> {
        let tasks = Self(ControlGroup::new("pids", &pid.to_string())?);
        tasks.0.write("cgroup.procs", &pid.to_string())?;
        Ok(tasks)
    }

    /// From now on no thread and no process can be made.
    pub fn allow_no_more(&self) -> Result<()> {
        let path = self.0.directory.join("pids.current");
        let now = fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
        self.0.write("pids.max", now.trim())
    }

    /// Ends the limit.
    pub fn allow_all(&self) -> Result<()> {
        self.0.write("pids.max", "max")
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let _ = self.allow_all();
    }
}

/// A group whose processes have so much memory and no more.
pub struct LittleMemory(ControlGroup);

impl LittleMemory {
    /// So many bytes.
    pub fn new(bytes: u64) -> Result<Self> {
        let group = ControlGroup::new("memory", &std::process::id().to_string())?;
        let exists = |name: &&str| group.directory.join(name).exists();
        let name = MEMORY_FILE_NAMES.into_iter().find(exists);
        group.write(name.unwrap_or(MEMORY_FILE_NAMES[0]), &bytes.to_string())?;
        Ok(Self(group))
    }

    /// A process that writes its id to this file is in the group, and so are its children.
    pub fn procs(&self) -> PathBuf {
        self.0.procs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_tree_and_without_the_controller_nothing_is_made() {
        let first = tempfile::tempdir().unwrap();
        fs::create_dir(first.path().join("pids")).unwrap();
        fs::write(first.path().join("pids/cgroup.procs"), "").unwrap();
        assert_eq!(tree_of(first.path(), "pids").unwrap(), first.path().join("pids"));

        let second = tempfile::tempdir().unwrap();
        fs::write(second.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(second.path().join("cgroup.procs"), "").unwrap();
        assert_eq!(tree_of(second.path(), "pids").unwrap(), second.path());
        let handed = fs::read_to_string(second.path().join("cgroup.subtree_control"));
        assert_eq!(handed.unwrap(), "+pids");
        assert!(tree_of(second.path(), "hugetlb").is_err());
    }

    #[test]
    fn a_group_ends_with_its_value() {
        let tree = tempfile::tempdir().unwrap();
        let group = ControlGroup::below(tree.path(), "memory", "test", None).unwrap();
        let directory = group.directory.clone();
        assert!(directory.exists());
        drop(group);
        assert!(!directory.exists());
    }

    /// Whichever version this machine has.
    #[test]
    fn a_process_gets_no_more_tasks_until_all_are_allowed() {
        let mut shell = Command::new("sleep").arg("60").spawn().unwrap();
        let tasks = Tasks::of(shell.id()).unwrap();
        tasks.allow_no_more().unwrap();
        let limit = || fs::read_to_string(tasks.0.directory.join("pids.max")).unwrap();
        assert_eq!(limit().trim(), "1");
        tasks.allow_all().unwrap();
        assert_eq!(limit().trim(), "max");
        shell.kill().unwrap();
        shell.wait().unwrap();
    }
}
