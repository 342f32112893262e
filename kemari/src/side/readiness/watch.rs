//! The secondary's own watch: it looks about once a second, on a thread of its own, and tells what stands on the list.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use super::{Findings, Source};
use crate::config::Config;

/// How often it looks whether somebody has found something else.
const ROUND_INTERVAL: Duration = Duration::from_millis(250);
/// In every so manieth round it looks itself, and tells what stands on the list in any case.
const LOOK_ROUNDS: u32 = 4;

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
        thread::Builder::new().name("readiness".into()).spawn(move || {
            let (mut round, mut told) = (0, None);
            while let Some(locked_bytes) = wanted.upgrade() {
                let looks = round % LOOK_ROUNDS == 0;
                if looks {
                    findings.note(Source::Fence, None, fence_trouble(&config, &host));
                    let locked_bytes = locked_bytes.load(Ordering::Relaxed);
                    findings.note(Source::Memory, None, memory_trouble(locked_bytes));
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

/// Why a fence command could not be started here, if a takeover needs one.
fn fence_trouble(config: &Config, host: &str) -> Option<String> {
    let shares_disk = config.disks.iter().any(|disk| disk.shared && !disk.read_only);
    let program = config.host(host).fence.first()?;
    (shares_disk && executable(program).is_none()).then(|| {
        format!("the fence command `{program}` is no program of this host: install it, or correct `fence`")
    })
}

/// The file that a command of this name is started from, found as `execvp` finds it.
pub fn executable(program: &str) -> Option<PathBuf> {
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
        assert!(executable("true").is_some() && executable("/bin/sh").is_some());
        assert_eq!(executable("/etc/passwd"), None);
        assert_eq!(executable("no-such-fence"), None);
        assert_eq!(executable("/"), None);
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
