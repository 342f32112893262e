//! The secondary's own watch: it looks about once a second, on a thread of its own,
//! and tells what stands on the list.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::{Findings, Source};
use crate::config::Config;
use crate::{steward, threads};

/// How often it looks whether somebody has found something else.
const ROUND_INTERVAL: Duration = Duration::from_millis(250);
/// In every so manieth round it looks itself, and tells what stands on the list in any case.
const LOOK_ROUNDS: u32 = 4;
/// Most threads that serve a disk, and a card, after a takeover: they wait in the reserve. All others are
/// made with the standby VM.
const DISK_THREADS: usize = 7;
const CARD_THREADS: usize = 2;
/// So many bytes of a script's first line count for the kernel.
const LINE_BYTES_MAX: u64 = 256;

/// A watch; it ends when this is dropped.
pub struct ReadinessWatch {
    locked_bytes: Arc<AtomicU64>,
    _alive: Sender<()>,
}

impl ReadinessWatch {
    /// Tells about once a second what stands on the list, and at once if that has changed.
    pub fn start(
        config: Arc<Config>,
        host: String,
        findings: Arc<Findings>,
        tell: impl Fn(Vec<String>) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (alive, ended) = channel();
        let locked_bytes = Arc::new(AtomicU64::new(0));
        let wanted = Arc::downgrade(&locked_bytes);
        let threads_wanted = config.disks.len() * DISK_THREADS + config.nets.len() * CARD_THREADS;
        threads::start("readiness", move || {
            let (mut round, mut told) = (0, None);
            while let Some(locked_bytes) = wanted.upgrade() {
                let looks = round % LOOK_ROUNDS == 0;
                if looks {
                    findings.note(Source::Fence, None, steward::trouble(&config, &host));
                    let locked_bytes = locked_bytes.load(Ordering::Relaxed);
                    findings.note(Source::Memory, None, memory_trouble(locked_bytes));
                    findings.note(Source::Threads, None, threads_trouble(threads_wanted));
                }
                let reasons = findings.reasons();
                if looks || told.as_ref() != Some(&reasons) {
                    tell(reasons.clone());
                    told = Some(reasons);
                }
                round = round.wrapping_add(1);
                if ended.recv_timeout(ROUND_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self {
            locked_bytes,
            _alive: alive,
        })
    }

    /// So much memory of this process is to be locked from here on.
    pub fn expect_locked(&self, bytes: u64) {
        self.locked_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// The file that a command of this name is started from, found as `execvp` finds it.
///
/// # Errors
/// Why it could not be started, as the end of a sentence.
pub fn executable(program: &str) -> Result<PathBuf, String> {
    let missing = || "is no program of this host".to_owned();
    let path = found(program).ok_or_else(missing)?;
    match interpreters(&path).into_iter().find(|name| found(name).is_none()) {
        Some(name) => Err(format!(
            "is a script for `{name}`, which is no program of this host"
        )),
        None => Ok(path),
    }
}

/// The programs that the kernel starts instead of a script, by its first line;
/// of `env` also the one that it finds.
fn interpreters(script: &Path) -> Vec<String> {
    let mut bytes = Vec::new();
    // What cannot be read may well be executable.
    let read = File::open(script).and_then(|file| file.take(LINE_BYTES_MAX).read_to_end(&mut bytes));
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some(line) = read.ok().and_then(|_| line.strip_prefix(b"#!")) else {
        return Vec::new();
    };
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    let first = words.next().map(str::to_owned);
    let is_env = first.as_ref().is_some_and(|name| name.ends_with("/env"));
    let second = words
        .next()
        .filter(|word| is_env && !word.starts_with('-') && !word.contains('='));
    first.into_iter().chain(second.map(str::to_owned)).collect()
}

fn found(program: &str) -> Option<PathBuf> {
    let candidates: Vec<PathBuf> = match program.contains('/') {
        true => vec![program.into()],
        false => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|directory| directory.join(program))
            .collect(),
    };
    let is_executable = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
            && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    candidates.into_iter().find(|path| is_executable(path))
}

/// Why not all of the guest's memory is there: it was locked when the standby VM was made.
fn memory_trouble(wanted_bytes: u64) -> Option<String> {
    if wanted_bytes == 0 {
        return None;
    }
    let status = match std::fs::read_to_string("/proc/self/status") {
        Ok(status) => status,
        Err(error) => {
            return Some(format!(
                "whether the guest's memory is locked is not known: {error}"
            ));
        }
    };
    let locked_bytes = locked_bytes(&status);
    (locked_bytes < wanted_bytes).then(|| {
        format!(
            "only {} of the guest's {} MiB of memory are locked in this host's",
            locked_bytes >> 20,
            wanted_bytes >> 20
        )
    })
}

/// Why the reserve has fewer threads than a takeover may need.
fn threads_trouble(wanted: usize) -> Option<String> {
    let missing = kemari_vmm::threads::reserve(wanted).err()?;
    Some(format!("a takeover needs {wanted} threads: {missing}"))
}

fn locked_bytes(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_the_shell_finds_them() {
        assert!(executable("true").is_ok() && executable("/bin/sh").is_ok());
        for none in ["/etc/passwd", "no-such-fence", "/"] {
            assert!(executable(none).unwrap_err().contains("no program"), "{none}");
        }
    }

    #[test]
    fn a_script_needs_its_interpreter() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fence");
        let of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            executable(path.to_str().unwrap())
        };
        for good in [
            "#!/bin/sh\n",
            "#! /usr/bin/env -S sh -e\n",
            "#!/usr/bin/env sh",
            "exit 0\n",
            "",
        ] {
            assert_eq!(of(good), Ok(path.clone()), "{good}");
        }
        assert!(
            of("#!/usr/bin/python3.1 -u\n")
                .unwrap_err()
                .contains("`/usr/bin/python3.1`")
        );
        assert!(
            of("#!/usr/bin/env no-such-python\n")
                .unwrap_err()
                .contains("`no-such-python`")
        );
    }

    #[test]
    fn what_stands_on_the_list_is_told_again_though_nothing_has_changed() {
        let text = include_str!("../../../../docs/example.toml");
        let config = Arc::new(Config::parse(text, "test").unwrap());
        let findings = Findings::new();
        findings.note(Source::State, None, ["torn".to_owned()]);
        let (said, told) = channel();
        let _watch = ReadinessWatch::start(config, "b".into(), findings, move |reasons| {
            // The test may be over.
            let _ = said.send(reasons);
        })
        .unwrap();
        let first = told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(first.contains(&"torn".to_owned()), "{first:?}");
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(first));
    }

    #[test]
    fn memory_that_is_not_locked_is_told() {
        assert_eq!(
            locked_bytes("Name:\tx\nVmLck:\t   65540 kB\nVmPin: 1 kB\n"),
            65_540 << 10
        );
        assert_eq!(locked_bytes("VmPin: 1 kB\n"), 0);
        assert_eq!(memory_trouble(0), None);
        // A test process locks next to nothing.
        assert!(memory_trouble(1 << 40).unwrap().contains("1048576 MiB"));
    }
}
