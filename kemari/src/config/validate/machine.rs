//! What the guest is and has.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::{Wrong, tap_name};
use crate::config::{Config, Disk, Format, Io, Net, Rate};

/// Least and most memory of a guest in MiB.
const MEMORY_MIB: RangeInclusive<u32> = 64..=1 << 20;
/// Numbers of vCPUs.
const VCPUS: RangeInclusive<u8> = 1..=8;
/// Longest command line that Linux on x86 takes, in bytes.
const CMDLINE_BYTES_MAX: usize = 2047;
/// Most devices a configuration may name: the machine has 16 places,
/// and one is the random number generator's.
const DEVICES_MAX: usize = 15;
/// Longest id of a device, in bytes.
const ID_BYTES_MAX: usize = 16;
/// Longest serial number of a virtio disk, in bytes (virtio 1.2, section 5.2.6).
const SERIAL_BYTES_MAX: usize = 20;
/// Numbers of queues of a disk.
const DISK_QUEUES: RangeInclusive<u16> = 1..=8;
/// Bytes of a disk's logical block.
const DISK_BLOCK_BYTES: [u32; 2] = [512, 4096];
/// Bytes of a block that a BIOS reads.
const BIOS_BLOCK_BYTES: u32 = 512;

pub(super) fn machine(config: &Config, wrong: &mut Wrong) {
    let machine = &config.machine;
    wrong.range(&["machine", "memory_mib"], machine.memory_mib, MEMORY_MIB);
    wrong.range(&["machine", "vcpus"], machine.vcpus, VCPUS);
    let bytes = machine.cmdline.len();
    if bytes > CMDLINE_BYTES_MAX {
        wrong.at(
            &["machine", "cmdline"],
            format!("`machine.cmdline` has {bytes} bytes, but a kernel takes {CMDLINE_BYTES_MAX}"),
        );
    }
    firmware(config, wrong);
    if !machine.cmdline.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        wrong.at(
            &["machine", "cmdline"],
            "`machine.cmdline` must be one line of printable ASCII",
        );
    }
}

/// A guest begins with a kernel or with firmware, and that with a disk.
fn firmware(config: &Config, wrong: &mut Wrong) {
    let machine = &config.machine;
    let at = |key| ["machine", key];
    match (&machine.kernel, &machine.firmware) {
        (None, None) => wrong.at(
            &["machine"],
            "`machine` lacks the key `kernel`, or `firmware = \"bios\"` to boot the first disk",
        ),
        (Some(_), Some(_)) => wrong.at(
            &at("firmware"),
            "`machine.kernel` and `machine.firmware` exclude each other: the kernel is loaded by Kemari, or \
             by what the firmware finds on the disk",
        ),
        _ => {}
    }
    if machine.firmware.is_none() {
        return;
    }
    for (key, is_given) in [
        ("initrd", machine.initrd.is_some()),
        ("cmdline", !machine.cmdline.is_empty()),
    ] {
        if is_given {
            wrong.at(
                &at(key),
                format!(
                    "`machine.{key}` is for a kernel that Kemari loads: with `firmware` the boot loader \
                         on the disk has it"
                ),
            );
        }
    }
    match config.disks.first() {
        None => wrong.at(
            &at("firmware"),
            "`machine.firmware` boots the first disk, but there is no [[disk]]",
        ),
        Some(disk) if disk.block_size != BIOS_BLOCK_BYTES => wrong.at(
            &["disk", "0", "block_size"],
            format!(
                "disk `{}` has blocks of {} bytes, but a BIOS boots disks with {BIOS_BLOCK_BYTES} only: \
                 remove `block_size`, or boot another disk by naming it first",
                disk.id, disk.block_size
            ),
        ),
        Some(_) => {}
    }
}

