//! Cargo.lock must name one version of each crate whose types cross between crates of rust-vmm.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::tools::root;

/// Two versions of one of these do not compile together, or worse, do.
const SINGLE: [&str; 10] = [
    "acpi_tables",
    "kvm-bindings",
    "kvm-ioctls",
    "linux-loader",
    "seccompiler",
    "virtio-bindings",
    "virtio-queue",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

#[derive(Deserialize)]
struct Lockfile {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
}

/// Checks the workspace's Cargo.lock.
pub(super) fn check() -> Result<()> {
    let text = std::fs::read_to_string(root().join("Cargo.lock")).context("Cargo.lock cannot be read")?;
    let doubled = doubled(&text)?;
    ensure!(
        doubled.is_empty(),
        "Cargo.lock names more than one version of: {}",
        doubled.join("; ")
    );
    Ok(())
}

fn doubled(lockfile: &str) -> Result<Vec<String>> {
    let lockfile: Lockfile = toml::from_str(lockfile).context("Cargo.lock is not as expected")?;
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in lockfile.package {
        versions.entry(package.name).or_default().push(package.version);
    }
    let doubled = versions
        .into_iter()
        .filter(|(name, versions)| SINGLE.contains(&name.as_str()) && versions.len() > 1);
    Ok(doubled
        .map(|(name, versions)| format!("{name} ({})", versions.join(", ")))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_version_is_found() {
        let package =
            |name: &str, version: &str| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n");
        let text =
            package("vm-memory", "0.17.0") + &package("vm-memory", "0.18.0") + &package("rand", "0.8.0");
        assert_eq!(doubled(&text).unwrap(), ["vm-memory (0.17.0, 0.18.0)"]);
        let text = package("vm-memory", "0.18.0") + &package("rand", "0.8.0") + &package("rand", "0.9.0");
        assert!(doubled(&text).unwrap().is_empty());
    }
}
