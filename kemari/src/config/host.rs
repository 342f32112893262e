//! The arbiter, and what differs from host to host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::DnsName;
use serde::{Deserialize, Serialize};

use super::{Console, Disk, Listen, Net};

/// Where the arbiter's record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ArbiterKind {
    /// In etcd.
    Etcd,
    /// In a directory on storage that every host sees.
    File,
    /// Nowhere: the operator asserts that a silent peer is dead.
    None,
}

/// `[arbiter]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Arbiter {
    /// Where the record is kept.
    pub kind: ArbiterKind,
    /// etcd: its client URLs, `https://host:port` or `http://host:port`, tried in turn.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// etcd over TLS: certificates of the authorities that its members' certificates may come from, as PEM.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// etcd over TLS: the certificate that is shown to it, as PEM; with `key`.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// etcd over TLS: the key of `certificate`, as PEM.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// etcd: its user; with `password_file`.
    #[serde(default)]
    pub user: Option<String>,
    /// etcd: the file that holds the user's password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// etcd: what the keys begin with.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// file: the directory.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Longest time of one request in ms.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
}

fn default_prefix() -> String {
    "/kemari/".into()
}

fn default_timeout_ms() -> u32 {
    2000
}

impl Arbiter {
    /// [`Self::timeout_ms`].
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.into())
    }
}

/// `[hosts.NAME]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Where this host, as the secondary, takes data and heartbeats.
    pub listen: Listen,
    /// Control socket; `/run/kemari/VM.sock` if absent.
    #[serde(default)]
    pub(super) control: Option<PathBuf>,
    /// Where the guest's console goes.
    #[serde(default)]
    pub console: Console,
    /// Most that the console's file, and the one before it, may have together, in MiB.
    #[serde(default = "default_console_mib_max")]
    pub(crate) console_mib_max: u32,
    /// Directory of this host's certificates, instead of the one in `[protection]`.
    #[serde(default)]
    pub certificates: Option<PathBuf>,
    /// Program and arguments, run on *this* host, that cut the other one off from the shared disks for
    /// certain; `{peer}` stands for the other's name.
    #[serde(default)]
    pub fence: Vec<String>,
    /// Time after which a fence that has not ended counts as failed, in ms.
    #[serde(default = "default_fence_timeout_ms")]
    pub fence_timeout_ms: u32,
    /// Where this host keeps what must outlive the process; `/var/lib/kemari/VM` if absent.
    #[serde(default)]
    pub(super) state_dir: Option<PathBuf>,
    /// The user that a side runs as on this host; if absent, the one that it is started by.
    #[serde(default)]
    pub user: Option<String>,
    /// TAP devices of this host by the id of their card.
    #[serde(default)]
    pub taps: BTreeMap<String, String>,
    /// Network devices by which this host's cards reach other hosts, by the id of the card. One of them with
    /// a carrier is enough; none is watched if the list is empty. If absent: the other ports of the TAP's
    /// bridge.
    #[serde(default)]
    pub(crate) uplinks: BTreeMap<String, Vec<String>>,
    /// Bridges that the TAPs of this host's cards must be ports of, by the id of the card. If absent: the one
    /// that the TAP was on first.
    #[serde(default)]
    pub(crate) bridges: BTreeMap<String, String>,
    /// Images or block devices of this host by the id of their disk.
    #[serde(default)]
    pub disks: BTreeMap<String, PathBuf>,
}

fn default_console_mib_max() -> u32 {
    64
}

fn default_fence_timeout_ms() -> u32 {
    10_000
}

impl Host {
    /// Path of the control socket.
    pub fn control(&self) -> &Path {
        self.control
            .as_deref()
            .unwrap_or(Path::new("/run/kemari/kemari.sock"))
    }

    /// Directory for what must outlive the process.
    pub fn state_dir(&self) -> &Path {
        self.state_dir.as_deref().unwrap_or(Path::new("/var/lib/kemari"))
    }

    /// The fence command against the host `peer`; empty if there is none.
    pub(crate) fn fence_against(&self, peer: &str) -> Vec<String> {
        self.fence
            .iter()
            .map(|word| word.replace("{peer}", peer))
            .collect()
    }
}

/// A host's name as it stands in certificates; the error is a sentence.
pub(crate) fn certificate_name(host: &str) -> Result<DnsName<'static>, String> {
    DnsName::try_from(host.to_owned()).map_err(|_| {
        format!(
            "`{host}` cannot stand in a certificate: a host's name there is made of letters, digits, `_`, \
             `.` and, inside, `-`, and its last part is no number"
        )
    })
}

/// A disk as one host sees it.
#[derive(Clone, Debug)]
pub struct HostDisk<'a> {
    /// What all hosts have in common.
    pub disk: &'a Disk,
    /// The image or block device on this host.
    pub path: PathBuf,
}

/// A network card as one host sees it.
#[derive(Clone, Debug)]
pub struct HostNet<'a> {
    /// What all hosts have in common.
    pub net: &'a Net,
    /// The TAP device on this host.
    pub tap: String,
}
