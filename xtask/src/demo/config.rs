//! The configuration file of a run, written for the program to read.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use toml::{Table, Value};

use super::options::Flush;
use super::pair::Side;

/// Everything that differs from run to run and from place to place. Paths are those that the hosts see.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the VM: another one each run, so that no record of an older run stands at the arbiter.
    pub vm: String,
    /// Kernel, or the firmware that boots the disk.
    pub kernel: PathBuf,
    /// Which of the two.
    pub is_firmware: bool,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Memory.
    pub memory_mib: u32,
    /// When a guest's flush is done, if each host has an image of its own; `None`: both have the same one.
    pub replicated: Option<Flush>,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Number of queues of the disk.
    pub disk_queues: u8,
    /// MAC address of the guest's network card.
    pub mac: String,
    /// Whether the file system of the disk image takes O_DIRECT. If not, both hosts must have one page cache.
    pub direct: bool,
    /// Who decides.
    pub arbiter: Arbiter,
    /// `protection.enabled`.
    pub protected: bool,
    /// `protection.mode`.
    pub mode: &'static str,
    /// Further keys of `[protection]`.
    pub tuning: Table,
    /// When silence becomes a suspicion.
    pub suspicion_timeout_ms: u64,
    /// How often each side gives a sign of life.
    pub heartbeat_interval_ms: u64,
    /// How long a link that was reset may take to come back.
    pub reconnect_timeout_ms: u64,
    /// A and B.
    pub hosts: [HostPlan; 2],
}

/// Where the arbiter's record is kept.
#[derive(Clone, Debug)]
pub enum Arbiter {
    /// At this etcd endpoint.
    Etcd(String),
    /// In this directory.
    File(PathBuf),
}

impl Arbiter {
    fn to_table(&self) -> Result<Table> {
        Ok(match self {
            Arbiter::Etcd(endpoint) => table([("kind", value("etcd")?), ("endpoints", value(&[endpoint])?)]),
            Arbiter::File(directory) => table([("kind", value("file")?), ("path", value(directory)?)]),
        })
    }
}

/// One host of a [`Plan`].
#[derive(Clone, Debug)]
pub struct HostPlan {
    /// Where it listens for its peer.
    pub listen: String,
    /// Path of its control socket.
    pub control: PathBuf,
    /// File for the guest's console; none: it is where the program is started.
    pub console: Option<PathBuf>,
    /// The command, run on this host, that cuts the other one: for a shared disk.
    pub fence: Option<Vec<String>>,
    /// Where the program keeps what must outlive it.
    pub state_dir: PathBuf,
    /// Its TAP device for the guest.
    pub tap: String,
    /// The disk as it sees it.
    pub disk: PathBuf,
}

impl Plan {
    /// The file's text.
    pub fn to_toml(&self) -> Result<String> {
        let mut hosts = Table::new();
        for (side, host) in Side::BOTH.iter().zip(&self.hosts) {
            hosts.insert(side.name().into(), value(&host.to_table())?);
        }
        let mut machine = table([
            ("memory_mib", value(&self.memory_mib)?),
            ("vcpus", value(&self.vcpus)?),
            (
                if self.is_firmware { "firmware" } else { "kernel" },
                value(&self.kernel)?,
            ),
        ]);
        if !self.is_firmware {
            machine.insert("cmdline".into(), value(&self.cmdline)?);
        }
        if let Some(initrd) = &self.initrd {
            machine.insert("initrd".into(), value(initrd)?);
        }
        let mut disk = table([
            ("id", value("blk0")?),
            ("cache", value(if self.direct { "direct" } else { "writeback" })?),
        ]);
        if self.disk_queues > 1 {
            disk.insert("queues".into(), value(&self.disk_queues)?);
        }
        match self.replicated {
            Some(flush) => {
                disk.insert("replicate".into(), value(&true)?);
                disk.insert("flush".into(), value(&flush.to_string())?);
                // The other host's image is another disk: whoever has the good one goes on.
                disk.insert("on_error".into(), value("failover")?);
            }
            None => {
                disk.insert("shared".into(), value(&true)?);
            }
        }
        let net = table([("id", value("net0")?), ("mac", value(&self.mac)?)]);
        let mut protection = table([
            ("enabled", value(&self.protected)?),
            ("mode", value(self.mode)?),
            ("suspicion_timeout_ms", value(&self.suspicion_timeout_ms)?),
            ("heartbeat_interval_ms", value(&self.heartbeat_interval_ms)?),
            ("reconnect_timeout_ms", value(&self.reconnect_timeout_ms)?),
            ("plaintext", value(&true)?),
        ]);
        if !self.direct && self.replicated.is_none() {
            protection.insert("allow_cached_shared_disk".into(), value(&true)?);
        }
        protection.extend(self.tuning.clone());
        let file = table([
            ("vm", value(&self.vm)?),
            ("machine", Value::Table(machine)),
            ("disk", Value::Array(vec![Value::Table(disk)])),
            ("net", Value::Array(vec![Value::Table(net)])),
            ("protection", Value::Table(protection)),
            ("arbiter", Value::Table(self.arbiter.to_table()?)),
            ("hosts", Value::Table(hosts)),
        ]);
        toml::to_string(&file).context("the configuration of the run cannot be written as TOML")
    }
}

impl HostPlan {
    fn to_table(&self) -> Table {
        let text = |path: &PathBuf| Value::String(path.display().to_string());
        let console = match &self.console {
            Some(path) => format!("file:{}", path.display()),
            None => "stdio".to_owned(),
        };
        let mut host = table([
            ("listen", Value::String(self.listen.clone())),
            ("control", text(&self.control)),
            ("console", Value::String(console)),
            ("state_dir", text(&self.state_dir)),
            (
                "taps",
                Value::Table(table([("net0", Value::String(self.tap.clone()))])),
            ),
            ("disks", Value::Table(table([("blk0", text(&self.disk))]))),
        ]);
        if let Some(fence) = &self.fence {
            let words = fence.iter().cloned().map(Value::String).collect();
            host.insert("fence".into(), Value::Array(words));
        }
        host
    }
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Table {
    entries
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn value(of: &(impl Serialize + ?Sized)) -> Result<Value> {
    Value::try_from(of).context("a value of the configuration cannot be written as TOML")
}
