//! What a case begins with: the configuration of its pair.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lab::{OUTSIDE_CONTROL, replication_address};
use toml::{Table, Value};

use super::etcd::{self, Flavour};
use crate::demo::config::{Arbiter as PlannedArbiter, HostPlan, Plan};
use crate::demo::local::fence;
use crate::demo::options::{Flush, Pace};
use crate::demo::pair::{BARE_PORT, GUEST_MAC, LINK_PORT, Side, bare_cmdline};

/// The guest's service listens there.
pub(crate) const SERVICE_PORT: u16 = BARE_PORT;

/// The guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// An image on each host: no fence is needed.
    Replicated,
    /// One image that both hosts see, and a fence that kills the other host's program.
    Shared,
}

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arbiter {
    /// Files in a directory.
    File,
    /// An etcd, reached by its address, its names or over TLS.
    Etcd(Flavour),
    /// The operator's word.
    None,
}

/// What a case begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// The guest's disk.
    pub disk: Disk,
    /// Who decides.
    pub arbiter: Arbiter,
    /// More of the configuration, as TOML, laid over the rest. `{dir}` stands for the directory of the case.
    pub overlay: &'static str,
}

impl Setup {
    /// An image on each host, and a file as the arbiter.
    pub(crate) const PLAIN: Setup = Setup {
        disk: Disk::Replicated,
        arbiter: Arbiter::File,
        overlay: "",
    };

    /// One image, and fences.
    pub(crate) const SHARED: Setup = Setup {
        disk: Disk::Shared,
        ..Setup::PLAIN
    };

    /// An image on each host, and an etcd.
    pub(crate) const fn etcd(flavour: Flavour) -> Setup {
        Setup {
            arbiter: Arbiter::Etcd(flavour),
            ..Setup::PLAIN
        }
    }

    /// The same with more configuration.
    pub(crate) const fn with(self, overlay: &'static str) -> Setup {
        Setup { overlay, ..self }
    }

    /// The image of a host.
    pub(crate) fn image(&self, dir: &Path, side: Side) -> PathBuf {
        match self.disk {
            Disk::Replicated => dir.join(format!("{}.disk/disk.img", side.name())),
            Disk::Shared => dir.join("disk.img"),
        }
    }

    /// The configuration file, with `more` laid over it.
    pub(crate) fn to_toml(self, dir: &Path, sockets: &Path, kernel: &Path, more: &str) -> Result<String> {
        let host = |side: Side| HostPlan {
            listen: SocketAddr::from((replication_address(side.number()), LINK_PORT)).to_string(),
            control: sockets.join(format!("{}.sock", side.name())),
            console: Some(dir.join(format!("{}.console", side.name()))),
            fence: (self.disk == Disk::Shared).then(|| fence(&dir.join(side.other().pid_file()))),
            state_dir: dir.join(side.state_dir()),
            tap: "tap0".into(),
            disk: self.image(dir, side),
        };
        let arbiter = match self.arbiter {
            Arbiter::File => PlannedArbiter::File(dir.join("arbiter")),
            _ => PlannedArbiter::Etcd(format!("http://{OUTSIDE_CONTROL}:{}", etcd::CLIENT_PORT)),
        };
        let plan = Plan {
            vm: "weather".into(),
            kernel: kernel.to_owned(),
            is_firmware: false,
            initrd: None,
            cmdline: bare_cmdline(0),
            memory_mib: 64,
            replicated: (self.disk == Disk::Replicated).then_some(Flush::Memory),
            vcpus: 1,
            disk_queues: 1,
            mac: GUEST_MAC.into(),
            direct: false,
            arbiter,
            protected: true,
            mode: "pipelined",
            tuning: Table::new(),
            suspicion_timeout_ms: Pace::LOCAL.suspicion_timeout.as_millis() as u64,
            heartbeat_interval_ms: 100,
            reconnect_timeout_ms: 300,
            hosts: [host(Side::A), host(Side::B)],
        };
        let mut table: Table = toml::from_str(&plan.to_toml()?)?;
        match self.arbiter {
            Arbiter::File => {}
            Arbiter::None => {
                table.insert("arbiter".into(), Value::Table(parse("kind = \"none\"")?));
            }
            Arbiter::Etcd(flavour) => {
                let section = parse(&flavour.section(dir))?;
                table.insert("arbiter".into(), Value::Table(section));
            }
        }
        for overlay in [self.overlay, more] {
            let overlay = overlay.replace("{dir}", &dir.display().to_string());
            lay_over(&mut table, parse(&overlay)?);
        }
        toml::to_string(&table).context("the configuration of the case cannot be written")
    }
}

fn parse(text: &str) -> Result<Table> {
    toml::from_str(text).with_context(|| format!("this is no TOML: {text}"))
}

/// Tables are laid over each other key by key; anything else replaces what was there.
fn lay_over(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => lay_over(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_laid_over_replaces_keys_and_leaves_the_others() {
        let mut base = parse("a = 1\n[t]\nx = 1\ny = 2").unwrap();
        lay_over(&mut base, parse("[t]\ny = 3\n[u]\nz = 4").unwrap());
        assert_eq!(base, parse("a = 1\n[t]\nx = 1\ny = 3\n[u]\nz = 4").unwrap());
    }

    #[test]
    fn every_arbiter_has_its_section() {
        let of = |arbiter| {
            let setup = Setup {
                arbiter,
                ..Setup::SHARED
            };
            let text = setup.to_toml(Path::new("/d"), Path::new("/s"), Path::new("/k"), "");
            toml::from_str::<Table>(&text.unwrap()).unwrap()["arbiter"].clone()
        };
        assert_eq!(of(Arbiter::None)["kind"].as_str(), Some("none"));
        assert_eq!(of(Arbiter::File)["path"].as_str(), Some("/d/arbiter"));
        let named = of(Arbiter::Etcd(Flavour::Named));
        assert_eq!(named["endpoints"].as_array().map(Vec::len), Some(1));
    }
}
