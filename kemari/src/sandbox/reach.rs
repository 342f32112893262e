//! Which files of the configuration somebody could not use: tried out by a thread that becomes somebody.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::config::{Config, Console, Format};
use crate::replica;

/// What is used by a side of the host `host`, and cannot be by the calling thread after it has done this. It
/// does so in a thread of its own, which ends.
///
/// # Errors
/// If there is no thread, or it cannot do this.
pub(super) fn beyond(
    config: &Config,
    host: &str,
    become_somebody: impl FnOnce() -> io::Result<()> + Send,
) -> io::Result<Vec<PathBuf>> {
    denied(used(config, host), become_somebody)
}

/// Which of these cannot be used so by the calling thread after it has done this, in a thread of its own.
///
/// # Errors
/// If there is no thread, or it cannot do this.
pub(super) fn denied(
    used: Vec<(PathBuf, Access)>,
    become_somebody: impl FnOnce() -> io::Result<()> + Send,
) -> io::Result<Vec<PathBuf>> {
    thread::scope(|threads| {
        let tried = thread::Builder::new().spawn_scoped(threads, move || {
            become_somebody()?;
            let is_denied = |path: &Path, how| {
                let tried = access(path, how);
                matches!(tried, Err(Errno::ACCESS | Errno::PERM))
            };
            Ok(used
                .into_iter()
                .filter(|(path, how)| is_denied(path, *how))
                .map(|(path, _)| path)
                .collect())
        })?;
        tried
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread has panicked")))
    })
}

/// How the image of a disk is used.
pub(crate) fn of_disk(read_only: bool) -> Access {
    match read_only {
        true => Access::READ_OK,
        false => Access::READ_OK | Access::WRITE_OK,
    }
}

/// Whether there is one of this name.
pub(crate) fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// Files and directories, and how each is used. What is not there yet is no matter: others say so.
fn used(config: &Config, host: &str) -> Vec<(PathBuf, Access)> {
    let own = config.host(host);
    let read = Access::READ_OK;
    let change = Access::READ_OK | Access::WRITE_OK;
    let make_in = Access::WRITE_OK | Access::EXEC_OK;
    let mut used = Vec::new();
    let mut add = |path: &Path, how| used.push((path.to_owned(), how));
    let directory = |file: &Path| file.parent().map(Path::to_owned);
    let lock = own.state_dir().join("lock");
    for made in [own.control(), &lock] {
        directory(made)
            .iter()
            .for_each(|directory| add(directory, make_in));
    }
    add(&lock, change);
    if let Console::File(path) = &own.console {
        add(path, Access::WRITE_OK);
        directory(path)
            .iter()
            .for_each(|directory| add(directory, make_in));
    }
    let arbiter = &config.arbiter;
    let certificates = config.certificates_of(host);
    let read_ones = [
        Some(config.machine.begins_with().to_owned()),
        config.machine.initrd.clone(),
        arbiter.ca.clone(),
        arbiter.certificate.clone(),
        arbiter.key.clone(),
        arbiter.password_file.clone(),
        certificates.map(|directory| directory.join("ca.pem")),
        certificates.map(|directory| directory.join("host.pem")),
        certificates.map(|directory| directory.join("host.key")),
    ];
    read_ones.iter().flatten().for_each(|path| add(path, read));
    if let Some(path) = &arbiter.path {
        add(path, change | make_in);
    }
    for disk in config.disks_of(host) {
        let is_raw = disk.disk.format == Format::Raw;
        // A device that is not reached is opened by the steward; what is in a qcow2 image, by its library.
        if !is_raw || !is_block_device(&disk.path) {
            add(&disk.path, of_disk(disk.disk.read_only));
        }
        if !is_raw {
            // What is wrong with them others say.
            let below = kemari_vmm::disk::backing_files(&disk.path).unwrap_or_default();
            below.iter().for_each(|path| add(path, read));
        }
        if config.replicates(disk.disk) {
            let beside = replica::record_beside(&disk.path);
            let of_device = own.state_dir().join(format!("{}.kemari", disk.disk.id));
            [beside, of_device].iter().for_each(|path| add(path, change));
            if disk.path.is_file() {
                directory(&disk.path)
                    .iter()
                    .for_each(|directory| add(directory, make_in));
            }
        }
    }
    used
}
