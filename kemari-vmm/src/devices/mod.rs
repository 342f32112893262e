//! What all devices share, and the devices that are not virtio.

pub mod fw_cfg;
pub mod hub;
pub mod pm;
pub mod ports;
mod quiet;
pub mod serial;

use std::sync::Arc;

use crate::event::EventChannel;
use crate::release::Releasable;
use crate::state::{StateBlob, StateError, StateKind};

/// One device of the machine. Its methods are called by vCPU threads, by its own threads and by whoever
/// pauses the machine; what may run beside what is said in [`crate::machine`].
pub trait Device: Send + Sync {
    /// The guest reads `data.len()` bytes at an offset into the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]);
    /// The device's event channels.
    fn channels(&self) -> Vec<Arc<EventChannel>>;
    /// Whether some output waits for a capture.
    fn output_held(&self) -> bool;
    /// At a pause: all held output belongs to the capture of `epoch`; its bytes are copied aside. Returns
    /// how many outputs these are.
    fn capture(&self, epoch: u64) -> u64;
    /// The capture of `epoch` will never be acked: its output waits for a capture again.
    fn uncapture(&self, epoch: u64);
    /// Such output leaves.
    fn let_go(&self, which: Releasable);
    /// The capture of `epoch` is acked: its output leaves.
    fn release(&self, epoch: u64) {
        self.let_go(Releasable::UpTo(epoch));
    }
    /// With the right to act alone: all output leaves.
    fn release_all(&self) {
        self.let_go(Releasable::Any);
    }
    /// Waits until everything captured or released is finished and durable, before the machine is stopped or
    /// goes on elsewhere. What is held stays held: if it goes on here after all, nothing is lost.
    fn drain(&self);
    /// The machine never runs again and releases nothing more: whoever waits for a release stops waiting.
    fn abandon(&self);
    /// The machine is reset. Waits until captured or released output is finished;
    /// drops what was never captured.
    fn reset(&self);
    /// After a restore: works through its rings as if kicked, and interrupts once a queue. Spurious
    /// interrupts and kicks are harmless, lost ones are not.
    fn wake(&self);
    /// Whether it has stopped because the guest's driver broke the rules.
    fn is_broken(&self) -> bool {
        false
    }
    /// Which of a machine's states is this device's: the kind, and the instance of it.
    fn identity(&self) -> (StateKind, u16);
    /// The device's state. Called while the machine is frozen.
    fn save(&self) -> StateBlob;
    /// Continues from a state. Called while the machine has never run or is paused for good.
    fn load(&self, blob: &StateBlob) -> Result<(), StateError>;
}
