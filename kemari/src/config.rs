//! The configuration: one TOML file, the same on every host of a VM.
//!
//! The parts that all hosts share (`[machine]`, `[[disk]]`, `[[net]]`, `[protection]`, `[arbiter]`) have one
//! [`Config::digest`], which a primary and its secondary compare; what differs between hosts is in
//! `[hosts.NAME]`. Every value is checked when the file is read; what needs the machine (files, devices,
//! addresses) is looked at by [`crate::check`]. docs/configuration.md describes every key.

mod digest;
mod endpoint;
mod error;
mod fields;
mod hook;
mod host;
mod keys;
mod listen;
mod machine;
mod parse;
mod protection;
mod rate;
#[cfg(test)]
mod tests;
mod types;
mod validate;
mod values;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub(crate) use endpoint::Endpoint;
pub use error::{ConfigError, Problem};
pub use hook::{Hook, Occasion};
pub(crate) use host::certificate_name;
pub use host::{Arbiter, ArbiterKind, Host};
pub use host::{HostDisk, HostNet};
pub use listen::Listen;
pub use machine::{Cache, Io, Machine};
pub use machine::{Disk, Flush, Format, Net, OnError};
pub(crate) use protection::{DRILL_INTERVAL_S, INTERVAL_MS};
pub use protection::{Delta, Mode, OnSecondaryLoss, Pace, Protection};
pub use protection::{Gather, Latency};
pub use rate::Rate;
pub(crate) use validate::is_name;
pub use values::Console;
pub use values::Mac;

/// Largest configuration file, in bytes.
pub(crate) const CONFIG_BYTES_MAX: usize = 1 << 20;

/// The whole file.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The VM's name: letters, digits, `.`, `_` and `-`. It names the record at the arbiter.
    pub vm: String,
    /// Memory, vCPUs and what is booted.
    pub machine: Machine,
    /// The disks, in the order in which the guest sees them.
    #[serde(default, rename = "disk")]
    pub disks: Vec<Disk>,
    /// The network cards, in the order in which the guest sees them, behind the disks.
    #[serde(default, rename = "net")]
    pub(crate) nets: Vec<Net>,
    /// How, and within which limits, the VM is protected.
    #[serde(default)]
    pub protection: Protection,
    /// Who decides when two hosts cannot hear each other.
    pub arbiter: Arbiter,
    /// Commands that are told what happens.
    #[serde(default, rename = "hook")]
    pub hooks: Vec<Hook>,
    /// The hosts that may run the VM, by name.
    pub hosts: BTreeMap<String, Host>,
    /// See [`Config::digest`].
    #[serde(skip)]
    digest: u64,
}

