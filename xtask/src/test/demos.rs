//! The demo as a test: each kind of cut once, and a deliberate fault that must be noticed.

use anyhow::{Context, Result, ensure};

use super::counts::{Place, Tally};
use crate::demo::demo;
use crate::demo::options::{Cut, Disk, Fault, Flush, Guest, Hosts, Options, Service};
use crate::tools::target_dir;

/// What is shown where.
const DEMOS: [(Place, Guest, Hosts, Cut, Option<Fault>); 6] = [
    (Place::Here, Guest::Bare, Hosts::Local, Cut::None, None),
    (Place::Here, Guest::Bare, Hosts::Local, Cut::Kill, None),
    (Place::Here, Guest::Bare, Hosts::Local, Cut::Power, None),
    (Place::Here, Guest::Bare, Hosts::Local, Cut::Link, None),
    (Place::Lab, Guest::Linux, Hosts::Lab, Cut::Power, None),
    // Last, since it builds the program with another feature.
    (
        Place::Here,
        Guest::Bare,
        Hosts::Local,
        Cut::Kill,
        Some(Fault::ReleaseBeforeAck),
    ),
];

/// Runs the demos whose place is wanted. Without a KVM of its own this machine runs the bare guest in the lab, too.
pub(super) fn run(tally: &mut Tally, kvm: Place, wants: impl Fn(Place) -> bool) {
    for (place, guest, hosts, cut, fault) in DEMOS {
        let (place, hosts) = if kvm == Place::Lab {
            (Place::Lab, Hosts::Lab)
        } else {
            (place, hosts)
        };
        if !wants(place) {
            continue;
        }
        let options = Options {
            guest,
            service: Service::Redis,
            disk: Disk::Shared,
            flush: Flush::Memory,
            hosts,
            cut,
            repeat: 1,
            same_vm: false,
            seed: None,
            fault,
            connections: 8,
            vcpus: 1,
        };
        let with = fault.map_or(String::new(), |fault| format!(", fault {fault} must be noticed"));
        tally.stage(place, &format!("demo: {guest} guest, cut {cut}{with}"), || {
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
