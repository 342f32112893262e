//! What the control groups of this process allow it of memory (cgroups(7), versions 1 and 2).

use std::fs;
use std::path::{Path, PathBuf};

/// A group, or one above it, that limits memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    /// Most that its processes may use together, in bytes.
    pub bytes: u64,
    /// The file that says so.
    pub path: PathBuf,
}

/// The names of a version's files.
struct Version {
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: cached pages that are given back as soon as memory is short.
    reclaimable: &'static str,
}

/// From here on a number of bytes is no limit: version 1 says so of groups without one.
const NO_LIMIT_BYTES: u64 = 1 << 60;

const VERSIONS: [Version; 2] = [
    Version {
        limit: "memory.max",
        usage: "memory.current",
        reclaimable: "inactive_file ",
    },
    Version {
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
        reclaimable: "total_inactive_file ",
    },
];

/// Where the groups of a process are found.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    own: PathBuf,
    mounts: PathBuf,
}

impl Groups {
    /// Those of this process.
    pub(crate) fn own() -> Self {
        Self {
            own: "/proc/self/cgroup".into(),
            mounts: "/sys/fs/cgroup".into(),
        }
    }

    /// The tightest limit.
    pub(crate) fn memory_limit(&self) -> Option<MemoryLimit> {
        let limits = self.limits().map(|(limit, _)| limit);
        limits.min_by_key(|limit| limit.bytes)
    }

    /// What is left of the limits, in bytes, and of which least:
    /// beyond it the kernel ends processes of the group.
    pub(crate) fn memory_left(&self) -> Option<(u64, MemoryLimit)> {
        let left = self.limits().filter_map(|(limit, version)| {
            let group = limit.path.parent()?;
            let used_bytes = number_in(&group.join(version.usage))?;
            let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
            let reclaimable = stat
                .lines()
                .find_map(|line| line.strip_prefix(version.reclaimable)?.trim().parse().ok());
            let used_bytes = used_bytes.saturating_sub(reclaimable.unwrap_or(0));
            Some((limit.bytes.saturating_sub(used_bytes), limit))
        });
        left.min_by_key(|(bytes, _)| *bytes)
    }

    fn limits(&self) -> impl Iterator<Item = (MemoryLimit, &'static Version)> {
        let of_group = |group: PathBuf| {
            VERSIONS.iter().filter_map(move |version| {
                let path = group.join(version.limit);
                let bytes = number_in(&path).filter(|bytes| *bytes < NO_LIMIT_BYTES)?;
                Some((MemoryLimit { bytes, path }, version))
            })
        };
        self.groups().into_iter().flat_map(of_group)
    }

    /// The directories of the groups and of those above them.
    fn groups(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string(&self.own).unwrap_or_default();
        let mut groups = Vec::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else {
                continue;
            };
            let root = match controllers {
                "" => self.mounts.clone(),
                _ if controllers.split(',').any(|name| name == "memory") => self.mounts.join("memory"),
                _ => continue,
            };
            // A group above the root of this namespace cannot be seen: then what can be seen counts.
            let group = Path::new(group.trim_start_matches('/'));
            groups.extend(group.ancestors().map(|ancestor| root.join(ancestor)));
        }
        groups
    }
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups of which a test says what is in their files.
    fn groups(own: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Groups) {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let groups = Groups {
            own: directory.path().join("own"),
            mounts: directory.path().into(),
        };
        fs::write(&groups.own, own).unwrap();
        (directory, groups)
    }

    #[test]
    fn the_tightest_group_counts_in_either_version() {
        let files = [
            ("a/b/memory.max", "max\n"),
            ("a/memory.max", "209715200\n"),
            ("memory/x/memory.limit_in_bytes", "104857600\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        let limit = |own: &str| {
            let (_directory, groups) = groups(own, &files);
            groups.memory_limit()
        };
        let found = limit("0::/a/b\n").unwrap();
        assert_eq!(found.bytes, 200 << 20);
        assert!(found.path.ends_with("a/memory.max"));
        let both = limit("5:cpu,cpuacct:/x\n4:memory:/x\n0::/a/b\n").unwrap();
        assert_eq!(both.bytes, 100 << 20);
        assert_eq!(limit("0::/../elsewhere\nrubbish\n"), None);
        assert_eq!(limit("4:memory:/y\n"), None, "that of the root is none");
        let none = Groups {
            own: "/nonexistent".into(),
            mounts: "/nonexistent".into(),
        };
        assert_eq!(none.memory_limit(), None);
    }

    #[test]
    fn what_is_left_counts_the_page_cache_as_free() {
        let (_directory, second) = groups(
            "0::/a/b\n",
            &[
                ("a/b/memory.max", "1000"),
                ("a/b/memory.current", "100"),
                ("a/memory.max", "2000"),
                ("a/memory.current", "1900"),
                ("a/memory.stat", "anon 5\ninactive_file 300\nactive_file 7\n"),
            ],
        );
        let (left, limit) = second.memory_left().unwrap();
        assert!(left == 400 && limit.path.ends_with("a/memory.max"), "{left}");
        let (_directory, first) = groups(
            "4:memory:/x\n",
            &[
                ("memory/x/memory.limit_in_bytes", "1000"),
                ("memory/x/memory.usage_in_bytes", "1200"),
                ("memory/x/memory.stat", "total_inactive_file 50\n"),
            ],
        );
        assert_eq!(first.memory_left().unwrap().0, 0);
    }
}
