//! Two hosts with a VM between them, as a run of the demo sees them.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lab::{Netns, Network};
use rustix::process::Signal;
use serde::Deserialize;

use super::options::{Cut, Options, Pace};
use crate::packages::SEABIOS;
use crate::tools::target_dir;

/// Port of the bare guest's service.
pub const BARE_PORT: u16 = 6379;
/// MAC address of the guest's network card.
pub const GUEST_MAC: &str = "52:54:00:4b:00:02";
/// Port on which each side listens for the other.
pub const LINK_PORT: u16 = 7700;

/// Longest wait for the programs' end after `kemari stop`.
pub const STOP_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// Makes a host's bridge forget where an older run's guest was (an `ip` command): frames for a guest that has
/// just booted and said nothing yet would go there.
pub const FORGET_HOST: &str = "link set br0 type bridge fdb_flush";
/// The same for the bridge outside, and for the clients' neighbours.
pub const FORGET_OUTSIDE: &str = "link set guests type bridge fdb_flush\nneigh flush dev guests";

/// What the VM boots.
#[derive(Clone, Debug)]
pub struct Image {
    /// Kernel, or the firmware that boots the disk, as a file on this machine.
    pub kernel: PathBuf,
    /// Which of the two.
    pub is_firmware: bool,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// The disk at the start of a run; it is copied.
    pub disk: Disk,
    /// Memory.
    pub memory_mib: u32,
    /// Port of its service.
    pub port: u16,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Number of queues of its disk.
    pub disk_queues: u8,
}

/// The disk at the start of a run.
#[derive(Clone, Debug)]
pub enum Disk {
    /// Zeros, in MiB.
    Empty(u64),
    /// A copy of this image.
    CopyOf(PathBuf),
}

impl Disk {
    /// Its size.
    pub fn bytes(&self) -> Result<u64> {
        match self {
            Disk::Empty(mib) => Ok(mib << 20),
            Disk::CopyOf(image) => {
                let metadata = std::fs::metadata(image);
                Ok(metadata
                    .with_context(|| format!("no disk {}", image.display()))?
                    .len())
            }
        }
    }

    /// Writes the disk into a file, in place: who has the file open sees the new content.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)?;
            match self {
                Disk::Empty(mib) => {
                    // Shorter and longer again: all zeros.
                    file.set_len(0)?;
                    file.set_len(mib << 20)?;
                }
                Disk::CopyOf(image) => {
                    io::copy(&mut File::open(image)?, &mut file)?;
                }
            }
            file.sync_all()
        };
        write().with_context(|| format!("the disk {} cannot be made", path.display()))
    }
}

impl Image {
    /// Debian with a service that makes every write durable before it answers,
    /// unless `settings` says otherwise.
    pub fn linux(image: &lab::GuestImage, settings: &str) -> Self {
        let cmdline = format!("console=ttyS0 quiet {}{settings}", linux_address());
        Self {
            kernel: image.kernel.bzimage.clone(),
            is_firmware: false,
            initrd: Some(image.initramfs.clone()),
            cmdline,
            disk: Disk::CopyOf(image.disk.clone()),
            memory_mib: memory_mib(image.service),
            port: image.service.port(),
            vcpus: 1,
            disk_queues: 1,
        }
    }

    /// The same, where firmware and the disk's own boot loader boot it.
    pub fn linux_disk(image: &lab::BootDisk) -> Self {
        Self {
            kernel: SEABIOS.0.into(),
            is_firmware: true,
            initrd: None,
            cmdline: String::new(),
            disk: Disk::CopyOf(image.disk.clone()),
            memory_mib: memory_mib(image.service),
            port: image.service.port(),
            vcpus: 1,
            disk_queues: 1,
        }
    }

    /// The bare guest.
    pub fn bare(kernel: PathBuf) -> Self {
        Self {
            kernel,
            is_firmware: false,
            initrd: None,
            cmdline: bare_cmdline(0),
            disk: Disk::Empty(16),
            memory_mib: 64,
            port: BARE_PORT,
            vcpus: 1,
            disk_queues: 1,
        }
    }
}