pub(super) fn devices(config: &Config, wrong: &mut Wrong) {
    let count = config.disks.len() + config.nets.len();
    if count > DEVICES_MAX {
        wrong.at(
            &["disk"],
            format!("there are {count} disks and network cards, but at most {DEVICES_MAX} fit"),
        );
    }
    let (mut ids, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for (index, disk) in config.disks.iter().enumerate() {
        self::disk(config, &index.to_string(), disk, &mut ids, wrong);
    }
    for (index, net) in config.nets.iter().enumerate() {
        self::net(config, &index.to_string(), net, &mut ids, &mut macs, wrong);
    }
}

/// `index`: its place among the disks. `ids`: those of the devices before it.
fn disk(config: &Config, index: &str, disk: &Disk, ids: &mut BTreeSet<String>, wrong: &mut Wrong) {
    wrong.name(&["disk", index, "id"], "a disk's id", &disk.id, ID_BYTES_MAX);
    wrong.unique(&["disk", index, "id"], "the id", &disk.id, ids);
    let serial = disk.serial();
    if serial.len() > SERIAL_BYTES_MAX || !serial.bytes().all(|byte| byte.is_ascii_graphic()) {
        wrong.at(
            &["disk", index, "serial"],
            format!(
                "the serial number `{serial}` must be at most {SERIAL_BYTES_MAX} printable ASCII \
                     characters"
            ),
        );
    }
    wrong.range(&["disk", index, "queues"], disk.queues, DISK_QUEUES);
    rate("disk", index, disk.rate, wrong);
    if !DISK_BLOCK_BYTES.contains(&disk.block_size) {
        wrong.at(
            &["disk", index, "block_size"],
            format!(
                "`disk.block_size` is {}, but must be 512 or 4096",
                disk.block_size
            ),
        );
    }
    if disk.format == Format::Qcow2 && !disk.read_only {
        wrong.at(
            &["disk", index, "format"],
            format!(
                "disk `{}` is qcow2, which is only read: make a raw image of it with `kemari import \
                 IMAGE --format qcow2 DEST` and name that one, or say `read_only = true`",
                disk.id
            ),
        );
    }
    if disk.format == Format::Qcow2 && disk.io == Io::IoUring {
        wrong.at(
            &["disk", index, "io"],
            format!(
                "disk `{}` is qcow2, which threads serve: io_uring is for raw disks only; remove `io`",
                disk.id
            ),
        );
    }
    for (name, host) in &config.hosts {
        if disk.path.is_none() && !host.disks.contains_key(&disk.id) {
            wrong.at(
                &["disk", index],
                format!(
                    "disk `{}` has no path on host `{name}`: give it `path`, or name it in \
                         [hosts.{name}.disks]",
                    disk.id
                ),
            );
        }
    }
}

/// `index`: its place among the cards. `ids`, `macs`: those of the devices before it.
fn net(
    config: &Config,
    index: &str,
    net: &Net,
    ids: &mut BTreeSet<String>,
    macs: &mut BTreeSet<String>,
    wrong: &mut Wrong,
) {
    wrong.name(
        &["net", index, "id"],
        "a network card's id",
        &net.id,
        ID_BYTES_MAX,
    );
    wrong.unique(&["net", index, "id"], "the id", &net.id, ids);
    wrong.unique(
        &["net", index, "mac"],
        "the MAC address",
        &net.mac.to_string(),
        macs,
    );
    rate("net", index, net.rate, wrong);
    if let Some(tap) = &net.tap {
        tap_name(&["net", index, "tap"], tap, wrong);
    }
    for (name, host) in &config.hosts {
        if net.tap.is_none() && !host.taps.contains_key(&net.id) {
            wrong.at(
                &["net", index],
                format!(
                    "card `{}` has no TAP on host `{name}`: give it `tap`, or name it in \
                         [hosts.{name}.taps]",
                    net.id
                ),
            );
        }
    }
}

fn rate(section: &str, index: &str, rate: Option<Rate>, wrong: &mut Wrong) {
    for (key, fault) in rate.iter().flat_map(Rate::faults) {
        wrong.at(
            &[section, index, "rate", key],
            format!("`{section}.rate.{key}` {fault}"),
        );
    }
}
