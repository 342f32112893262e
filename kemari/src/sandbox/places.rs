//! The files that a side of this configuration uses in all of its life, also after a takeover, a repair or a
//! renewal.
//!
//! Landlock knows files and directories as they are at the start. Whatever may be replaced by another of the
//! same name (an image by a larger one, a certificate by its successor, resolv.conf by the next network) is
//! allowed by its directory.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::config::{Config, Console, Endpoint};

/// Where the C library looks for names: its own configuration, and what is linked to from there.
const NAME_SERVICE: [&str; 4] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
];
/// What the kernel tells: locked memory, processors, users of disks. It lets nobody write there who may only
/// read.
const TOLD_BY_KERNEL: [&str; 2] = ["/proc", "/sys"];
/// Random numbers, for a program whose C library is linked into it: it does not find `getrandom` there.
const RANDOM: [&str; 2] = ["/dev/random", "/dev/urandom"];
/// Where disks are that are block devices. One that comes later, or is replaced, is opened by the steward.
const DEV: &str = "/dev";

/// What may be done with a file, or with all that is in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum May {
    /// Read it.
    Read,
    /// Read and write it, make and remove files.
    Change,
    /// Open a device.
    Use,
}

/// All of them, with directories that are not there yet. `words` gets a sentence for each that allows more
/// than its name says.
pub(super) fn of(config: &Config, host: &str, words: &mut Vec<String>) -> BTreeSet<(PathBuf, May)> {
    let own = config.host(host);
    let mut places = BTreeSet::new();
    let mut add = |path: &Path, may| {
        places.insert((path.to_owned(), may));
    };
    TOLD_BY_KERNEL
        .iter()
        .chain(&RANDOM)
        .for_each(|path| add(path.as_ref(), May::Read));
    for file in [own.control(), &own.state_dir().join("lock")] {
        add(around(file), May::Change);
    }
    if let Console::File(path) = &own.console {
        match is_device(path) {
            true => add(path, May::Use),
            false => add(around(path), May::Change),
        };
    }
    let arbiter = &config.arbiter;
    let certificates = config.certificates_of(host);
    let files = [
        Some(config.machine.begins_with()),
        config.machine.initrd.as_deref(),
        arbiter.ca.as_deref(),
        arbiter.certificate.as_deref(),
        arbiter.key.as_deref(),
        arbiter.password_file.as_deref(),
        // This one is a directory, and may be a link to the newest of several.
        certificates,
    ];
    files
        .into_iter()
        .flatten()
        .for_each(|file| add(around(file), May::Read));
    certificates
        .into_iter()
        .for_each(|directory| add(directory, May::Read));
    if let Some(directory) = &arbiter.path {
        add(&outlasting(directory, words), May::Change);
    }
    if has_names(config) {
        NAME_SERVICE.iter().for_each(|path| add(path.as_ref(), May::Read));
    }
    for disk in config.disks_of(host) {
        add_disk(&disk.path, disk.disk.read_only, words, &mut places);
    }
    places
}

/// The image and what lies beside it: its record, its backing files, the next image of the same name.
fn add_disk(path: &Path, read_only: bool, words: &mut Vec<String>, places: &mut BTreeSet<(PathBuf, May)>) {
    let may = if read_only { May::Read } else { May::Change };
    if is_device(path) {
        places.insert((path.to_owned(), May::Use));
    } else if !path.starts_with(DEV) {
        places.insert((outlasting(around(path), words), may));
        // It may be a link.
        if let Ok(real) = path.canonicalize() {
            places.insert((outlasting(around(&real), words), may));
        }
    }
}

/// Whether some of what the side speaks to has a name and no address.
pub(crate) fn has_names(config: &Config) -> bool {
    let endpoints = config.arbiter.endpoints.iter();
    endpoints
        .filter_map(|text| Endpoint::parse(text).ok())
        .any(|endpoint| endpoint.has_name())
}

fn is_device(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|found| found.file_type().is_block_device() || found.file_type().is_char_device())
}

/// The directory of a file; of what lies in the root, only itself.
fn around(file: &Path) -> &Path {
    match file.parent() {
        Some(directory) if directory != Path::new("/") => directory,
        _ => file,
    }
}

/// The directory, or what holds the mount point of its file system: that may be mounted anew.
fn outlasting(directory: &Path, words: &mut Vec<String>) -> PathBuf {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    let own = device(directory);
    let above = directory
        .ancestors()
        .find(|ancestor| device(ancestor) != own || *ancestor == Path::new("/"));
    match above {
        Some(above) if above != Path::new("/") && own.is_some() => above.to_owned(),
        _ => {
            if own.is_some() && own != device(Path::new("/")) {
                words.push(format!(
                    "when the file system of {} is mounted anew, this side has to be restarted: its mount \
                     point lies in the root directory",
                    directory.display()
                ));
            }
            directory.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_is_allowed_by_its_directory() {
        assert_eq!(around(Path::new("/srv/vm/disk.img")), Path::new("/srv/vm"));
        assert_eq!(around(Path::new("/vmlinuz")), Path::new("/vmlinuz"));
    }

    #[test]
    fn a_file_system_that_is_mounted_anew_is_allowed_by_where_it_is_mounted() {
        let mut words = Vec::new();
        // A file system of its own everywhere, mounted in another one.
        assert_eq!(outlasting(Path::new("/dev/pts"), &mut words), Path::new("/dev"));
        assert!(words.is_empty());
        // One that is mounted in the root: not everything is allowed for its sake.
        assert_eq!(
            outlasting(Path::new("/proc/self"), &mut words),
            Path::new("/proc/self")
        );
        assert!(
            words[0].contains("/proc/self") && words[0].contains("restarted"),
            "{words:?}"
        );
    }
}
