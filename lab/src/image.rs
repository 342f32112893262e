//! What hosts and guests start from: initial file systems and disks, made of Debian's packages.

mod cpio;
mod guest;
mod host;
mod inside;

use std::path::{Path, PathBuf};
use std::process::Command;

pub use guest::bootable::{BootDisk, boot_disk};
pub use guest::{GuestImage, Service, guest_image};
pub(crate) use host::host_initramfs;
pub use inside::{DiskCopy, GuestRoot};

use crate::cache;
use crate::error::Result;
use crate::kernel::Module;
use crate::packages::{tool, unpacked};
use crate::process::run;
use cpio::Cpio;

/// Makes an empty ext4 file system that fills an existing file.
pub fn make_ext4(file: &Path) -> Result<()> {
    run(Command::new(tool("mke2fs"))
        .args(["-q", "-F", "-t", "ext4"])
        .arg(file))
    .map(drop)
}

/// Debian's static busybox.
pub(crate) fn busybox() -> Result<PathBuf> {
    Ok(unpacked("busybox-static")?.join("bin/busybox"))
}

/// An archive with busybox under all its names, and `modules` with the order of their insertion in
/// `/lib/modules/order`.
fn base(modules: &[Module]) -> Result<Cpio> {
    let busybox = busybox()?;
    let mut archive = Cpio::default();
    archive.directories(&[
        "/bin",
        "/dev",
        "/etc",
        "/lib",
        "/lib/modules",
        "/proc",
        "/root",
        "/run",
        "/sys",
        "/tmp",
    ]);
    archive.program("/bin/busybox", &cache::read(&busybox)?);
    let output = run(Command::new(&busybox).arg("--list"))?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in names.lines().filter(|name| *name != "busybox") {
        archive.link(&format!("/bin/{name}"), "busybox");
    }
    add_modules(&mut archive, modules, "order");
    Ok(archive)
}

/// Adds modules, and `/lib/modules/LIST` with their names in the order of their insertion.
fn add_modules(archive: &mut Cpio, modules: &[Module], list: &str) {
    let mut order = String::new();
    for Module { name, bytes } in modules {
        archive.file(&format!("/lib/modules/{name}.ko"), bytes);
        order.push_str(name);
        order.push('\n');
    }
    archive.file(&format!("/lib/modules/{list}"), order.as_bytes());
}
