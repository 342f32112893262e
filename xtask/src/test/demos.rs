//! The demo as a test: each kind of cut once, and a deliberate fault that must be noticed.

use anyhow::{Context, Result, ensure};

use super::counts::{Place, Tally};
use crate::demo::demo;
use crate::demo::options::{Cut, Disk, Fault, Flush, Guest, Hosts, Options, Service};
use crate::tools::target_dir;

/// The bare guest on this machine.
const BARE: Options = Options {
    guest: Guest::Bare,
    hosts: Hosts::Local,
    cut: Cut::None,
    ..Options::LAB
};

/// Linux on emulated hosts, one of which loses its power.
const LINUX: Options = Options::LAB;

/// The same, where both hosts lose their power, and their disks what was not flushed.
const BOTH: Options = Options {
    cut: Cut::Both,
    ..BARE
};

/// What is shown where.
const DEMOS: [(Place, Options); 10] = [
    (Place::Here, BARE),
    (
        Place::Here,
        Options {
            cut: Cut::Kill,
            repeat: 2,
            same_vm: true,
            ..BARE
        },
    ),
    (
        Place::Here,
        Options {
            cut: Cut::Power,
            flush: Flush::Both,
            ..BARE
        },
    ),
    (
        Place::Here,
        Options {
            cut: Cut::Power,
            disk: Disk::Shared,
            ..BARE
        },
    ),
    (
        Place::Here,
        Options {
            cut: Cut::Link,
            disk: Disk::Shared,
            ..BARE
        },
    ),
    (
        Place::Here,
        Options {
            repeat: 3,
            same_vm: true,
            ..BOTH
        },
    ),
    (
        Place::Here,
        Options {
            fault: Some(Fault::NoFsync),
            ..BOTH
        },
    ),
    (
        Place::Lab,
        Options {
            disk: Disk::Shared,
            ..LINUX
        },
    ),
    (
        Place::Lab,
        Options {
            service: Service::Postgres,
            ..LINUX
        },
    ),
    // Last, since it builds the program with another feature.
    (
        Place::Here,
        Options {
            cut: Cut::Kill,
            fault: Some(Fault::ReleaseBeforeAck),
            ..BARE
        },
    ),
];

/// Runs the demos whose place is wanted. Without a KVM of its own this machine runs the bare guest in the
/// lab, too.
pub(super) fn run(tally: &mut Tally, kvm: Place, wants: impl Fn(Place) -> bool) {
    for (place, options) in DEMOS {
        let (place, hosts) = if kvm == Place::Lab {
            (Place::Lab, Hosts::Lab)
        } else {
            (place, options.hosts)
        };
        let options = Options { hosts, ..options };
        // Emulated hosts have no disks that ignore flushes. Any other mistake is told by the demo.
        if !wants(place) || (hosts == Hosts::Lab && options.validate().is_err()) {
            continue;
        }
        let Options {
            guest,
            disk,
            cut,
            fault,
            ..
        } = options;
        let service = match guest {
            Guest::Linux | Guest::LinuxDisk => format!(" with {}", options.linux_service()),
            Guest::Bare => String::new(),
        };
        let with = fault.map_or(String::new(), |fault| format!(", fault {fault} must be noticed"));
        let what = format!("demo: {guest} guest{service}, {disk} disk, cut {cut}{with}");
        tally.stage(place, &what, || {
            let ok = demo(&options)?;
            match fault {
                None => ensure!(ok, "the demo was not ok"),
                Some(_) => ensure!(
                    lost()? > 0,
                    "no write was found lost, although the mechanism was broken"
                ),
            }
            Ok(())
        });
    }
}

/// What the last demo found lost.
fn lost() -> Result<u64> {
    let text =
        std::fs::read_to_string(target_dir().join("demo/result.json")).context("the demo left no result")?;
    let result: serde_json::Value = serde_json::from_str(&text)?;
    result["lost"]
        .as_u64()
        .context("the demo's result names no number of lost writes")
}