/// How much memory a guest with a service gets.
fn memory_mib(service: lab::Service) -> u32 {
    match service {
        lab::Service::Redis => 192,
        lab::Service::Postgres => 256,
        lab::Service::Shell => 128,
    }
}

/// What the Linux guest's kernel is told of its network.
pub fn linux_address() -> String {
    format!("kemari.ip={}/{}", lab::guest_address(0), lab::NETMASK_BITS)
}

/// The command line of a bare guest that is guest `number` of the networks.
pub fn bare_cmdline(number: usize) -> String {
    let (ip, gateway) = (lab::guest_address(number), lab::OUTSIDE_GUESTS);
    format!("ip={ip}/{} gw={gateway} port={BARE_PORT}", lab::NETMASK_BITS)
}

/// The directory on this machine of the run that goes on; that of a run that was not ok is kept beside it.
pub fn run_dir() -> PathBuf {
    target_dir().join("demo/run")
}

/// Where pairs of hosts can be made.
pub trait Place {
    /// "local" or "lab".
    fn name(&self) -> &'static str;

    /// How fast it is there.
    fn pace(&self) -> Pace;

    /// Makes two fresh hosts, with nothing started on them.
    fn make(&mut self, number: u64, options: &Options) -> Result<Box<dyn Pair + '_>>;
}

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the VM is started.
    A,
    /// Which protects it.
    B,
}

impl Side {
    /// Both.
    pub const BOTH: [Side; 2] = [Side::A, Side::B];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Side::A => "a",
            Side::B => "b",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }

    /// Its number in the lab.
    pub fn number(self) -> usize {
        self as usize
    }

    /// The file with the process id of its program, for the other's fence.
    pub fn pid_file(self) -> String {
        format!("{}.pid", self.name())
    }

    /// The directory of what must outlive its program.
    pub fn state_dir(self) -> String {
        format!("{}.state", self.name())
    }
}

/// Two hosts with a VM between them.
pub trait Pair {
    /// Where the guest's service listens.
    fn service(&self) -> SocketAddr;

    /// Where the clients are.
    fn clients(&self) -> Netns;

    /// Starts the program on a host.
    fn start(&mut self, side: Side, role: Role) -> Result<()>;

    /// Fails, with the end of its log, if a program that was started and not cut has ended. When only the
    /// link was cut one of the two may have to give up, and be fenced.
    fn check_alive(&mut self) -> Result<()>;

    /// What `kemari status --json` says on a side; `None` while it does not answer.
    fn status(&mut self, side: Side) -> Result<Option<Status>>;

    /// Cuts a host.
    fn cut(&mut self, side: Side, cut: Cut) -> Result<()>;

    /// Brings a host back that was cut, as the secondary, whatever was done to its power, program and
    /// networks; one that is well stays as it is.
    fn mend(&mut self, side: Side) -> Result<()>;

    /// Whether a side's program lives.
    fn is_running(&mut self, side: Side) -> Result<bool>;

    /// Sends a signal to a side's program, if it lives.
    fn signal(&mut self, side: Side, signal: Signal) -> Result<()>;

    /// Says an order to a side, as an operator does; what it answered.
    fn order(&self, side: Side, order: &[&str]) -> Result<String>;

    /// Cuts a host off a network, which it does not notice by itself, or joins it again.
    fn set_joined(&self, side: Side, network: Network, joined: bool) -> Result<()>;

    /// Pulls or plugs the cable of a host in the guests' network, which it sees.
    fn set_plugged(&self, side: Side, plugged: bool) -> Result<()>;

    /// Takes the guest's TAP of a host off its bridge, or puts it back.
    fn set_bridged(&self, side: Side, bridged: bool) -> Result<()>;

    /// Takes the guests' bridge of a host down, or up.
    fn set_bridge_up(&self, side: Side, up: bool) -> Result<()>;

    /// Lets all of a host stand still, or go on, if its power was not cut meanwhile.
    fn set_host_running(&self, side: Side, running: bool) -> Result<()>;

    /// Lets the arbiter be silent, or answer again.
    fn set_arbiter_answering(&self, answering: bool) -> Result<()>;

