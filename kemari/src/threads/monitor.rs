//! A value that threads share, and whose changes they wait for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// See the module. Whoever panics with the value has left it whole.
#[derive(Default)]
pub(crate) struct Monitor<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Monitor<T> {
    /// The value, for the calling thread alone.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets all look who wait.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for the next change.
    pub(crate) fn wait<'a>(&self, value: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.changed.wait(value).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as this holds.
    pub(crate) fn wait_while(&self, condition: impl FnMut(&mut T) -> bool) -> MutexGuard<'_, T> {
        let waited = self.changed.wait_while(self.lock(), condition);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as this holds, but no longer than `limit`.
    pub(crate) fn wait_while_within(&self, limit: Duration, condition: impl FnMut(&mut T) -> bool) {
        // Out of time is out of luck.
        drop(self.changed.wait_timeout_while(self.lock(), limit, condition));
    }
}
