//! Emulated hosts with all that stands around them.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::build::lab_agent;
use crate::error::{Context, Result};
use crate::etcd::Etcd;
use crate::fence::Fence;
use crate::host::{Host, Parts};
use crate::image::host_initramfs;
use crate::kernel::cloud_kernel;
use crate::netns::Netns;
use crate::network::{HOSTS_MAX, Network, outside, set_joined};
use crate::nfs::Nfs;
use crate::packages::ensure_packages;
use crate::scratch::{scratch_dir, socket_dir};
use crate::volatile::VolatileDisk;

/// By how much the clocks of two hosts that follow each other differ.
pub const CLOCK_STEP: Duration = Duration::from_secs(5 * 60 * 60);

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// Number of hosts, 1 to 16.
    pub hosts: usize,
    /// CPUs of each host. One boots fastest; two where the throughput of clients matters.
    pub smp: u32,
    /// Memory of each host in MiB; it holds the host's files too.
    pub memory_mib: u32,
    /// TAP devices for guests on each host: `tap0`, `tap1`, ...
    pub taps: usize,
    /// Raw files that *all* hosts have as disks: `/dev/vda`, `/dev/vdb`, ..., not cached outside.
    pub shared_disks: Vec<PathBuf>,
    /// Sizes in MiB of disks that each host has for itself, after the shared ones; empty files at the start
    /// that keep their content over a power cut.
    pub own_disks_mib: Vec<u64>,
    /// Whether those disks forget at a power cut a random part of what was not flushed ([`VolatileDisk`]);
    /// otherwise they keep everything, as does this machine's page cache.
    pub volatile: bool,
    /// Whether an etcd runs outside.
    pub etcd: bool,
    /// Whether an NFS server runs outside.
    pub nfs: bool,
}

impl Default for LabConfig {
    /// Two hosts with one CPU, 1.5 GiB and one TAP each, no disks, and an etcd.
    fn default() -> Self {
        LabConfig {
            hosts: 2,
            smp: 1,
            memory_mib: 1536,
            taps: 1,
            shared_disks: Vec::new(),
            own_disks_mib: Vec::new(),
            volatile: false,
            etcd: true,
            nfs: false,
        }
    }
}

/// Emulated hosts, joined by three networks, with the arbiter and the fence outside.
/// All ends when it is dropped.
///
/// ```no_run
/// # fn main() -> lab::Result<()> {
/// use lab::{Lab, LabConfig, Network};
///
/// let lab = Lab::start(LabConfig::default())?;
/// lab.host(0).put("target/static/kemari".as_ref(), "/bin/kemari")?;
/// let pid = lab.host(0).spawn(&["kemari", "run", "/vm.toml"], &[], "/tmp/kemari.log")?;
/// lab.cut(0, Network::Replication)?;      // silence; `join` ends it
/// lab.host(0).power_cut();                // SIGKILL for the whole host
/// lab.host(0).power_on()?;                // boots anew
/// lab.host(0).wait_ready()?;
/// # let _ = pid; Ok(()) }
/// ```
///
/// Inside a host `lab-fence N` cuts the power of host N and returns when it is off. The clock of each host is
/// [`CLOCK_STEP`] ahead of that of the host before it: nothing may depend on what time it is elsewhere.
// The order of the fields is the order of their end: the fence before the hosts it could still cut.
#[derive(Debug)]
pub struct Lab {
    _fence: Fence,
    hosts: Vec<Host>,
    etcd: Option<Etcd>,
    nfs: Option<Nfs>,
    outside: Netns,
    _dirs: [TempDir; 2],
}

impl Lab {
    /// Installs and makes what is missing, switches all hosts on at once and waits until they are up. Needs
    /// root; with everything cached it takes some ten seconds.
    pub fn start(config: LabConfig) -> Result<Lab> {
        assert!(
            (1..=HOSTS_MAX).contains(&config.hosts),
            "a Lab has 1 to {HOSTS_MAX} hosts"
        );
        ensure_packages()?;
        let kernel = cloud_kernel()?;
        let initramfs = host_initramfs(&kernel, &lab_agent()?)?;
        let (sockets, own_disks) = (socket_dir()?, scratch_dir()?);
        let outside = outside()?;
        let mut hosts = Vec::new();
        for index in 0..config.hosts {
            let host_dir = sockets.path().join(format!("host-{index}"));
            for disk in &config.shared_disks {
                // QEMU's own words for this are hard to find in its log.
                let opened = OpenOptions::new().read(true).write(true).open(disk);
                opened.context(|| format!("open the shared disk {}", disk.display()))?;
            }
            let (mut own, mut volatile) = (Vec::new(), Vec::new());
            for (number, mib) in config.own_disks_mib.iter().enumerate() {
                let name = format!("host-{index}-disk-{number}");
                let path = own_disks.path().join(&name);
                let what = || format!("make {}", path.display());
                File::create(&path)
                    .context(what)?
                    .set_len(mib << 20)
                    .context(what)?;
                if config.volatile {
                    let socket = sockets.path().join(&name);
                    volatile.push(Arc::new(VolatileDisk::serve(&path, socket)?));
                }
                own.push(path);
            }
            let parts = Parts {
                clock_ahead: CLOCK_STEP * index as u32,
                vmlinux: kernel.vmlinux.clone(),
                initramfs: initramfs.clone(),
                smp: config.smp,
                memory_mib: config.memory_mib,
                taps: config.taps,
                shared_disks: config.shared_disks.clone(),
                own_disks: own,
                volatile_disks: volatile,
            };
            hosts.push(Host::new(index, parts, &outside, host_dir)?);
        }
        hosts.iter().try_for_each(Host::power_on)?;
        let etcd = config.etcd.then(|| Etcd::start(&outside)).transpose()?;
        let nfs = config.nfs.then(|| Nfs::start(&outside)).transpose()?;
        let fence = Fence::start(&outside, hosts.iter().map(Host::power).collect())?;
        hosts.iter().try_for_each(Host::wait_ready)?;
        Ok(Lab {
            _fence: fence,
            hosts,
            etcd,
            nfs,
            outside,
            _dirs: [sockets, own_disks],
        })
    }

    /// Host `index`, from 0.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// Where clients and the arbiter live: `lab.outside().run(|| TcpStream::connect(...))`.
    pub fn outside(&self) -> &Netns {
        &self.outside
    }

    /// The arbiter's etcd, if there is one.
    pub fn etcd(&self) -> Option<&Etcd> {
        self.etcd.as_ref()
    }

    /// The NFS server, if there is one.
    pub fn nfs(&self) -> Option<&Nfs> {
        self.nfs.as_ref()
    }

    /// Cuts host `host` off a network: it keeps its carrier, and whatever it sends arrives nowhere. Without
    /// [`Network::Control`] its agent cannot be reached either.
    pub fn cut(&self, host: usize, network: Network) -> Result<()> {
        set_joined(&self.outside, host, network, false)
    }

    /// Ends a [`Lab::cut`].
    pub fn join(&self, host: usize, network: Network) -> Result<()> {
        set_joined(&self.outside, host, network, true)
    }
}