impl Config {
    /// Reads and checks the file at `path`; relative paths in it are relative to its directory.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if bytes > CONFIG_BYTES_MAX as u64 {
            return Err(ConfigError::TooLong {
                path: path.to_owned(),
                bytes,
            });
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mut config = Self::parse(&text, &path.display().to_string())?;
        let directory = std::path::absolute(path).map_err(unreadable)?;
        config.resolve_paths(directory.parent().unwrap_or(Path::new("/")));
        Ok(config)
    }

    /// Finds the addresses of hosts that are given by their names, before anybody listens or connects. May
    /// take as long as the resolver does.
    pub(crate) fn resolve(&mut self) -> Result<(), ConfigError> {
        let mut taken = BTreeMap::new();
        for (name, host) in &mut self.hosts {
            let wrong = |reason| ConfigError::NoAddress {
                host: name.clone(),
                reason,
            };
            host.listen.resolve().map_err(wrong)?;
            let address = host.listen.address();
            if let Some(other) = taken.insert(address, name) {
                return Err(wrong(format!("it is {address}, as that of the host `{other}`")));
            }
        }
        Ok(())
    }

    /// Parses and checks `text`; `origin` names it in errors. Paths stay as they are written.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let mut config = parse::parse(text, origin)?;
        config.fill_defaults();
        config.digest = digest::of(&config);
        Ok(config)
    }

    /// Each key of what the digest is made of, with a checksum of its value.
    pub fn shared_keys(&self) -> Vec<(String, u32)> {
        keys::of(self)
    }

    /// Digest of all that must be equal on the hosts of a VM: everything but the contents of `[hosts]`,
    /// and the hooks.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The name of the host this process runs on: `wanted` (the option `--host`),
    /// or else this machine's name.
    pub(crate) fn select_host(&self, wanted: Option<&str>) -> Result<String, ConfigError> {
        let (name, from_machine) = match wanted {
            Some(name) => (name.to_owned(), false),
            None => (
                rustix::system::uname().nodename().to_string_lossy().into_owned(),
                true,
            ),
        };
        let short = name.split('.').next().unwrap_or_default();
        let found = [name.as_str(), short]
            .into_iter()
            .find(|name| self.hosts.contains_key(*name));
        match found {
            Some(found) => Ok(found.to_owned()),
            None => Err(ConfigError::NoSuchHost {
                name,
                from_machine,
                known: self
                    .hosts
                    .keys()
                    .map(|host| format!("`{host}`"))
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    /// The host of that name.
    ///
    /// # Panics
    /// If there is none: pass a name that [`Config::select_host`] returned.
    pub fn host(&self, name: &str) -> &Host {
        &self.hosts[name]
    }

    /// The directory with the certificates of the host `name`, if the link is encrypted.
    pub fn certificates_of(&self, name: &str) -> Option<&Path> {
        let own = self.hosts.get(name).and_then(|host| host.certificates.as_deref());
        own.or(self.protection.certificates.as_deref())
    }

    /// All hosts but `name`.
    pub fn peers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a Host)> + 'a {
        self.hosts
            .iter()
            .filter(move |(other, _)| *other != name)
            .map(|(other, host)| (other.as_str(), host))
    }

    /// Whether a disk is kept equal on both hosts: writable, not shared, and the VM protected.
    pub(crate) fn replicates(&self, disk: &Disk) -> bool {
        self.protection.enabled && disk.is_replicated()
    }

    /// The disks as the host `name` sees them, in order.
    pub fn disks_of(&self, name: &str) -> Vec<HostDisk<'_>> {
        let host = self.host(name);
        let path_of = |disk: &Disk| host.disks.get(&disk.id).or(disk.path.as_ref()).cloned();
        self.disks
            .iter()
            .filter_map(|disk| {
                Some(HostDisk {
                    disk,
                    path: path_of(disk)?,
                })
            })
            .collect()
    }

    /// The network cards as the host `name` sees them, in order.
    pub fn nets_of(&self, name: &str) -> Vec<HostNet<'_>> {
        let host = self.host(name);
        let tap_of = |net: &Net| host.taps.get(&net.id).or(net.tap.as_ref()).cloned();
        self.nets
            .iter()
            .filter_map(|net| {
                Some(HostNet {
                    net,
                    tap: tap_of(net)?,
                })
            })
            .collect()
    }

    fn fill_defaults(&mut self) {
        for host in self.hosts.values_mut() {
            host.control
                .get_or_insert_with(|| format!("/run/kemari/{}.sock", self.vm).into());
            host.state_dir
                .get_or_insert_with(|| format!("/var/lib/kemari/{}", self.vm).into());
        }
    }

    fn resolve_paths(&mut self, directory: &Path) {
        let mut paths: Vec<_> = self.machine.kernel.iter_mut().collect();
        let firmware = self.machine.firmware.as_mut();
        paths.extend(firmware.filter(|path| path.as_path() != Path::new(machine::BIOS)));
        paths.extend(&mut self.machine.initrd);
        paths.extend(&mut self.arbiter.path);
        paths.extend(&mut self.arbiter.ca);
        paths.extend(&mut self.arbiter.certificate);
        paths.extend(&mut self.arbiter.key);
        paths.extend(&mut self.arbiter.password_file);
        paths.extend(&mut self.protection.certificates);
        paths.extend(self.disks.iter_mut().filter_map(|disk| disk.path.as_mut()));
        for host in self.hosts.values_mut() {
            paths.extend(&mut host.control);
            paths.extend(&mut host.state_dir);
            paths.extend(&mut host.certificates);
            paths.extend(host.disks.values_mut());
            if let Console::File(path) = &mut host.console {
                paths.push(path);
            }
        }
        for path in paths {
            *path = directory.join(&*path);
        }
    }
}