    /// Switches a host on after both have lost their power, and boots the VM anew there, by the operator's
    /// word that nobody else has it.
    fn boot_anew(&mut self, side: Side) -> Result<()>;

    /// What power cuts have made the guest's disk on a host forget, if it is one that forgets.
    fn loss(&self, side: Side) -> Option<lab::Loss>;

    /// Stops the VM, by an order to the host that runs it, and waits for the end of every program. Returns
    /// the images that the guest's disk has now, that of this host first.
    fn stop(&mut self, primary: Side) -> Result<Vec<PathBuf>>;

    /// Where in a sync a dead primary was, if it left word;
    /// see [`Takeover::cut_in_step`] for the survivor's view.
    fn step_at_cut(&self, side: Side) -> Option<String>;

    /// Brings what the programs logged, as far as it can still be had, into [`run_dir`].
    fn save_logs(&mut self);
}

/// What the program is started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It starts the VM.
    Primary,
    /// It protects the VM.
    Secondary,
}

impl Role {
    /// The program's first argument.
    pub fn subcommand(self) -> &'static str {
        match self {
            Role::Primary => "run",
            Role::Secondary => "secondary",
        }
    }
}

/// The term that `kemari check` tells of: the operator vouches for the death of those who are named with it.
pub fn term_in(check: &str) -> Result<u64> {
    let digits = |rest: &str| {
        rest.split(|c: char| !c.is_ascii_digit())
            .next()
            .map(str::to_owned)
    };
    let term = check.split("term ").nth(1).and_then(digits);
    term.and_then(|term| term.parse().ok())
        .with_context(|| format!("`kemari check` names no term: {check}"))
}

/// What the demo needs of `kemari status --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// "starting", "primary", "secondary" or "stopped".
    pub role: String,
    /// "off", "on", "doubtful" or an object that tells how far the first copy is.
    pub protection: serde_json::Value,
    /// Why something waits.
    pub waiting_because: Option<String>,
    /// The last committed sync: they are numbered from 1, over takeovers.
    pub epoch: u64,
    /// The last takeover that this side carried out.
    #[serde(default)]
    pub takeover: Option<Takeover>,
}

/// How a takeover went.
#[derive(Clone, Debug, Deserialize)]
pub struct Takeover {
    /// From the last sign of the old primary to the first guest instruction here, in ms.
    pub ms: f64,
    /// Where the sync stood that it ended.
    pub cut_in_step: Option<String>,
}

impl Status {
    /// Reads what the program printed.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json)
            .with_context(|| format!("`kemari status --json` printed no status: {json}"))
    }

    /// Whether output waits for the peer.
    pub fn is_protected(&self) -> bool {
        self.protection == "on"
    }

    /// Whether the VM executes here.
    pub fn is_primary(&self) -> bool {
        self.role == "primary"
    }

    /// Share of the first copy that is done, in percent.
    pub fn copy_percent(&self) -> Option<u64> {
        let bytes = |name: &str| self.protection.get("copying")?.get(name)?.as_u64();
        (bytes("done_bytes")? * 100).checked_div(bytes("total_bytes")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_term_is_found_in_what_check_says() {
        let said =
            "ok       memory\nok       arbiter: term 12, owner a/3f21c07e, peer b/90ab11d2, phase Acting\n";
        assert_eq!(term_in(said).unwrap(), 12);
        assert!(term_in("arbiter: nothing").is_err());
    }

    #[test]
    fn a_status_is_read_with_what_the_demo_needs() {
        let json = r#"{"vm":"x","role":"primary","protection":{"copying":{"done_bytes":50,"total_bytes":200}},
            "waiting_because":null,"epoch":7}"#;
        let status = Status::parse(json).unwrap();
        assert_eq!((status.copy_percent(), status.epoch), (Some(25), 7));
        assert!(status.is_primary() && !status.is_protected() && status.takeover.is_none());
        let json = json.replace(r#"{"copying":{"done_bytes":50,"total_bytes":200}}"#, r#""on""#);
        assert!(Status::parse(&json).unwrap().is_protected());
        assert!(Status::parse("{}").is_err());
    }
}
