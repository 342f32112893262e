//! The timer of a device with a rate: a thread that goes on with what was left in the rings, once it may.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::super::Completions;
use crate::confine::{self, COMMON, Calls, DEVICES, OPEN_FILES};
use crate::threads;

/// What the thread of a device with a rate asks of the kernel.
pub const CALLS: Calls = Calls {
    of: "rate",
    parts: &[COMMON, DEVICES, OPEN_FILES],
};

#[derive(Default)]
struct Alarm {
    due: Option<Instant>,
    is_over: bool,
}

#[derive(Default)]
struct Shared {
    alarm: Mutex<Alarm>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Alarm> {
        self.alarm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is due. False: nobody wants it any more.
    fn await_due(&self) -> bool {
        let mut alarm = self.lock();
        while !alarm.is_over {
            let now = Instant::now();
            alarm = match alarm.due {
                Some(due) if due <= now => {
                    alarm.due = None;
                    return true;
                }
                Some(due) => {
                    let waited = self.changed.wait_timeout(alarm, due - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(alarm).unwrap_or_else(PoisonError::into_inner),
            };
        }
        false
    }
}

/// See the module. The thread ends when this is dropped.
pub(crate) struct Resumer(Arc<Shared>);

impl Resumer {
    /// Starts the thread, which resumes `device`.
    ///
    /// # Errors
    /// If the system has none left.
    pub(crate) fn start(device: Weak<dyn Completions>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let timer = shared.clone();
        threads::start("rate", move || {
            confine::thread(&CALLS);
            while timer.await_due()
                && let Some(device) = device.upgrade()
            {
                device.resume();
            }
        })?;
        Ok(Self(shared))
    }

    /// The device is resumed then, or before.
    pub(crate) fn resume_at(&self, due: Instant) {
        let mut alarm = self.0.lock();
        if alarm.due.is_none_or(|earlier| due < earlier) {
            alarm.due = Some(due);
            self.0.changed.notify_one();
        }
    }
}

impl Drop for Resumer {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_one();
    }
}
