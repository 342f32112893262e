//! Disks: there, of a usable size, opened the way they will be, and in nobody else's hands.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use kemari_vmm::disk::DiskConfig;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::Finding;
use crate::config::{Cache, Format, HostDisk};
use crate::image::image_of;
use crate::magic::begins_like;
use crate::replica::{RecordError, describe_record};

/// Alignment that satisfies O_DIRECT everywhere, in bytes.
const ALIGNMENT: usize = 4096;

/// Looks at one disk. While the VM `running` here uses it, a lock on it is as it should be.
pub(super) fn check(disk: &HostDisk<'_>, running: bool) -> Finding {
    let name = format!("disk `{}` at {}", disk.disk.id, disk.path.display());
    match problem(disk, running) {
        Ok(bytes) => match other_format(disk) {
            Some(format) => Finding::warning(
                format!("{name} begins like a {format} image, but the guest will see it raw"),
                format!(
                    "if it is one, make a raw image of it with `kemari import IMAGE --format {format} DEST`"
                ),
            ),
            None => Finding::ok(format!("{name}: {} MiB", bytes >> 20)),
        },
        Err(problem) => Finding::error(format!("{name} {}", problem.0), problem.1),
    }
}

/// Looks at the record of a replicated disk's image. None if the image itself cannot be looked at.
pub(crate) fn check_record(vm: &str, disk: &HostDisk<'_>, state_dir: &Path) -> Option<Finding> {
    std::fs::metadata(&disk.path).ok()?;
    let name = format!("record of disk `{}`", disk.disk.id);
    Some(match describe_record(vm, disk, state_dir) {
        Ok(what) => Finding::ok(format!("{name}: {what}")),
        Err(error) => Finding::error(
            format!("{name} cannot be used: {error:#}"),
            advice_on_record(&error),
        ),
    })
}

/// Only a record that was read and is no good may be removed.
fn advice_on_record(error: &anyhow::Error) -> &'static str {
    if let Some(RecordError::Version) = error.downcast_ref() {
        return "run the version of Kemari that wrote it, or a later one";
    }
    let unread = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    match unread.map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => "run Kemari as a user that may read and write it",
        Some(_) => "repair the storage that it lies on, and leave the record as it is",
        None => "name the image that it belongs to, or, if you are sure of the image, remove the record",
    }
}

struct Problem(String, String);

fn problem(disk: &HostDisk<'_>, running: bool) -> Result<u64, Problem> {
    let path = disk.path.as_path();
    let direct = disk.disk.cache == Cache::Direct;
    let kind = std::fs::metadata(path)
        .map_err(|error| unopened(&error, false))?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Problem(
            "is neither a file nor a block device".into(),
            "name an image, as made by `truncate -s 10G disk.img`, or a block device".into(),
        ));
    }
    let mut flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
    if kind.is_block_device() {
        // Fails if it is mounted or part of something on this host.
        flags |= OFlags::EXCL;
    }
    let file = open(path, !disk.disk.read_only, flags).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) if !running => Problem(
            "is in use on this host: it is mounted, or part of a volume".into(),
            "unmount it: a guest and a host that share a file system destroy it".into(),
        ),
        _ => unopened(&error, direct),
    });
    let file = match file {
        Err(_) if running && kind.is_block_device() => {
            open(path, false, OFlags::empty()).map_err(|error| unopened(&error, false))?
        }
        other => other?,
    };
    let bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
        .map_err(|error| unopened(&error.into(), direct))?;
    let block_bytes = u64::from(disk.disk.block_size);
    if disk.disk.format == Format::Raw && bytes < block_bytes {
        return Err(Problem(
            format!("has {bytes} bytes, but a disk is a number of blocks of {block_bytes} bytes"),
            "make it longer with `truncate -s`".into(),
        ));
    }
    read_once(&file).map_err(|error| {
        Problem(
            format!("cannot be read: {error}"),
            "look for errors of its storage in the kernel's log".into(),
        )
    })?;
    if !running {
        free(&file, disk.disk.read_only)?;
        // Its lock goes with it.
        drop(file);
        return opens(disk);
    }
    Ok(bytes)
}

/// Opens it as the machine will, except for writing and for good.
fn opens(disk: &HostDisk<'_>) -> Result<u64, Problem> {
    let image = DiskConfig {
        read_only: true,
        ..image_of(disk, true)
    };
    let opened = kemari_vmm::disk::Disk::open(&image).map(|image| image.bytes());
    opened.map_err(|error| {
        let error = format!("{:#}", anyhow::Error::from(error));
        Problem(
            format!("cannot be used: {error}"),
            "repair it, or correct its section in the configuration".into(),
        )
    })
}

/// A raw disk that begins as images of another format do is most likely one,
/// and its guest would see the wrong bytes.
fn other_format(disk: &HostDisk<'_>) -> Option<&'static str> {
    begins_like(&disk.path).filter(|_| disk.disk.format == Format::Raw)
}

fn open(path: &Path, write: bool, flags: OFlags) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags.bits() as i32)
        .open(path)
}

