//! Whether a takeover could open the images of this host as they are. Whoever asks may wait long: a network
//! file system that does not answer holds him up.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kemari_vmm::disk::{Disk as Image, DiskConfig, OpenImage};
use rustix::fs::{major, minor};

use crate::config::{Config, HostDisk};
use crate::image::image_of;
use crate::replica::record_of;

/// Less room than this, in bytes, on the file system of an image that does not have all its blocks yet:
/// writes of the guest will fail soon.
const ROOM_BYTES_MIN: u64 = 64 << 20;
/// Unit of `st_blocks`, in bytes.
const STAT_BLOCK_BYTES: u64 = 512;

/// A file, whatever its name (device and number), and its size in bytes.
type Known = (u64, u64, u64);

/// The files of images that were opened a moment ago, by the id of the disk.
#[derive(Default)]
pub struct Opened(BTreeMap<String, Known>);

impl Opened {
    /// Looks at the images of these disks.
    pub fn at<'a>(images: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Self {
        let files = images.into_iter().filter_map(|(disk, path)| {
            let file = std::fs::metadata(path).ok()?;
            Some((disk.to_owned(), known(&file)))
        });
        Self(files.collect())
    }
}

/// The files that the standby VM's replicas write to.
#[derive(Clone, Default)]
pub struct InUse(Arc<Mutex<Images>>);

#[derive(Default)]
struct Images {
    opened: Opened,
    /// Which standby VM these are of, counted.
    standby: u64,
}

impl InUse {
    fn lock(&self) -> MutexGuard<'_, Images> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These images are open now, and no others: there is another standby VM, or none any more.
    pub fn set(&self, opened: Opened) {
        let mut images = self.lock();
        images.opened = opened;
        images.standby += 1;
    }

    fn of(&self, disk: &str) -> (u64, Option<Known>) {
        let images = self.lock();
        (images.standby, images.opened.0.get(disk).copied())
    }
}

fn known(file: &Metadata) -> Known {
    (file.dev(), file.ino(), file.len())
}

/// An image, and how a takeover opens it.
pub struct Target {
    id: String,
    image: DiskConfig,
    is_shared: bool,
    /// Where its record is, which a takeover writes first; none if it is not replicated.
    record: Option<PathBuf>,
    seen: Mutex<Seen>,
}

/// What an image was made of when it was first looked at for a standby VM: the guest has read from the
/// primary's, and must find the same here.
#[derive(Default)]
struct Seen {
    standby: u64,
    files: Vec<FileSeen>,
    /// The record's device and number, once there is one that the standby VM has open.
    record: Option<(u64, u64)>,
}

#[derive(PartialEq, Eq)]
struct FileSeen {
    /// Its device and number.
    file: (u64, u64),
    /// Of what nobody writes: its size, and when it was last changed, in seconds and nanoseconds.
    unchanged: Option<(u64, i64, i64)>,
}

impl Target {
    /// All disks of a host.
    pub fn all(config: &Config, host: &str) -> Vec<Self> {
        let state_dir = config.host(host).state_dir();
        let disks = config.disks_of(host);
        let target = |disk| {
            let record = |disk| record_of(disk, state_dir);
            Self::of(disk, config.replicates(disk.disk).then(|| record(disk)))
        };
        disks.iter().map(target).collect()
    }

    fn of(disk: &HostDisk<'_>, record: Option<PathBuf>) -> Self {
        Self {
            id: disk.disk.id.clone(),
            image: image_of(disk, false),
            is_shared: disk.disk.shared,
            record,
            seen: Mutex::default(),
        }
    }

    /// The disk's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How it is opened.
    pub fn image(&self) -> &DiskConfig {
        &self.image
    }

    /// Why a takeover could not use the image, as a sentence.
    pub fn trouble(&self, in_use: &InUse) -> Option<String> {
        let (id, path) = (&self.id, self.image.path.display());
        let why = self.problem(in_use).err()?;
        Some(format!("the image {path} of the disk {id} {why}"))
    }

