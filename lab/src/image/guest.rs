//! The Linux guest: Debian's kernel, and Redis on an ext4 disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{base, busybox};
use crate::cache;
use crate::error::{Context, Result};
use crate::kernel::{Kernel, cloud_kernel, modules};
use crate::packages::{tool, unpacked};
use crate::process::run;

/// Devices of the machine (virtio-mmio), and of QEMU's for the tests of this image (virtio-pci).
const MODULES: [&str; 5] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
];
/// Redis and every library that its programs load.
const PACKAGES: [&str; 18] = [
    "redis-server",
    "redis-tools",
    "libc6",
    "libatomic1",
    "libcap2",
    "libcrypt1",
    "libgcc-s1",
    "libgcrypt20",
    "libgpg-error0",
    "libjemalloc2",
    "liblz4-1",
    "liblzf1",
    "liblzma5",
    "libssl3",
    "libstdc++6",
    "libsystemd0",
    "libzstd1",
    "busybox-static",
];
/// Directories of packages that a guest can do without.
const LEFT_OUT: [&str; 4] = [
    "usr/share",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "lib/systemd",
];
/// Size of the guest's disk.
const DISK_MIB: u32 = 256;
const FIRST_INIT: &[u8] = include_bytes!("guest-first-init.sh");
const INIT: &[u8] = include_bytes!("guest-init.sh");
const REDIS_CONFIG: &[u8] = include_bytes!("guest-redis.conf");

/// Files from which the Linux guest starts, under `target/lab`.
///
/// Its kernel command line: `console=ttyS0 kemari.ip=10.77.0.2/24`, and if wanted `kemari.appendfsync=everysec`
/// (default `always`), `kemari.redis=off` (no server). When Redis answers it prints `guest ready` on the console, and
/// then a shell listens there. The first disk is its root.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// Its kernel, as Debian ships it and decompressed.
    pub kernel: Kernel,
    /// Its initial file system, which mounts the disk.
    pub initramfs: PathBuf,
    /// Its disk, raw, ext4. Never start a guest from this file, but from a copy ([`GuestImage::copy_disk`]).
    pub disk: PathBuf,
}

impl GuestImage {
    /// Copies the disk to `path`, leaving its holes holes.
    pub fn copy_disk(&self, path: &Path) -> Result<()> {
        run(Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .args([&self.disk, path]))?;
        Ok(())
    }
}

/// Makes the Linux guest, or finds it made.
pub fn guest_image() -> Result<GuestImage> {
    let kernel = cloud_kernel()?;
    Ok(GuestImage {
        initramfs: initramfs(&kernel)?,
        disk: disk()?,
        kernel,
    })
}

fn initramfs(kernel: &Kernel) -> Result<PathBuf> {
    let modules = modules(kernel, &MODULES)?;
    let key = cache::key(&(&modules, FIRST_INIT));
    cache::entry(&format!("guest-{key}.cpio"), |path| {
        let mut archive = base(&modules)?;
        archive.directories(&["/disk"]);
        archive.program("/init", FIRST_INIT);
        cache::write(path, &archive.finish())
    })
}

fn disk() -> Result<PathBuf> {
    let key = cache::key(&(PACKAGES, LEFT_OUT, DISK_MIB, INIT, REDIS_CONFIG));
    cache::entry(&format!("guest-{key}.ext4"), |path| {
        tracing::info!("making the guest's disk");
        let root = tempfile::tempdir_in(cache::dir()?).context(|| "make a directory for the guest".into())?;
        fill(root.path())?;
        let mut command = Command::new(tool("mke2fs"));
        command.args(["-q", "-t", "ext4", "-L", "guest", "-E", "root_owner=0:0", "-d"]);
        run(command.arg(root.path()).arg(path).arg(format!("{DISK_MIB}M")))?;
        Ok(())
    })
}

/// Lays out the guest's root directory.
fn fill(root: &Path) -> Result<()> {
    for package in PACKAGES {
        let files = unpacked(package)?;
        run(Command::new("cp")
            .args(["--archive", "--no-target-directory"])
            .args([&files, root]))?;
    }
    for path in LEFT_OUT
        .map(|path| root.join(path))
        .iter()
        .filter(|path| path.exists())
    {
        fs::remove_dir_all(path).context(|| format!("remove {}", path.display()))?;
    }
    let what = || "lay out the guest's root directory".to_string();
    for dir in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "sbin",
        "etc",
        "var/lib/redis",
    ] {
        fs::create_dir_all(root.join(dir)).context(what)?;
    }
    let names = run(Command::new(busybox()?).arg("--list"))?;
    for name in String::from_utf8_lossy(&names.stdout).lines() {
        let link = root.join("bin").join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink("busybox", &link).context(what)?;
        }
    }
    cache::write(&root.join("etc/redis.conf"), REDIS_CONFIG)?;
    let init = root.join("sbin/init");
    cache::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context(what)
}
