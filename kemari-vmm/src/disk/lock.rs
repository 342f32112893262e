//! The lock of an image: two users destroy it.

use std::fs::{File, TryLockError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{DiskConfig, DiskError};

/// How long a lock is waited for, in milliseconds: an earlier use by this process may be about to end, and a program that
/// it starts has its locks, too, until it begins.
const WAIT_MS_MAX: u64 = 300;
/// How often it is tried meanwhile, in milliseconds.
const RETRY_MS: u64 = 10;

/// Locks an image, shared if it is only read; the kernel drops the lock with the process.
pub fn take(file: &File, config: &DiskConfig) -> Result<(), DiskError> {
    let begin = Instant::now();
    let wait_ms = if config.ignore_lock { 0 } else { WAIT_MS_MAX };
    let result = loop {
        let result = match config.read_only {
            true => file.try_lock_shared(),
            false => file.try_lock(),
        };
        match result {
            Err(TryLockError::WouldBlock) if begin.elapsed() < Duration::from_millis(wait_ms) => {
                sleep(Duration::from_millis(RETRY_MS));
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
        }),
        Err(TryLockError::Error(source)) => Err(DiskError::Open {
            path: config.path.clone(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;

    #[test]
    fn a_lock_that_is_about_to_go_is_waited_for() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let config = DiskConfig::new(image.path());
        let first = Disk::open(&config).unwrap();
        assert!(matches!(Disk::open(&config), Err(DiskError::InUse { .. })));
        let closing = std::thread::spawn(move || {
            sleep(Duration::from_millis(WAIT_MS_MAX / 6));
            drop(first);
        });
        assert!(Disk::open(&config).is_ok());
        closing.join().unwrap();
    }
}
