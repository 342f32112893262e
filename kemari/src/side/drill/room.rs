//! How much memory a drill may take: it must bring neither this host into need nor its own side to an end.

use std::fs;

use anyhow::{Context, bail};

use crate::cgroup::Groups;

/// Least memory that a drill may copy if there is so much, in bytes; else a quarter of the guest's.
const COPIED_BYTES_MIN: u64 = 256 << 20;
/// With less than so much memory at hand, in bytes, there is no drill.
const LEFT_BYTES_MIN: u64 = 64 << 20;
/// With less than so much left, in bytes, a drill ends. It takes at most half of what there was:
/// others have taken the rest.
const SHORT_BYTES: u64 = 32 << 20;

/// Memory that is left, in bytes, and whose it is, in words.
struct Left {
    bytes: u64,
    whose: String,
}

/// How much a drill of a guest with so much memory may copy, in bytes.
///
/// # Errors
/// If so little is left that there must be none.
pub fn copied_bytes_max(guest_bytes: u64) -> anyhow::Result<u64> {
    let left = left()?;
    bound(guest_bytes, &left)
}

fn bound(guest_bytes: u64, left: &Left) -> anyhow::Result<u64> {
    if left.bytes < LEFT_BYTES_MIN {
        bail!(
            "only {} MiB of memory are left {}, and a drill needs {}",
            left.bytes >> 20,
            left.whose,
            LEFT_BYTES_MIN >> 20
        );
    }
    Ok(COPIED_BYTES_MIN.max(guest_bytes / 4).min(left.bytes / 2))
}

/// Why a drill must end now, as memory has become short.
pub fn shortage() -> Option<String> {
    // What was found at its begin is not found any more: then the other limits hold.
    let left = left().ok()?;
    short(&left)
}

fn short(left: &Left) -> Option<String> {
    (left.bytes < SHORT_BYTES)
        .then(|| format!("only {} MiB of memory are left {}", left.bytes >> 20, left.whose))
}

/// The least of what the host has and what the control groups of this process leave.
fn left() -> anyhow::Result<Left> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let available = available_bytes(&text).context("/proc/meminfo names no available memory")?;
    let of_host = Left {
        bytes: available,
        whose: "on this host".to_owned(),
    };
    let of_group = Groups::own().memory_left().map(|(bytes, limit)| Left {
        bytes,
        whose: format!("to the control group of this process ({})", limit.path.display()),
    });
    Ok(match of_group {
        Some(of_group) if of_group.bytes < of_host.bytes => of_group,
        _ => of_host,
    })
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_mib(mib: u64) -> Left {
        Left {
            bytes: mib << 20,
            whose: "to a group".into(),
        }
    }

    #[test]
    fn a_drill_takes_a_part_of_what_is_left_or_there_is_none() {
        let most_mib = |guest_mib: u64, mib| bound(guest_mib << 20, &left_mib(mib)).map(|bytes| bytes >> 20);
        assert_eq!(most_mib(64, 10_000).unwrap(), 256);
        assert_eq!(most_mib(8192, 10_000).unwrap(), 2048);
        assert_eq!(most_mib(8192, 100).unwrap(), 50);
        let refusal = most_mib(64, 63).unwrap_err().to_string();
        assert!(
            refusal.contains("63 MiB of memory are left to a group"),
            "{refusal}"
        );
    }

    #[test]
    fn a_drill_ends_when_little_is_left() {
        assert_eq!(short(&left_mib(32)), None);
        let why = short(&left_mib(31)).unwrap();
        assert!(why.contains("only 31 MiB of memory are left to a group"), "{why}");
    }

    #[test]
    fn what_is_available_is_read() {
        let meminfo = "MemTotal:  100 kB\nMemAvailable:    2048 kB\nSwapFree: 7 kB\n";
        assert_eq!(available_bytes(meminfo), Some(2 << 20));
        assert_eq!(available_bytes("MemTotal: 1 kB\n"), None);
        assert!(left().is_ok(), "this host has memory");
    }
}
