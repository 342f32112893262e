//! The Linux guest: Debian's kernel, and a service on an ext4 disk.

pub(super) mod bootable;
mod postgres;
mod redis;
mod shell;

use std::fmt;
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
/// Size of the guest's disk.
const DISK_MIB: u32 = 256;
const FIRST_INIT: &[u8] = include_bytes!("guest/first-init.sh");
const INIT: &[u8] = include_bytes!("guest/init.sh");

/// What the guest serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Redis on port 6379, which makes every write durable before it answers. Setting: `kemari.appendfsync`.
    Redis,
    /// PostgreSQL on port 5432, with data checksums and `synchronous_commit`; whoever connects may do
    /// everything. Setting: `kemari.fsync`.
    Postgres,
    /// A shell on port 4000, as root, for each connection; no settings.
    Shell,
}

impl Service {
    /// The TCP port on which it listens.
    pub fn port(self) -> u16 {
        match self {
            Service::Redis => 6379,
            Service::Postgres => 5432,
            Service::Shell => 4000,
        }
    }

    fn recipe(self) -> Result<Recipe> {
        match self {
            Service::Redis => Ok(redis::recipe()),
            Service::Postgres => postgres::recipe(),
            Service::Shell => Ok(shell::recipe()),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Service::Redis => "Redis",
            Service::Postgres => "PostgreSQL",
            Service::Shell => "a shell",
        })
    }
}

/// What makes a disk of a service.
#[derive(Debug, Hash)]
struct Recipe {
    /// Debian packages with the service and every library that it loads.
    packages: Vec<String>,
    /// Paths in those packages that the guest can do without.
    left_out: Vec<String>,
    /// Files that are added, by their path.
    files: Vec<(&'static str, &'static [u8])>,
    /// A shell script that is run in the guest's root directory as the guest sees it, as root.
    prepare: &'static str,
}

/// Files from which the Linux guest starts, under `target/lab`.
///
/// Its kernel command line: `console=ttyS0 kemari.ip=10.77.0.2/24`, and if wanted `kemari.service=off` (no
/// server), `kemari.root=/dev/vda1` (where its root is not the whole disk) and the service's own settings
/// ([`Service`]). When the service answers it prints `guest ready` on
/// the console, and then a shell listens there. The first disk is its root.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// Its kernel, as Debian ships it and decompressed.
    pub kernel: Kernel,
    /// Its initial file system, which mounts the disk.
    pub initramfs: PathBuf,
    /// Its disk, raw, ext4. Never start a guest from this file, but from a copy ([`GuestImage::copy_disk`]).
    pub disk: PathBuf,
    /// What it serves.
    pub service: Service,
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

/// Makes the Linux guest with a service, or finds it made.
pub fn guest_image(service: Service) -> Result<GuestImage> {
    let kernel = cloud_kernel()?;
    Ok(GuestImage {
        initramfs: initramfs(&kernel)?,
        disk: disk(&service.recipe()?)?,
        kernel,
        service,
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

fn disk(recipe: &Recipe) -> Result<PathBuf> {
    let key = cache::key(&(recipe, DISK_MIB, INIT));
    cache::entry(&format!("guest-{key}.ext4"), |path| {
        tracing::info!("making the guest's disk");
        let root = tempfile::tempdir_in(cache::dir()?).context(|| "make a directory for the guest".into())?;
        fill(root.path(), recipe)?;
        make_root(root.path(), path, 0)
    })
}

/// Makes the guest's file system of the files in `root`, so many bytes behind the beginning of `image`.
fn make_root(root: &Path, image: &Path, offset: u64) -> Result<()> {
    let mut command = Command::new(tool("mke2fs"));
    command.args(["-q", "-F", "-t", "ext4", "-L", "guest", "-E"]);
    command.arg(format!("root_owner=0:0,offset={offset}")).arg("-d");
    run(command.arg(root).arg(image).arg(format!("{DISK_MIB}M")))?;
    Ok(())
}

/// Lays out the guest's root directory.
fn fill(root: &Path, recipe: &Recipe) -> Result<()> {
    for package in recipe
        .packages
        .iter()
        .map(String::as_str)
        .chain(["busybox-static"])
    {
        let files = unpacked(package)?;
        run(Command::new("cp")
            .args(["--archive", "--no-target-directory"])
            .args([&files, root]))?;
    }
    let remove = |path: &Path| match path {
        path if path.is_dir() => fs::remove_dir_all(path),
        path if path.exists() => fs::remove_file(path),
        _ => Ok(()),
    };
    for path in &recipe.left_out {
        let path = root.join(path);
        remove(&path).context(|| format!("remove {}", path.display()))?;
    }
    let what = || "lay out the guest's root directory".to_string();
    let executable = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context(what);
    // A service that does not run as root enters it too.
    executable(root)?;
    for dir in ["dev", "proc", "sys", "run", "tmp", "root", "sbin", "etc"] {
        fs::create_dir_all(root.join(dir)).context(what)?;
    }
    let names = run(Command::new(busybox()?).arg("--list"))?;
    for name in String::from_utf8_lossy(&names.stdout).lines() {
        let link = root.join("bin").join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink("busybox", &link).context(what)?;
        }
    }
    for (path, content) in &recipe.files {
        cache::write(&root.join(path), content)?;
    }
    let init = root.join("sbin/init");
    cache::write(&init, INIT)?;
    executable(&init)?;
    run(Command::new(tool("chroot"))
        .arg(root)
        .args(["/bin/sh", "-euc", recipe.prepare])
        .env("PATH", "/bin:/sbin:/usr/bin"))?;
    Ok(())
}
