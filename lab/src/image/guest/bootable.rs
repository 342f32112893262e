//! A disk that boots by itself, as disks of virtual machines do elsewhere: GRUB in front of its only
//! partition, which has the Linux guest's files and in /boot its kernel, its initial file system and GRUB's
//! own files.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{DISK_MIB, INIT, Recipe, Service, fill, initramfs, make_root};
use crate::cache;
use crate::error::{Context, Error, Result};
use crate::kernel::{Kernel, cloud_kernel};
use crate::packages::unpacked;
use crate::process::run;

const SECTOR_BYTES: usize = 512;
/// Where the partition begins, in MiB: as partitioning tools have it, which leaves room for GRUB.
const PARTITION_AT_MIB: u32 = 1;
/// The first entry of a partition table, and the two bytes behind the table.
const PARTITION_ENTRY: usize = 0x1be;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// An entry's first byte if the partition is the active one, and the type of Linux's partitions.
const ACTIVE: u8 = 0x80;
const LINUX: u8 = 0x83;
/// Heads, sectors and cylinders that cannot be said so.
const FAR: [u8; 3] = [0xfe, 0xff, 0xff];

/// Where GRUB's own files are in its packages, and where they are on the disk.
const GRUB_FILES: &str = "usr/lib/grub/i386-pc";
const GRUB_DIRECTORY: &str = "boot/grub";
/// What GRUB needs in order to find those: the disk by the BIOS, its partition, the file system.
const EARLY_MODULES: [&str; 3] = ["biosdisk", "part_msdos", "ext2"];

/// A disk that boots by itself.
#[derive(Clone, Debug)]
pub struct BootDisk {
    /// The disk, raw. Never start a guest from this file, but from a copy.
    pub disk: PathBuf,
    /// What its guest serves.
    pub service: Service,
}

impl BootDisk {
    /// Where the guest's file system begins on the disk, in bytes.
    pub const ROOT_AT: u64 = (PARTITION_AT_MIB as u64) << 20;
}

/// Makes the Linux guest's disk with a boot loader, or finds it made. GRUB counts down from `countdown_s`,
/// and starts the kernel with these arguments beside those that it needs.
pub fn boot_disk(service: Service, countdown_s: u32, arguments: &str) -> Result<BootDisk> {
    let kernel = cloud_kernel()?;
    let recipe = service.recipe()?;
    let menu = menu(countdown_s, arguments);
    let initramfs = initramfs(&kernel)?;
    let key = cache::key(&(&recipe, DISK_MIB, INIT, &menu, &initramfs, &kernel.bzimage));
    let disk = cache::entry(&format!("guest-{key}.disk"), |path| {
        tracing::info!("making the guest's disk with its boot loader");
        make(path, &recipe, &kernel, &initramfs, &menu)
    })?;
    Ok(BootDisk { disk, service })
}

/// What GRUB is told.
fn menu(countdown_s: u32, arguments: &str) -> String {
    format!(
        "set timeout={countdown_s}\nmenuentry \"Debian\" {{\n    linux /boot/vmlinuz console=ttyS0 quiet \
         kemari.root=/dev/vda1 {arguments}\n    initrd /boot/initrd.img\n}}\n"
    )
}

fn make(path: &Path, recipe: &Recipe, kernel: &Kernel, initramfs: &Path, menu: &str) -> Result<()> {
    let directory =
        tempfile::tempdir_in(cache::dir()?).context(|| "make a directory for the guest".into())?;
    let root = directory.path().join("root");
    fs::create_dir(&root).context(|| format!("make {}", root.display()))?;
    fill(&root, recipe)?;
    let grub = unpacked("grub-pc-bin")?.join(GRUB_FILES);
    let boot = root.join(GRUB_DIRECTORY);
    fs::create_dir_all(&boot).context(|| format!("make {}", boot.display()))?;
    let copies = [
        (grub.as_path(), boot.join("i386-pc")),
        (&kernel.bzimage, root.join("boot/vmlinuz")),
        (initramfs, root.join("boot/initrd.img")),
    ];
    for (from, to) in copies {
        run(Command::new("cp")
            .args(["--recursive", "--dereference"])
            .args([from, &to]))?;
    }
    cache::write(&boot.join("grub.cfg"), menu.as_bytes())?;
    make_root(&root, path, BootDisk::ROOT_AT)?;
    let core = core(&grub, &directory.path().join("core.img"))?;
    let boot_sector = boot_sector(&cache::read(&grub.join("boot.img"))?)?;
    let image = OpenOptions::new().write(true).open(path);
    image
        .and_then(|image| {
            image.write_all_at(&boot_sector, 0)?;
            image.write_all_at(&core, SECTOR_BYTES as u64)?;
            image.set_len(u64::from(PARTITION_AT_MIB + DISK_MIB) << 20)
        })
        .context(|| format!("write GRUB to {}", path.display()))
}

/// What GRUB's boot sector loads, from the sector behind it.
fn core(grub: &Path, path: &Path) -> Result<Vec<u8>> {
    let program = unpacked("grub-common")?.join("usr/bin/grub-mkimage");
    // Its library is on most machines, but not on all.
    let libraries = unpacked("libdevmapper1.02.1")?.join("lib/x86_64-linux-gnu");
    let mut command = Command::new(program);
    command
        .env("LD_LIBRARY_PATH", libraries)
        .args(["--format", "i386-pc", "--prefix"])
        .arg(format!("(,msdos1)/{GRUB_DIRECTORY}"))
        .arg("--directory")
        .arg(grub)
        .arg("--output")
        .arg(path);
    run(command.args(EARLY_MODULES))?;
    let core = cache::read(path)?;
    match SECTOR_BYTES + core.len() <= BootDisk::ROOT_AT as usize {
        true => Ok(core),
        false => Err(Error::Format {
            path: path.into(),
            reason: "it does not fit in front of the first partition".into(),
        }),
    }
}

/// GRUB's first sector with a table of one partition. It loads what lies in the second sector.
fn boot_sector(code: &[u8]) -> Result<[u8; SECTOR_BYTES]> {
    let mut sector: [u8; SECTOR_BYTES] = code.try_into().map_err(|_| Error::Format {
        path: "boot.img".into(),
        reason: format!("it has {} bytes and not {SECTOR_BYTES}", code.len()),
    })?;
    let sectors = |mib: u32| (mib << 20 >> SECTOR_BYTES.ilog2()).to_le_bytes();
    let entry = [
        &[ACTIVE],
        &FAR[..],
        &[LINUX],
        &FAR,
        &sectors(PARTITION_AT_MIB),
        &sectors(DISK_MIB),
    ]
    .concat();
    sector[PARTITION_ENTRY..][..entry.len()].copy_from_slice(&entry);
    sector[PARTITION_ENTRY + entry.len()..SECTOR_BYTES - SIGNATURE.len()].fill(0);
    sector[SECTOR_BYTES - SIGNATURE.len()..].copy_from_slice(&SIGNATURE);
    Ok(sector)
}
