//! Devices that put nothing out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Device;
use crate::event::EventChannel;
use crate::release::Releasable;
use crate::state::{State, StateBlob, StateError, StateKind};

/// A device of which the guest reads and writes registers, and nobody else sees anything: nothing of it is
/// held or captured, and there is one of it in a machine.
pub(super) trait Quiet: Send + Sync {
    /// What the guest has written; at a power-on all of it is the default.
    type Registers: State + Default;

    /// Where they are.
    fn registers(&self) -> &Mutex<Self::Registers>;
    /// As [`Device::read`].
    fn read(&self, offset: u64, data: &mut [u8]);
    /// As [`Device::write`].
    fn write(&self, offset: u64, data: &[u8]);
    /// Whether the device goes on from these, and how.
    ///
    /// # Errors
    /// If those of no machine as this one are so.
    fn accept(&self, registers: Self::Registers) -> Result<Self::Registers, StateError>;

    /// They are not to be held while anybody else is called: a capture may be what follows.
    fn lock(&self) -> MutexGuard<'_, Self::Registers> {
        self.registers().lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Quiet> Device for T {
    fn read(&self, offset: u64, data: &mut [u8]) {
        Quiet::read(self, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        Quiet::write(self, offset, data);
    }

    fn channels(&self) -> Vec<Arc<EventChannel>> {
        Vec::new()
    }

    fn output_held(&self) -> bool {
        false
    }

    fn capture(&self, _: u64) -> u64 {
        0
    }

    fn uncapture(&self, _: u64) {}

    fn let_go(&self, _: Releasable) {}

    fn drain(&self) {}

    fn abandon(&self) {}

    fn reset(&self) {
        *self.lock() = T::Registers::default();
    }

    fn wake(&self) {}

    fn identity(&self) -> (StateKind, u16) {
        (T::Registers::KIND, 0)
    }

    fn save(&self) -> StateBlob {
        StateBlob::encode(0, &*self.lock())
    }

    fn load(&self, blob: &StateBlob) -> Result<(), StateError> {
        let registers = self.accept(blob.decode()?)?;
        *self.lock() = registers;
        Ok(())
    }
}