    fn problem(&self, in_use: &InUse) -> Result<(), String> {
        let path: &PathBuf = &self.image.path;
        let files = Image::examine(&self.image)
            .map_err(|error| format!("cannot be used: {:#}", anyhow::Error::from(error)))?;
        let (standby, in_use) = in_use.of(&self.id);
        self.same(standby, &files)?;
        let look = |error: std::io::Error| format!("cannot be looked at: {error}");
        let file = OpenImage::default().open(path).map_err(look)?;
        let found = file.metadata().map_err(look)?;
        let (device, number, bytes) = known(&found);
        if let Some((its_device, its_number, its_bytes)) = in_use {
            if (device, number) != (its_device, its_number) {
                return Err(
                    "is another file than the one that holds the VM's blocks: put that one back".to_owned(),
                );
            }
            if bytes < its_bytes {
                return Err(format!("has shrunk from {its_bytes} to {bytes} bytes"));
            }
        }
        // The primary has a lock on a shared one.
        if !self.is_shared {
            free(&file, self.image.read_only)?;
        }
        match found.file_type().is_block_device() {
            _ if self.image.read_only => return Ok(()),
            true => unheld(found.rdev())?,
            false => {
                room(&file, &found)?;
                write_nothing(path).map_err(|error| format!("cannot be written: {error}"))?;
            }
        }
        match &self.record {
            Some(record) => self.recorded(record, in_use.is_some()),
            None => Ok(()),
        }
    }

    /// Whether the record can be written. A new image gets one with its first pair; from then on the standby
    /// VM has that one open, and would note the term of a takeover in a file that nobody finds any more.
    fn recorded(&self, record: &Path, is_open: bool) -> Result<(), String> {
        let found = match write_nothing(record).and_then(|()| std::fs::metadata(record)) {
            Ok(found) => Some((found.dev(), found.ino())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("has a record that cannot be written: {error}")),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.record {
            Some(known) if found != Some(known) => Err(format!(
                "has lost its record {}: put that file back, or protect the VM anew",
                record.display()
            )),
            _ => {
                seen.record = found.filter(|_| is_open);
                Ok(())
            }
        }
    }
}

/// Writes no byte to a file. That changes nothing, and takes as long as the file system is frozen, as one is
/// by a backup that has left it so: it would open and be read all the while, and a takeover would stand still
/// in it.
fn write_nothing(path: &Path) -> std::io::Result<()> {
    let file = File::options().write(true).open(path)?;
    Ok(rustix::io::pwrite(&file, &[], 0).map(drop)?)
}

impl Target {
    /// Whether the image is made of what it was made of before, for this standby VM.
    fn same(&self, standby: u64, files: &[Metadata]) -> Result<(), String> {
        let look = |(place, file): (usize, &Metadata)| FileSeen {
            file: (file.dev(), file.ino()),
            unchanged: (place > 0 || self.image.read_only)
                .then(|| (file.len(), file.mtime(), file.mtime_nsec())),
        };
        let files: Vec<FileSeen> = files.iter().enumerate().map(look).collect();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.standby != standby || seen.files.is_empty() {
            *seen = Seen {
                standby,
                files,
                record: None,
            };
            return Ok(());
        }
        let is_known = |(file, known): (&FileSeen, &FileSeen)| file == known;
        match files.iter().zip(&seen.files).position(|pair| !is_known(pair)) {
            None if files.len() == seen.files.len() => Ok(()),
            Some(0) => Err(
                "is another file than before, or was changed, since this host follows the VM: put \
                            the first one back, or protect the VM anew"
                    .to_owned(),
            ),
            _ => Err(
                "has another backing file than before, or one that was changed, since this host follows \
                      the VM: put the first one back, or protect the VM anew"
                    .to_owned(),
            ),
        }
    }
}

/// The bytes whose locks Kemari and QEMU take for themselves: the standby VM has some of them, and excludes
/// everybody else there. From the first one on, and behind the last one.
const OWN_LOCKS: (i64, i64) = (100, 300);

/// Whether no process has locked it in a way of its own, with POSIX record locks.
fn free(file: &File, read_only: bool) -> Result<(), String> {
    let kind = match read_only {
        true => libc::F_RDLCK,
        false => libc::F_WRLCK,
    };
    let (first, behind) = OWN_LOCKS;
    for (start, length) in [(0, first), (behind, 0)] {
        // SAFETY: a flock of zeros is a valid one.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as libc::c_short;
        (lock.l_start, lock.l_len) = (start, length);
        // SAFETY: the kernel reads and writes one flock at the pointer.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) };
        // A file system without locks has nobody who could have one.
        if result == 0 && lock.l_type != libc::F_UNLCK as libc::c_short {
            return Err(match lock.l_pid {
                // It belongs to an open file, whoever has that.
                ..=0 => "is in use: another process has locked it".to_owned(),
                process => format!("is in use: process {process} has locked it"),
            });
        }
    }
    Ok(())
}

/// Whether nothing on this host has the block device for itself, as a mounted file system or a volume does:
/// whoever is to write it opens it exclusively. That is looked up and not tried: the try would be in the way
/// of those who are to have it.
fn unheld(device: u64) -> Result<(), String> {
    let place = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let look = |error: std::io::Error| format!("cannot be looked at in {place}: {error}");
    // Neither can a disk be had while one of its partitions is in use, nor a partition while the whole is.
    let is_partition = |place: &Path| place.join("partition").exists();
    let own = std::fs::canonicalize(&place).map_err(look)?;
    let mut places: Vec<PathBuf> = std::fs::read_dir(&own)
        .map_err(look)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|place| is_partition(place))
        .collect();
    places.extend(own.parent().filter(|_| is_partition(&own)).map(Path::to_owned));
    places.push(own);
    let users = users().map_err(look)?;
    for place in places {
        if let Some(Ok(holder)) = std::fs::read_dir(place.join("holders")).map_err(look)?.next() {
            let holder = holder.file_name();
            return Err(format!(
                "is in use on this host: {} is made of it",
                holder.display()
            ));
        }
        let numbers = std::fs::read_to_string(place.join("dev")).map_err(look)?;
        if let Some((_, user)) = users.iter().find(|(device, _)| device == numbers.trim()) {
            return Err(format!("is in use on this host: {user}"));
        }
    }
    Ok(())
}

