//! On what was measured.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::Duration;

use kemari_vmm::arch::preflight;
use serde_json::{Value, json};

use super::place::{CORE_OF_A, CORE_OF_B};
use crate::tools::{output_of, root};

/// Describes this machine and the commit, for the result file.
pub fn describe(quick: bool, took: Duration) -> Value {
    let first = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    let cpuinfo = first("/proc/cpuinfo").unwrap_or_default();
    let processor = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let meminfo = first("/proc/meminfo").unwrap_or_default();
    let memory_kib = meminfo.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .split_ascii_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    let kvm = match preflight::open().and_then(|kvm| preflight::measure(&kvm)) {
        Ok(found) => format!("{:?}", found.ability),
        Err(error) => error.to_string(),
    };
    let git = |args: &[&str]| output_of(Command::new("git").current_dir(root()).args(args)).ok();
    let commit = git(&["rev-parse", "--short", "HEAD"]).map(|text| text.trim().to_owned());
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).map(|text| !text.trim().is_empty());
    json!({
        "processor": processor.map(|(_, name)| name.trim()),
        "cores": available_parallelism().map_or(0, usize::from),
        "memory_mib": memory_kib.map(|kib| kib / 1024),
        "kernel": first("/proc/sys/kernel/osrelease"),
        "kvm": kvm,
        "load_at_the_end": first("/proc/loadavg"),
        "commit": commit,
        "changed_since": changed,
        "quick": quick,
        "took_s": took.as_secs(),
        "polls": format!(
            "the primary runs and polls on core {CORE_OF_A}, the secondary on core {CORE_OF_B}; the bare \
             limit's two ends likewise"
        ),
        "link": "loopback TCP with TCP_NODELAY, plaintext",
        "disk": "on tmpfs",
    })
}

/// The same as one line for people.
pub fn sentence(machine: &Value) -> String {
    let text = |name: &str| machine[name].as_str().unwrap_or("unknown").to_owned();
    format!(
        "  {}, {} cores, {} MiB, kernel {}, KVM: {}; {}; load {}",
        text("processor"),
        machine["cores"],
        machine["memory_mib"],
        text("kernel"),
        text("kvm"),
        text("polls"),
        text("load_at_the_end"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let machine = describe(true, Duration::from_secs(3));
        assert!(machine["cores"].as_u64().unwrap() > 0 && machine["memory_mib"].as_u64().unwrap() > 0);
        assert!(machine["kernel"].is_string() && machine["quick"] == true);
        assert!(sentence(&machine).contains("core 1"));
    }
}
