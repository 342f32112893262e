//! The step that a side is in, in a small mapped file: it outlives the process, and tells after a crash where it hit.

use std::fs::OpenOptions;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of the file: the step's number, then the epoch, little endian.
pub const TRACE_BYTES: usize = 16;

/// Name of the file in the state directory.
pub const TRACE_FILE: &str = "step";

/// What a side is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Step {
    /// Nothing is under way: the guest runs.
    Running = 1,
    /// Primary: the first copy.
    Copying = 2,
    /// Primary: the guest is paused, state and pages are being taken.
    Capturing = 3,
    /// Primary: the sync is being handed to the link.
    Sending = 4,
    /// Primary: the ack is awaited.
    AwaitingAck = 5,
    /// Primary: the ack is here, output is being released.
    Releasing = 6,
}

impl Step {
    /// The step's name for people and result files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Copying => "copying",
            Self::Capturing => "capturing",
            Self::Sending => "sending",
            Self::AwaitingAck => "awaiting ack",
            Self::Releasing => "releasing",
        }
    }

    /// Reads the file that a side left in its state directory: its last step and epoch.
    pub fn read(state_dir: &Path) -> Option<(Self, u64)> {
        let bytes: [u8; TRACE_BYTES] = std::fs::read(state_dir.join(TRACE_FILE)).ok()?.try_into().ok()?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let all = [
            Self::Running,
            Self::Copying,
            Self::Capturing,
            Self::Sending,
            Self::AwaitingAck,
            Self::Releasing,
        ];
        let step = all.into_iter().find(|step| *step as u64 == word(0))?;
        Some((step, word(8)))
    }
}

/// The mapped file.
pub struct Trace(NonNull<AtomicU64>);

// SAFETY: the mapping is reached through atomics alone.
unsafe impl Send for Trace {}
// SAFETY: as above.
unsafe impl Sync for Trace {}

impl Trace {
    /// Makes the file in `state_dir`.
    pub fn create(state_dir: &Path) -> anyhow::Result<Self> {
        let path = state_dir.join(TRACE_FILE);
        let context = || format!("cannot make the trace file {}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .with_context(context)?;
        file.set_len(TRACE_BYTES as u64).with_context(context)?;
        // SAFETY: a fresh shared mapping of a file of this length, which nobody shortens.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                TRACE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }
        .with_context(context)?;
        Ok(Self(
            NonNull::new(address.cast()).context("the trace file was mapped at address 0")?,
        ))
    }

    /// Notes what is being done.
    pub fn note(&self, step: Step, epoch: u64) {
        // SAFETY: both words lie in the mapping, which lives as long as `self`, and are only used as atomics.
        let (first, second) = unsafe { (self.0.as_ref(), self.0.add(1).as_ref()) };
        second.store(epoch, Ordering::Relaxed);
        first.store(step as u64, Ordering::Relaxed);
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), TRACE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_outlives_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Step::read(directory.path()), None);
        let trace = Trace::create(directory.path()).unwrap();
        trace.note(Step::Capturing, 6);
        trace.note(Step::AwaitingAck, 7);
        drop(trace);
        assert_eq!(Step::read(directory.path()), Some((Step::AwaitingAck, 7)));
    }
}
