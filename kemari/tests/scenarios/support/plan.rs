//! The configuration of a scenario.

use std::path::{Path, PathBuf};

use lab::{NETMASK_BITS, OUTSIDE_GUESTS, guest_address, replication_address};

use super::cluster::Cluster;
use super::scene::{Host, SERVICE_PORT};

/// Port on which each side listens for the other.
pub(crate) const LINK_PORT: u16 = 7700;

/// Queues of a replicated disk: what one host did in an order of its own, the other one repeats in that.
const REPLICATED_QUEUES: u16 = 4;

/// How a winner makes sure that the loser writes nothing more to the shared disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// It kills the other's process and waits for its end: with one kernel,
    /// that is all that could still write.
    Kills,
    /// It does nothing and says that all is well, so that the loser lives and can be watched. A write that
    /// was released to the loser's disk before it was stopped may then reach the disk late: such a scenario
    /// judges what clients see of the living guest, and never reads the disk again.
    ProvesNothing,
    /// As [`Fence::Kills`], by a program of its own: the file `fence-HOST`.
    Program,
    /// It takes longer than a winner may stall, and then kills.
    Slow,
    /// It hangs until the file [`FENCE_WORKS`] is there; then it kills.
    Hangs,
}

/// The file without which [`Fence::Hangs`] hangs.
pub(crate) const FENCE_WORKS: &str = "fence-works";

/// Where the guest's disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// One image that both hosts see.
    Shared,
    /// An image on each host; a guest's flush is done when this has what was written.
    Replicated(&'static str),
}

/// What differs between scenarios.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The guest's memory.
    pub memory_mib: u32,
    /// The guest's vCPUs.
    pub vcpus: u8,
    /// `protection.mode`.
    pub mode: &'static str,
    /// How the loser is fenced.
    pub fence: Fence,
    /// Limit of a sync without an ack, and of own I/O without an end.
    pub progress_timeout_ms: u32,
    /// Whether the link is encrypted, with the certificates of [`certificates`].
    pub tls: bool,
    /// For how many days those certificates are good.
    pub certificate_days: u32,
    /// Where the guest's disk is.
    pub disk: Disk,
    /// Its size, mostly holes.
    pub disk_mib: u64,
    /// Whether the arbiter is the etcd of [`super::Cluster`]; else it is a file.
    pub etcd: bool,
    /// Whether there is no arbiter at all.
    pub no_arbiter: bool,
    /// More lines of `[[disk]]`.
    pub disk_keys: &'static str,
    /// Whether there is a second disk, which is only read: the qcow2 image [`Plan::read_only_image`].
    pub reads_qcow2: bool,
    /// More lines of `[[net]]`.
    pub net_keys: &'static str,
    /// Whether there is a third host `c`, which lives in the network of B.
    pub third: bool,
    /// More lines of `[protection]`.
    pub protection: &'static str,
    /// The user that the sides run as, and whose their files are.
    pub user: Option<&'static str>,
}

/// The directory of the set of certificates, for hosts whose files lie in `directory`.
pub(crate) fn certificates(directory: &Path) -> PathBuf {
    directory.join("certificates")
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            memory_mib: 64,
            vcpus: 1,
            mode: "lockstep",
            fence: Fence::Kills,
            progress_timeout_ms: 5000,
            tls: false,
            certificate_days: 100,
            disk: Disk::Shared,
            disk_mib: 16,
            etcd: false,
            no_arbiter: false,
            disk_keys: "",
            reads_qcow2: false,
            net_keys: "",
            third: false,
            protection: "",
            user: None,
        }
    }
}

impl Plan {
    /// Two hosts with nothing in common but the network. A guest's flush is done when `"memory"` or `"both"`
    /// have what was written.
    pub(crate) fn replicated(flush: &'static str) -> Self {
        Self {
            disk: Disk::Replicated(flush),
            ..Self::default()
        }
    }

    /// The same with a disk of some hundred extents, a block of the guest's test in each of one half of them.
    pub(crate) fn replicated_widely(flush: &'static str) -> Self {
        Self {
            disk_mib: 2048,
            ..Self::replicated(flush)
        }
    }

    /// The image of a host, for hosts whose files lie in `directory`.
    pub(crate) fn image(&self, host: Host, directory: &Path) -> PathBuf {
        match self.disk {
            Disk::Shared => directory.join("disk.img"),
            Disk::Replicated(_) => directory.join(format!("{}.disk", host.name())).join("disk.img"),
        }
    }

    /// The image of a host that is only read.
    pub(crate) fn read_only_image(host: Host, directory: &Path) -> PathBuf {
        directory.join(format!("{}.qcow2", host.name()))
    }

