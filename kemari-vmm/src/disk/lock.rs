//! The lock of an image: two users destroy it.
//!
//! Two locks, each of which somebody else looks at: that of the whole file (flock(2)), which other Kemaris
//! take, and those of single bytes that QEMU and its tools take ("open file description" locks, fcntl(2);
//! QEMU's docs/system/ qemu-block-drivers, "Disk image file locking", and block/file-posix.c). There a byte
//! says that a right to the image is in use, another that it is shared with nobody; who opens it puts its own
//! down first, then looks for those of others.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{DiskConfig, DiskError};

/// How long a lock is waited for: an earlier use by this process may be about to end, and a program that it
/// starts has its locks, too, until it begins.
const WAIT_MAX: Duration = Duration::from_millis(300);
/// How often it is tried meanwhile.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// QEMU's bytes: from here on, a byte a right that is in use; from there on, one that is not shared.
const USED_OFFSET: i64 = 100;
const UNSHARED_OFFSET: i64 = 200;
/// Numbers of rights: that what is read is a moment of the image, to write it, to make it larger.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks an image, shared if it is only read; the kernel drops the locks with the process.
pub(crate) fn take(file: &File, config: &DiskConfig) -> Result<(), DiskError> {
    let wait = if config.ignore_lock {
        Duration::ZERO
    } else {
        WAIT_MAX
    };
    take_within(file, config, wait)
}

fn take_within(file: &File, config: &DiskConfig, wait: Duration) -> Result<(), DiskError> {
    let begin = Instant::now();
    let result = loop {
        match try_take(file, config.read_only) {
            Err(TryLockError::WouldBlock) if begin.elapsed() < wait => {
                sleep(RETRY_INTERVAL);
            }
            result => break result,
        }
    };
    match result {
        Ok(()) => Ok(()),
        Err(_) if config.ignore_lock => {
            tracing::warn!(
                "the disk image {} is still locked by its fenced user",
                config.path.display()
            );
            Ok(())
        }
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse {
            path: config.path.clone(),
            user: user_of(file),
        }),
        Err(TryLockError::Error(source)) => Err(DiskError::Open {
            path: config.path.clone(),
            source,
        }),
    }
}

fn try_take(file: &File, read_only: bool) -> Result<(), TryLockError> {
    match read_only {
        true => file.try_lock_shared()?,
        false => file.try_lock()?,
    }
    let used: &[i64] = if read_only {
        &[READ]
    } else {
        &[READ, WRITE, RESIZE]
    };
    // Nobody else may change what is read here.
    let unshared = [WRITE, RESIZE];
    let result = take_bytes(file, used, &unshared);
    if result.is_err() {
        // What was taken would make others wait for nothing.
        let _ = byte_lock(file, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0);
        let _ = file.unlock();
    }
    result
}

fn take_bytes(file: &File, used: &[i64], unshared: &[i64]) -> Result<(), TryLockError> {
    let own = used.iter().map(|right| USED_OFFSET + right);
    let own = own.chain(unshared.iter().map(|right| UNSHARED_OFFSET + right));
    for byte in own {
        match byte_lock(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte, 1) {
            Ok(_) => {}
            // A file system without such locks has no QEMU that holds one, either.
            Err(error) if is_unsupported(&error) => return Ok(()),
            Err(error) if is_held(&error) => return Err(TryLockError::WouldBlock),
            Err(error) => return Err(TryLockError::Error(error)),
        }
    }
    let others = used.iter().map(|right| UNSHARED_OFFSET + right);
    for byte in others.chain(unshared.iter().map(|right| USED_OFFSET + right)) {
        let found =
            byte_lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte, 1).map_err(TryLockError::Error)?;
        if found != libc::F_UNLCK {
            return Err(TryLockError::WouldBlock);
        }
    }
    Ok(())
}

/// One call about a lock of bytes; returns the kind of lock that it has left in its argument. `bytes` 0:
/// to the end.
fn byte_lock(
    file: &File,
    call: libc::c_int,
    kind: libc::c_int,
    start: i64,
    bytes: i64,
) -> io::Result<libc::c_int> {
    // SAFETY: a flock of zeros is a valid one.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = (start, bytes);
    // SAFETY: the call reads and writes this flock, and nothing else.
    match unsafe { libc::fcntl(file.as_raw_fd(), call, &raw mut lock) } {
        0 => Ok(lock.l_type.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_held(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS)
    )
}

/// Another process that has the file open, as far as this one may look: its name and number.
fn user_of(file: &File) -> Option<String> {
    let wanted = file.metadata().ok()?;
    let is_wanted = |path: &std::path::Path| {
        std::fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
    };
    let me = std::process::id();
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.filter(|pid| *pid != me) {
        let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        if files.flatten().any(|entry| is_wanted(&entry.path())) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim_end()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any machine stands still.
    const LONG: Duration = Duration::from_secs(300);

    #[test]
    fn a_lock_that_is_about_to_go_is_waited_for() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let config = DiskConfig::new(image.path());
        let first = image.reopen().unwrap();
        take_within(&first, &config, Duration::ZERO).unwrap();
        let second = image.reopen().unwrap();
        assert!(matches!(take(&second, &config), Err(DiskError::InUse { .. })));
        let closing = std::thread::spawn(move || {
            sleep(Duration::from_millis(50));
            drop(first);
        });
        take_within(&second, &config, LONG).unwrap();
        closing.join().unwrap();
    }

    #[test]
    fn who_gets_no_lock_leaves_none_behind() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [qemu, refused, other] = [(); 3].map(|()| image.reopen().unwrap());
        // Somebody reads, and lets nobody write.
        let unshared = UNSHARED_OFFSET + WRITE;
        byte_lock(&qemu, libc::F_OFD_SETLK, libc::F_RDLCK, unshared, 1).unwrap();
        assert!(matches!(try_take(&refused, false), Err(TryLockError::WouldBlock)));
        drop(qemu);
        let left = byte_lock(&other, libc::F_OFD_GETLK, libc::F_WRLCK, 0, 0).unwrap();
        assert_eq!(left, libc::F_UNLCK);
        try_take(&other, false).unwrap();
    }
}
