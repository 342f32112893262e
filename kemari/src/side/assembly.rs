//! From the configuration to a machine.

use std::io::{self, Write, sink, stdout};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use kemari_vmm::boot::{BootConfig, BootError, Kernel};
use kemari_vmm::dirty::DirtySource;
use kemari_vmm::machine::{DiskSpec, Machine, MachineSpec, NetSpec};
use kemari_vmm::virtio::block::BlockSpec;
use kemari_vmm::virtio::rate::RateSpec;

use super::console::ConsoleFile;
use super::faults;
use crate::config::{self, Config, Console, Flush, Host, HostDisk, HostNet, Rate};
use crate::image::image_of;
use crate::replica::{Image, Replica, Report, Tracker};
use crate::steward;

/// For so long a TAP that is busy is tried again, and how often: twice as long as a trial holds it.
const TAP_BUSY_MAX: Duration = Duration::from_millis(100);
const TAP_BUSY_INTERVAL: Duration = Duration::from_millis(10);

/// Reads what the guest begins with: a kernel, or firmware.
pub fn kernel(machine: &config::Machine) -> Result<Kernel, BootError> {
    if let Some(path) = machine.firmware_path() {
        return Kernel::open_firmware(path);
    }
    Kernel::open(&BootConfig {
        kernel: machine.begins_with().to_owned(),
        initrd: machine.initrd.clone(),
        cmdline: machine.cmdline.clone(),
    })
}

/// Reads the kernel and says what the machine is made of.
pub fn machine_spec(config: &Config) -> anyhow::Result<MachineSpec> {
    let kernel = kernel(&config.machine)?;
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
                rate: rate_spec(disk.rate),
            })
            .collect(),
        nets: config
            .nets
            .iter()
            .map(|net| NetSpec {
                id: net.id.clone(),
                mac: net.mac.0,
                offload: net.offload,
                rate: rate_spec(net.rate),
            })
            .collect(),
        rng: true,
        dirty_source: DirtySource::Best,
    })
}

fn rate_spec(rate: Option<Rate>) -> RateSpec {
    let rate = rate.unwrap_or_default();
    RateSpec {
        bytes: rate.bytes(),
        operations: rate.operations(),
    }
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

/// Opens the image of a host's disk, unless the machine has it already. `fenced`: its former user was fenced,
/// so its lock says nothing.
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
    once_free(|| steward::open_tap(net))
        .and_then(|tap| Ok(machine.attach_net(id, tap)?))
        .with_context(|| format!("network card {id}"))
}

/// Tries again what is busy, for a moment: this host may be trying just then whether its TAP is of use.
fn once_free<T>(mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let is_busy = |error: &anyhow::Error| {
        let mut causes = error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<io::Error>());
        causes.any(|cause| cause.raw_os_error() == Some(libc::EBUSY))
    };
    let deadline = Instant::now() + TAP_BUSY_MAX;
    loop {
        match attempt() {
            Err(error) if is_busy(&error) && Instant::now() < deadline => thread::sleep(TAP_BUSY_INTERVAL),
            outcome => return outcome,
        }
    }
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

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::channel;

    use kemari_vmm::virtio::tap::TapDevice;

    use super::*;

    /// The calling thread gets a network of its own, with a TAP in it.
    fn make_tap(name: &str) {
        // SAFETY: the call has no arguments in memory.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        let arguments = ["tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"];
        assert!(Command::new("ip").args(arguments).status().unwrap().success());
    }

    #[test]
    fn a_tap_that_is_on_trial_for_a_moment_is_waited_for_and_one_in_use_is_not() {
        make_tap("tap0");
        let open = |name| TapDevice::open(name).map(drop).map_err(anyhow::Error::from);
        let (hold, held) = channel();
        thread::scope(|threads| {
            threads.spawn(move || {
                let _tap = TapDevice::open("tap0").unwrap();
                hold.send(()).unwrap();
                thread::sleep(Duration::from_millis(50));
            });
            held.recv().unwrap();
            assert!(open("tap0").is_err(), "it is busy");
            once_free(|| open("tap0")).unwrap();
        });
        let _user = TapDevice::open("tap0").unwrap();
        assert!(once_free(|| open("tap0")).is_err());
        let begin = Instant::now();
        let missing = once_free(|| open("tap1"));
        assert!(
            missing.is_err() && begin.elapsed() < TAP_BUSY_MAX,
            "what is not there is not waited for"
        );
    }
}