fn unopened(error: &io::Error, direct: bool) -> Problem {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => "mount its storage, make the image, or correct the path",
        io::ErrorKind::PermissionDenied => "run Kemari as a user that may read and write it",
        io::ErrorKind::InvalidInput if direct => {
            "its file system cannot do O_DIRECT, which `cache = \"direct\"` needs: move it to one that can"
        }
        _ => "correct the path, or repair its storage",
    };
    match error.kind() {
        io::ErrorKind::NotFound => Problem("does not exist".into(), advice.into()),
        _ => Problem(format!("cannot be opened: {error}"), advice.into()),
    }
}

fn read_once(file: &File) -> io::Result<()> {
    let mut buffer = vec![0u8; 2 * ALIGNMENT];
    let start = buffer.as_ptr().align_offset(ALIGNMENT);
    rustix::io::pread(file, &mut buffer[start..start + ALIGNMENT], 0)?;
    Ok(())
}

/// Looks for locks of other processes, of either kind, and keeps none.
fn free(file: &File, read_only: bool) -> Result<(), Problem> {
    let wanted = if read_only {
        FlockType::ReadLock
    } else {
        FlockType::WriteLock
    };
    let found = fcntl_getlk(file, &Flock::from(wanted)).ok().flatten();
    let operation = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    let flocked = flock(file, operation);
    let whose = match found {
        Some(Flock { pid: Some(pid), .. }) => format!("process {}", pid.as_raw_nonzero()),
        Some(_) => "another process".into(),
        None if flocked == Err(rustix::io::Errno::WOULDBLOCK) => "another process".into(),
        None => return Ok(()),
    };
    Err(Problem(
        format!("is in use: {whose} has locked it"),
        "end the other user first: two users destroy what is on a disk".into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;
    use crate::config::{Disk, Flush};

    fn disk(cache: Cache) -> Disk {
        Disk {
            id: "blk0".into(),
            path: None,
            format: Format::Raw,
            cache,
            io: crate::config::Io::Auto,
            on_error: crate::config::OnError::Report,
            read_only: false,
            serial: None,
            block_size: 512,
            queues: 1,
            shared: true,
            replicate: None,
            flush: Flush::Memory,
            rate: None,
        }
    }

    fn found(disk: &Disk, path: &Path) -> Finding {
        check(
            &HostDisk {
                disk,
                path: path.to_owned(),
            },
            false,
        )
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_to_be_removed() {
        let unread =
            |kind: io::ErrorKind| anyhow::Error::from(RecordError::Io(kind.into())).context("the record");
        let advice = |kind| advice_on_record(&unread(kind));
        assert!(advice(io::ErrorKind::PermissionDenied).contains("as a user"));
        for kind in [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::Other] {
            assert!(advice(kind).contains("leave the record"), "{}", advice(kind));
        }
        let opened =
            anyhow::Error::from(io::Error::from(io::ErrorKind::PermissionDenied)).context("the record");
        assert!(advice_on_record(&opened).contains("as a user"));
        let newer = anyhow::Error::from(RecordError::Version).context("the record");
        assert!(advice_on_record(&newer).contains("the version"));
        let damaged = anyhow::Error::from(RecordError::Damaged).context("the record");
        assert!(advice_on_record(&damaged).contains("remove the record"));
    }

    #[test]
    fn disks_of_every_kind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let disk = disk(Cache::Writeback);
        assert!(found(&disk, &path).sentence.contains("does not exist"));
        assert!(found(&disk, directory.path()).sentence.contains("neither a file"));
        std::fs::write(&path, [0; 500]).unwrap();
        assert!(found(&disk, &path).sentence.contains("500 bytes"));
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert_eq!(
            found(&disk, &path),
            Finding::ok(format!("disk `blk0` at {}: 1 MiB", path.display()))
        );
    }

    #[test]
    fn formats_are_said_and_not_guessed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let mut image = vec![0; 1 << 20];
        image[..4].copy_from_slice(b"QFI\xfb");
        std::fs::write(&path, image).unwrap();
        let mut disk = disk(Cache::Writeback);
        let finding = found(&disk, &path);
        assert_eq!(finding.level, Level::Warning);
        assert!(
            finding.sentence.contains("begins like a qcow2 image"),
            "{finding}"
        );
        (disk.format, disk.read_only) = (Format::Qcow2, true);
        let finding = found(&disk, &path);
        assert_eq!(
            finding.level,
            Level::Error,
            "it has nothing but the first bytes of one"
        );
        assert!(finding.sentence.contains("as qcow2"), "{finding}");
        disk.format = Format::Raw;
        disk.block_size = 4096;
        // As the VM will have it: whole blocks, and what is behind them is left alone.
        std::fs::write(&path, vec![0; (1 << 20) + 512]).unwrap();
        let finding = found(&disk, &path);
        assert!(finding.sentence.contains(": 1 MiB"), "{finding}");
    }

    #[test]
    fn a_locked_disk_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let disk = disk(Cache::Writeback);
        let other = File::open(&path).unwrap();
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
        let finding = found(&disk, &path);
        assert_eq!(finding.level, Level::Error);
        assert!(finding.sentence.contains("in use"), "{finding}");
        drop(other);
        assert_eq!(
            found(&disk, &path).level,
            Level::Ok,
            "the check itself kept a lock"
        );
    }
}
