//! From the configuration to a machine.

use std::io::{Write, sink, stdout};
use std::sync::Arc;

use anyhow::Context;
use kemari_vmm::boot::{BootConfig, Kernel};
use kemari_vmm::dirty::DirtySource;
use kemari_vmm::machine::{DiskSpec, Machine, MachineSpec, NetSpec};
use kemari_vmm::virtio::block::BlockSpec;

use super::console::ConsoleFile;
use super::faults;
use crate::config::{Config, Console, Flush, Host, HostDisk, HostNet};
use crate::image::image_of;
use crate::replica::{Image, Replica, Report, Tracker};

/// Reads the kernel and says what the machine is made of.
pub fn machine_spec(config: &Config) -> anyhow::Result<MachineSpec> {
    let kernel = Kernel::open(&BootConfig {
        kernel: config.machine.kernel.clone(),
        initrd: config.machine.initrd.clone(),
        cmdline: config.machine.cmdline.clone(),
    })?;
    Ok(MachineSpec {
        memory_bytes: u64::from(config.machine.memory_mib) << 20,
        vcpus: config.machine.vcpus,
        kernel: Arc::new(kernel),
        disks: config
            .disks
            .iter()
            .map(|disk| DiskSpec {
                id: disk.id.clone(),
                block: BlockSpec {
                    serial: disk.serial().into(),
                    read_only: disk.read_only,
                    block_bytes: disk.block_size,
                    queues: disk.queues,
                },
            })
            .collect(),
        nets: config
            .nets
            .iter()
            .map(|net| NetSpec {
                id: net.id.clone(),
                mac: net.mac.0,
                offload: net.offload,
            })
            .collect(),
        rng: true,
        dirty_source: DirtySource::Best,
    })
}

/// Digest of all that both hosts must have in common: the configuration's shared part and the kernel's files.
pub fn common_digest(config: &Config, spec: &MachineSpec) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&config.digest().to_le_bytes());
    hasher.update(&spec.kernel.digest().to_le_bytes());
    config.digest().rotate_left(32) ^ spec.kernel.digest() ^ u64::from(hasher.finalize())
}

/// Lets the disks of these images be watched, from when they are opened on.
pub fn watch_disks(
    machine: &Machine,
    config: &Config,
    images: &[Arc<Image>],
) -> anyhow::Result<Vec<Arc<Tracker>>> {
    let trackers: Vec<Arc<Tracker>> = images
        .iter()
        .map(|image| {
            let disk = config.disks.iter().find(|disk| disk.id == image.disk());
            let both = disk.is_some_and(|disk| disk.flush == Flush::Both);
            Tracker::new(image.clone(), both)
        })
        .collect();
    for tracker in &trackers {
        machine.watch_disk(tracker.image().disk(), tracker.clone())?;
    }
    Ok(trackers)
}

/// Opens the images of a secondary's replicated disks. `report` is told what happens to each.
pub fn replicas(
    config: &Config,
    host: &str,
    images: Vec<Arc<Image>>,
    report: impl Fn(usize, Report) + Clone + Send + 'static,
) -> anyhow::Result<Vec<Replica>> {
    let disks = config.disks_of(host);
    let disks = disks.iter().filter(|disk| config.replicates(disk.disk));
    let bytes_max = config.protection.replica_queue_bytes_max();
    disks
        .zip(images)
        .enumerate()
        .map(|(index, (disk, image))| {
            let report = report.clone();
            let config = image_of(disk, false);
            let report = move |what| report(index, what);
            Replica::start(image, &config, bytes_max, faults::replica_delay(), report)
                .with_context(|| format!("disk {}", disk.disk.id))
        })
        .collect()
}

/// Opens the image of a host's disk, unless the machine has it already. `fenced`: its former user was fenced, so its
/// lock says nothing.
pub fn attach_disk(machine: &Machine, disk: &HostDisk<'_>, fenced: bool) -> anyhow::Result<()> {
    let id = &disk.disk.id;
    if machine.disk_image(id)?.is_some() {
        return Ok(());
    }
    machine
        .attach_disk(id, &image_of(disk, fenced))
        .with_context(|| format!("disk {id}"))
}

/// Plugs a host's network card in, unless it is.
pub fn attach_net(machine: &Machine, net: &HostNet<'_>) -> anyhow::Result<()> {
    let id = &net.net.id;
    if machine.has_cable(id)? {
        return Ok(());
    }
    machine
        .attach_net(id, &net.tap)
        .with_context(|| format!("network card {id}"))
}

/// Where what the guest says at its console goes.
pub fn console(host: &Host) -> anyhow::Result<Box<dyn Write + Send>> {
    let passed_on =
        |sink: Box<dyn Write + Send>| super::console::Console::to(sink).context("cannot write the console");
    Ok(match &host.console {
        Console::None => Box::new(sink()),
        Console::Stdio => Box::new(passed_on(Box::new(stdout()))?),
        Console::File(path) => {
            let file = ConsoleFile::open(path, u64::from(host.console_mib_max) << 20)
                .with_context(|| format!("cannot open the console's file {}", path.display()))?;
            Box::new(passed_on(Box::new(file))?)
        }
    })
}