/// The block devices that this host has mounted or swaps to, by their numbers, and what they are used for.
fn users() -> std::io::Result<Vec<(String, String)>> {
    let (mounts, swaps) = ("/proc/self/mountinfo", "/proc/swaps");
    let numbers = |path: &str| {
        let found = std::fs::metadata(path).ok()?;
        let device = found.rdev();
        found
            .file_type()
            .is_block_device()
            .then(|| format!("{}:{}", major(device), minor(device)))
    };
    let mut users = Vec::new();
    for line in std::fs::read_to_string(mounts)?.lines() {
        // ID PARENT MAJ:MIN ROOT PLACE ... - TYPE SOURCE ...:
        // a file system on several devices has numbers of its own.
        let Some((mount, kind)) = line.split_once(" - ") else {
            continue;
        };
        let mut mount = mount.split(' ').skip(2);
        let (own, place) = (mount.next(), mount.nth(1).unwrap_or_default());
        let source = kind
            .split(' ')
            .nth(1)
            .filter(|source| source.starts_with("/dev/"));
        let devices = own.map(str::to_owned).into_iter().chain(source.and_then(numbers));
        users.extend(devices.map(|device| (device, format!("it is mounted at {place}"))));
    }
    // A kernel may be without.
    let swaps = std::fs::read_to_string(swaps).unwrap_or_default();
    let swaps = swaps
        .lines()
        .skip(1)
        .filter_map(|line| numbers(line.split_ascii_whitespace().next()?));
    users.extend(swaps.map(|device| (device, "it swaps to it".to_owned())));
    Ok(users)
}

/// Whether there is room for blocks that a sparse image does not have yet.
fn room(file: &File, found: &Metadata) -> Result<(), String> {
    let missing_bytes = found.len().saturating_sub(found.blocks() * STAT_BLOCK_BYTES);
    let Ok(system) = rustix::fs::fstatvfs(file) else {
        return Ok(());
    };
    let free_bytes = system.f_bavail.saturating_mul(system.f_frsize);
    match free_bytes < ROOM_BYTES_MIN.min(missing_bytes) {
        true => Err("has no room to grow: its file system is full".to_owned()),
        false => Ok(()),
    }
}

#[cfg(test)]
#[path = "images_test.rs"]
mod tests;
