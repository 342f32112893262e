//! The lock of an image: two users destroy it.

use std::fs::{File, TryLockError};

use super::{DiskConfig, DiskError};

/// Locks an image, shared if it is only read; the kernel drops the lock with the process.
pub fn take(file: &File, config: &DiskConfig) -> Result<(), DiskError> {
    let result = if config.read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
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
