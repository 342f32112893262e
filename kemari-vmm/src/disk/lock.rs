//! The lock of an image: two users destroy it.

use std::fs::{File, TryLockError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{DiskConfig, DiskError};

/// How long a lock is waited for: an earlier use by this process may be about to end, and a program that it starts has
/// its locks, too, until it begins.
const WAIT_MAX: Duration = Duration::from_millis(300);
/// How often it is tried meanwhile.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Locks an image, shared if it is only read; the kernel drops the lock with the process.
pub fn take(file: &File, config: &DiskConfig) -> Result<(), DiskError> {
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
        let result = match config.read_only {
            true => file.try_lock_shared(),
            false => file.try_lock(),
        };
        match result {
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
}