    /// The configuration file, for hosts whose files lie in `directory` and whose sockets lie in `sockets`.
    pub(crate) fn to_toml(&self, directory: &Path, sockets: &Path, kernel: &Path) -> String {
        let hosts: String = Host::BOTH
            .iter()
            .map(|host| self.host(*host, directory, sockets))
            .chain(self.third.then(|| self.third_host(directory, sockets)))
            .collect();
        format!(
            r#"
vm = "scene"
[machine]
memory_mib = {memory_mib}
vcpus = {vcpus}
kernel = "{kernel}"
cmdline = "ip={ip}/{NETMASK_BITS} gw={OUTSIDE_GUESTS} port={SERVICE_PORT}"
[[disk]]
id = "blk0"
# Both hosts have one kernel, and so one page cache.
cache = "writeback"
{disk}
{disk_keys}
{second_disk}
[[net]]
id = "net0"
mac = "52:54:00:4b:00:02"
{net_keys}
[protection]
mode = "{mode}"
suspicion_timeout_ms = 1000
heartbeat_interval_ms = 100
reconnect_timeout_ms = 500
progress_timeout_ms = {progress_timeout_ms}
plaintext = {plaintext}
allow_cached_shared_disk = true
{protection}
[arbiter]
{arbiter}
{hosts}"#,
            memory_mib = self.memory_mib,
            progress_timeout_ms = self.progress_timeout_ms,
            vcpus = self.vcpus,
            mode = self.mode,
            plaintext = !self.tls,
            protection = self.protection,
            disk_keys = self.disk_keys,
            second_disk = match self.reads_qcow2 {
                true => "[[disk]]\nid = \"base\"\nformat = \"qcow2\"\nread_only = true",
                false => "",
            },
            net_keys = self.net_keys,
            disk = match self.disk {
                Disk::Shared => "shared = true".to_owned(),
                Disk::Replicated(flush) => format!("flush = \"{flush}\"\nqueues = {REPLICATED_QUEUES}"),
            },
            kernel = kernel.display(),
            ip = guest_address(0),
            arbiter = match self.etcd {
                _ if self.no_arbiter => "kind = \"none\"".to_owned(),
                true => format!("kind = \"etcd\"\nendpoints = {:?}", Cluster::endpoints()),
                false => format!("kind = \"file\"\npath = {:?}", directory.join("arbiter")),
            },
        )
    }

    /// The programs of [`Fence::Program`]: path and content.
    pub(crate) fn fence_programs(&self, directory: &Path) -> Vec<(PathBuf, String)> {
        let script = kill_script(&directory.join("$1.pid"));
        let programs = Host::BOTH.into_iter().map(|host| {
            let path = directory.join(format!("fence-{}", host.name()));
            (path, format!("#!/bin/sh\n{script}\n"))
        });
        programs.filter(|_| self.fence == Fence::Program).collect()
    }

    /// As B, but for all that only one process can have.
    fn third_host(&self, directory: &Path, sockets: &Path) -> String {
        let like_b = self.host(Host::B, directory, sockets);
        like_b
            .replace("[hosts.b]", "[hosts.c]")
            .replace(&format!(":{LINK_PORT}"), &format!(":{}", LINK_PORT + 1))
            .replace("/b.sock", "/c.sock")
            .replace("/b.state", "/c.state")
            .replace("/b.console", "/c.console")
    }

    fn host(&self, host: Host, directory: &Path, sockets: &Path) -> String {
        let name = host.name();
        let fence = match (self.disk, self.fence) {
            (Disk::Replicated(_), _) => String::new(),
            (Disk::Shared, Fence::ProvesNothing) => r#"fence = ["true"]"#.to_owned(),
            (Disk::Shared, Fence::Kills) => {
                let script = kill_script(&directory.join("{peer}.pid"));
                format!("fence = [\"/bin/sh\", \"-c\", '''{script}''']")
            }
            (Disk::Shared, Fence::Program) => {
                format!(
                    "fence = [{:?}, \"{{peer}}\"]",
                    directory.join(format!("fence-{name}"))
                )
            }
            (Disk::Shared, Fence::Slow) => {
                let script = kill_script(&directory.join("{peer}.pid"));
                format!("fence = [\"/bin/sh\", \"-c\", '''sleep 4; {script}''']")
            }
            (Disk::Shared, Fence::Hangs) => {
                let script = kill_script(&directory.join("{peer}.pid"));
                let works = directory.join(FENCE_WORKS);
                format!(
                    "fence_timeout_ms = 700\nfence = [\"/bin/sh\", \"-c\", '''[ -e \"{}\" ] || sleep 1000; \
                     {script}''']",
                    works.display()
                )
            }
        };
        let tls = match self.tls {
            true => format!("certificates = {:?}", certificates(directory).join(name)),
            false => String::new(),
        };
        format!(
            r#"
[hosts.{name}]
listen = "{address}:{LINK_PORT}"
control = "{control}"
console = "file:{console}"
state_dir = "{state}"
{user}
{fence}
{tls}
taps = {{ net0 = "tap0" }}
disks = {{ blk0 = "{disk}"{second_disk} }}
"#,
            address = replication_address(host.number()),
            control = sockets.join(format!("{name}.sock")).display(),
            console = directory.join(format!("{name}.console")).display(),
            user = self.user.map_or(String::new(), |user| format!("user = {user:?}")),
            state = directory.join(format!("{name}.state")).display(),
            disk = self.image(host, directory).display(),
            second_disk = match self.reads_qcow2 {
                true => format!(", base = {:?}", Self::read_only_image(host, directory)),
                false => String::new(),
            },
        )
    }
}

/// Ends the process and waits until it holds no file any more.
fn kill_script(pid_file: &Path) -> String {
    format!(
        "p=$(cat \"{}\") || exit 0; kill -KILL $p 2>/dev/null; \
         while grep -q \"^State:[[:space:]]*[^[:space:]ZX]\" /proc/$p/task/*/status 2>/dev/null; do sleep \
         0.01; done",
        pid_file.display()
    )
}
